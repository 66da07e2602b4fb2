"""Certificates as a list: which of them a running proxy serves, and that the list and the status say the same of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from flm.services import certificates
from flm.services.notice import Running, Served
from flm.services.security import SecurityService
from flm.store import certificates as rows
from flm.store.certificates import CertificateRow
from flm.store.database import open_security
from flm.store.folder import Folder, locate
from tests.runtime.harness import running

OF_AN_AUTHORITY = CertificateRow(
    "acme",
    domains=("llm.example.com",),
    directory="https://ca.example/directory",
    issuer="An Authority",
    serial="0a",
    fingerprint="ab" * 32,
    not_before=1_795_000_000,
    not_after=1_802_776_000,
    trusted=True,
    renew_after=1_800_000_000.5,
)


async def record(folder: Folder) -> None:
    async with await open_security(folder) as database, database.transaction() as transaction:
        await rows.write(transaction, OF_AN_AUTHORITY)


def test_the_one_that_is_served_is_marked_and_reads_as_in_the_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__mode="dev-selfsigned") as proxy:
            await record(proxy.folder)
            service = SecurityService(proxy.folder)
            public, local = await service.certificates()
            assert (public.mode, public.served) == ("https-acme", False)
            assert (local.mode, local.served) == ("dev-selfsigned", True)
            line = (await proxy.handle()).certificate
            assert line is not None
            said, listed = json.loads(msgspec.json.encode(line)), json.loads(msgspec.json.encode(local))
            common = (said.keys() & listed.keys()) - {"hint"}
            assert {"not_before", "not_after", "renew_after", "fingerprint"} <= common
            assert {name: said[name] for name in common} == {name: listed[name] for name in common}
        assert [each.served for each in await service.certificates()] == [False, False]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fingerprint", "served", "told"), [(OF_AN_AUTHORITY.fingerprint, True, "the clock"), ("cd" * 32, False, None)]
)
def test_what_only_the_proxy_knows_of_the_one_it_serves_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: str, served: bool, told: str | None
) -> None:
    async def proxy(_folder: Folder) -> Running:
        return Running(certificate=Served(fingerprint, "the clock"))

    async def main() -> None:
        folder = locate({"FLM_HOME": str(tmp_path)})
        await record(folder)
        monkeypatch.setattr(certificates, "running_proxy", proxy)
        (public,) = await SecurityService(folder).certificates()
        assert (public.served, public.last_error) == (served, told)

    asyncio.run(main())


def test_none_is_served_over_plain_http(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            await record(proxy.folder)
            (public,) = await SecurityService(proxy.folder).certificates()
            assert not public.served

    asyncio.run(main())

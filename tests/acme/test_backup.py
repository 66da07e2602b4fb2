"""What was got from a CA outlives the machine: with a backup, another one goes on with account and certificate."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flm.services.backup import BackupService
from flm.store import sealed
from flm.store.sealed import Secret
from flm.tls.account_file import FILE
from tests.acme.test_proxy import proxy_of, started
from tests.runtime.harness import run
from tests.support.pebble import Ca

SECRET = Secret("passphrase", b"hunter2-and-some-more")


def test_another_machine_goes_on_with_account_and_certificate(
    ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "LOG_N", 10)

    async def main() -> None:
        one, two = proxy_of(ca, tmp_path / "one"), proxy_of(ca, tmp_path / "two")
        async with started(one):
            served = await one.served()
            await BackupService(one.folder).create(tmp_path / "backup", SECRET)  # while it runs
        accounts, orders = ca.accounts(), ca.orders()
        await BackupService(two.folder).restore(tmp_path / "backup", SECRET)
        async with started(two):
            assert await two.served() == served
        assert (ca.accounts(), ca.orders()) == (accounts, orders)
        # The account is of use too: what is missing is ordered with it.
        two.stored().unlink()
        async with started(two):
            assert await two.served() != served
        assert (ca.accounts(), ca.orders()) == (accounts, orders + 1)
        account = one.stored().with_name(FILE)
        assert await asyncio.to_thread(two.stored().with_name(FILE).read_bytes) == account.read_bytes()

    run(main)

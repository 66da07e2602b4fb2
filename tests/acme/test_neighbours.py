"""Two proxies at one CA, and a CA that is away when a renewal begins."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flm.services.security import SecurityService
from tests.acme.test_proxy import proxy_of, started
from tests.runtime.harness import run
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, answer, doing, dropped, passed

OTHER, ADDRESS = "other.flm.example", "127.0.0.2"


def test_two_folders_have_their_own_account_and_certificate_at_one_ca(ca: Ca, tmp_path: Path) -> None:
    """Side by side on one machine, each on its own address, as the DNS says."""

    async def main() -> None:
        accounts, issued = ca.accounts(), ca.issued()
        one = proxy_of(ca, tmp_path / "one")
        two = proxy_of(ca, tmp_path / "two", acme__domain=OTHER, proxy__bind=ADDRESS)
        two.host = ADDRESS
        ca.set_dns("add-a", host=f"{OTHER}.", addresses=[ADDRESS])
        try:
            async with started(one), started(two):
                first, second = await one.served(), await two.served(OTHER)
                assert first != second
                assert (ca.accounts(), ca.issued()) == (accounts + 2, issued + 2)
                keys = [json.loads((each.stored().parent / "account.json").read_text())["key"] for each in (one, two)]
                assert keys[0] != keys[1]
                two.stored().write_bytes(b"damaged")  # a renewal of one is none of the other's business
                await two.service.reload()
                async with asyncio.timeout(30):
                    while await two.served(OTHER) == second:
                        await asyncio.sleep(0.05)
                assert await one.served() == first
            assert (ca.accounts(), ca.issued()) == (accounts + 2, issued + 3)
        finally:
            ca.set_dns("clear-a", host=f"{OTHER}.")

    run(main)


def test_a_renewal_goes_on_when_a_ca_that_was_away_is_back(front: Front, ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        now = datetime.now(UTC)
        past = {"start": (now - timedelta(hours=2)).isoformat(), "end": (now - timedelta(hours=1)).isoformat()}
        said = answer(
            200,
            json.dumps({"suggestedWindow": past}).encode(),
            content_type="application/json",
            retry_after="21600",
        )
        front.script("renewal", doing(lambda: front.always("directory", dropped), said))
        async with started(proxy_of(ca, tmp_path, via=front)) as proxy:
            first = await proxy.served()
            service = SecurityService(proxy.folder)

            async def failures() -> int:
                (listed,) = await service.certificates()
                return listed.failures

            async with asyncio.timeout(60):
                while await failures() < 2:
                    assert await proxy.served() == first
                    await asyncio.sleep(0.2)
            handle = await proxy.handle()
            assert handle.certificate is not None
            assert handle.certificate.fingerprint == first
            assert "no certificate for" in (handle.last_error or "")
            assert handle.certificate.next_attempt_at is not None
            front.always("directory", passed)
            async with asyncio.timeout(90):
                while await proxy.served() == first:
                    await asyncio.sleep(0.2)
            async with asyncio.timeout(10):
                while (handle := await proxy.handle()).last_error is not None:
                    await asyncio.sleep(0.05)
            assert handle.certificate is not None
            assert handle.certificate.next_attempt_at is None
            assert await failures() == 0

    run(main)

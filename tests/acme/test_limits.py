"""What a real CA is asked by a proxy that is started again and again: no more than CAs allow, and then nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.services.security import SecurityService
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.tls.allowance import DAMAGED_FILES, FAILED_VALIDATIONS
from flm.tls.files import read_pair
from tests.acme.harness import NAME
from tests.acme.test_killed import AFTER, at, gone, killer
from tests.acme.test_proxy import proxy_of, started
from tests.runtime.harness import run
from tests.support.pebble import Ca
from tests.support.ports import free_port
from tests.support.scripted_ca import Front

MOST = FAILED_VALIDATIONS.most
HELD = f"{MOST} validations of {NAME} have failed at .* within an hour.* not before .*, however often it is started"


async def an_hour_later(folder: Folder) -> None:
    """As if what is noted had been noted an hour ago."""
    async with await open_security(folder) as database, database.transaction() as transaction:
        await transaction.change("UPDATE allowances SET at = at - 3600, up = up - 3600")


def test_a_start_in_a_loop_has_five_validations_fail_and_asks_nothing_then(
    calm_front: Front, calm_ca: Ca, tmp_path: Path
) -> None:
    async def main() -> None:
        closed = proxy_of(calm_ca, tmp_path, via=calm_front, proxy__port=str(free_port()))
        for _ in range(3):
            with pytest.raises(CommandError, match="the CA could not see that you control"):
                await closed.start()
        asked = len(calm_front.seen)
        for _ in range(3):
            with pytest.raises(CommandError, match=HELD):
                await closed.start()
        assert calm_front.count("challenge", 200) == MOST
        assert len(calm_front.seen) == asked
        mended = proxy_of(calm_ca, tmp_path, via=calm_front)
        with pytest.raises(CommandError, match=HELD):
            await mended.start()
        (listed,) = await SecurityService(mended.folder).certificates()
        assert "the CA could not see" in (listed.last_error or "")
        assert listed.next_attempt_at is not None
        async with started(proxy_of(calm_ca, tmp_path, via=calm_front, proxy__fallback="dev-selfsigned")) as fallen:
            handle = await fallen.handle()
            assert handle.mode == "dev-selfsigned"
            assert "not before" in (handle.last_error or "")
            assert len(calm_front.seen) == asked
        await an_hour_later(mended.folder)
        async with started(mended):
            assert await mended.served()

    run(main)


def test_kills_hide_no_validation_that_failed(calm_front: Front, calm_ca: Ca, tmp_path: Path) -> None:
    """As a service manager whose patience is over ends each start, when the CA has just been told to look."""

    async def main() -> None:
        proxy = proxy_of(calm_ca, tmp_path, via=calm_front, proxy__port=str(free_port()))
        for number in range(MOST):
            killed: list[int] = []
            calm_front.script("challenge", at(AFTER, killer(proxy, killed)))
            with pytest.raises(CommandError):
                await proxy.start()
            assert len(killed) == 1, f"start {number} had nothing looked at"
            await gone(killed)
        with pytest.raises(CommandError, match=HELD):
            await proxy.start()
        assert calm_front.count("challenge", 200) == MOST

    run(main)


def test_validations_that_go_well_are_none_of_them(calm_front: Front, calm_ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        proxy = proxy_of(calm_ca, tmp_path, via=calm_front)
        for _ in range(MOST + 1):
            async with started(proxy):
                assert await proxy.served()
            (proxy.folder.certs / "acme").rename(tmp_path / f"away {calm_front.count('challenge')}")
        assert calm_front.count("challenge", 200) == MOST + 1

    run(main)


def test_a_file_that_is_damaged_again_and_again_costs_two_certificates_and_no_more(calm_ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        issued = calm_ca.issued()
        async with started(proxy_of(calm_ca, tmp_path)) as proxy:
            served = await proxy.served()
            for number in range(DAMAGED_FILES.most + 2):
                whole, before = proxy.stored().read_bytes(), served
                proxy.stored().write_bytes(whole[: len(whole) // 2])
                await proxy.service.reload()
                renewed = number < DAMAGED_FILES.most
                async with asyncio.timeout(30):
                    while renewed and served == before:
                        served = await proxy.served()  # which verifies it: what was cut is never served
                        await asyncio.sleep(0.05)
                    while not renewed and proxy.stored().read_bytes() != whole:
                        await asyncio.sleep(0.05)
                stored = read_pair(proxy.stored())
                assert stored is not None
                assert stored.fingerprint == served == await proxy.served()
                assert (served == before) is not renewed
            async with asyncio.timeout(10):
                while "find out what writes to that file" not in ((await proxy.handle()).last_error or ""):
                    await asyncio.sleep(0.05)
        assert calm_ca.issued() == issued + 1 + DAMAGED_FILES.most

    run(main)

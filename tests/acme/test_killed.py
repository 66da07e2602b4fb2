"""kill -9 of the supervisor at every step of an issuance and of a renewal, and in between: then started again.

Never a half-written certificate, never a second account, never a served mismatch.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.runtime import instance
from flm.services.config import ConfigService
from flm.tls.files import read_pair
from tests.acme.harness import NAME
from tests.acme.test_proxy import Proxy, proxy_of, started
from tests.runtime.harness import alive, run, until
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, Reaction, afterwards, doing, dropped

STEPS = ("directory", "account", "order", "challenge", "finalize", "certificate")
BEFORE, AFTER = "before", "after"
SECOND = "second.flm.example"


def killer(proxy: Proxy, killed: list[int]) -> Callable[[], None]:
    """Ends the supervisor as the kernel would; the CA is what calls it, so the step is known."""

    def kill() -> None:
        found = instance.read(proxy.folder.run)
        assert found is not None
        killed.append(found.pid)
        os.kill(found.pid, signal.SIGKILL)

    return kill


def at(moment: str, kill: Callable[[], None]) -> Reaction:
    """Before the CA has heard the request, or after it has done what was asked."""
    return doing(kill, dropped) if moment == BEFORE else afterwards(kill)


async def gone(pids: list[int]) -> None:
    """Also the child, which sees that nobody is there any more, and the lock that it may have had."""
    await until(lambda: not any(alive(pid) for pid in pids), 10)
    await until(lambda: not children_of(pids), 10)


def children_of(pids: list[int]) -> list[str]:
    """Processes of an attempt whose supervisor is dead: init is their parent then, so their command tells them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"flm.tls.attempt" in path.read_bytes() and path.with_name("stat").read_text().split()[3] == "1":
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def nothing_is_broken(proxy: Proxy) -> None:
    """Every certificate that is there can be read, and fits its key."""
    for path in (proxy.folder.certs / "acme").rglob("current.pem"):
        assert read_pair(path) is not None
    for path in (proxy.folder.certs / "acme").rglob("*"):
        assert path.is_dir() or path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("moment", [BEFORE, AFTER])
@pytest.mark.parametrize("step", STEPS)
def test_an_issuance_that_is_killed_is_done_by_the_next_start(
    calm_front: Front, calm_ca: Ca, tmp_path: Path, step: str, moment: str
) -> None:
    async def main() -> None:
        accounts = calm_ca.accounts()
        proxy, killed = proxy_of(calm_ca, tmp_path, via=calm_front), list[int]()
        calm_front.script(step, at(moment, killer(proxy, killed)))
        with pytest.raises(CommandError):
            await proxy.start()
        assert killed
        await gone(killed)
        nothing_is_broken(proxy)
        async with started(proxy):
            stored = read_pair(proxy.stored())
            assert stored is not None
            assert await proxy.served() == stored.fingerprint
        assert calm_ca.accounts() == accounts + 1

    run(main)


@pytest.mark.parametrize("moment", [BEFORE, AFTER])
@pytest.mark.parametrize("step", ["order", "finalize", "certificate"])
def test_a_renewal_that_is_killed_costs_nothing(
    calm_front: Front, calm_ca: Ca, tmp_path: Path, step: str, moment: str
) -> None:
    async def main() -> None:
        accounts = calm_ca.accounts()
        proxy, killed = proxy_of(calm_ca, tmp_path, via=calm_front), list[int]()
        del proxy.flags["acme.domain"]
        service = ConfigService(proxy.folder, {})
        await service.set("acme.domain", NAME)
        async with started(proxy):
            first = await proxy.served()
            calm_front.script(step, at(moment, killer(proxy, killed)))
            await service.set("acme.domain", f"{NAME}, {SECOND}")
            handle = await proxy.service.reload()  # which has the certificate renewed in the background
            await until(lambda: bool(killed), 20)
            await gone([*killed, *handle.worker_pids])
        nothing_is_broken(proxy)
        stored = read_pair(proxy.stored())
        assert stored is not None
        assert stored.fingerprint == first
        async with started(proxy):
            assert await proxy.served(SECOND) == await proxy.served(NAME) != first
        assert calm_ca.accounts() == accounts + 1

    run(main)


def test_kills_at_any_moment(calm_ca: Ca, tmp_path: Path) -> None:
    """Many of them, from the beginning of a start to behind its end: between the CA's steps, and while files are
    written."""

    async def main() -> None:
        accounts = calm_ca.accounts()
        proxy = proxy_of(calm_ca, tmp_path)
        delay = 0.2
        while True:
            starting = asyncio.create_task(proxy.start())
            await asyncio.wait([starting], timeout=delay)
            finished = starting.done() and starting.exception() is None
            found = instance.read(proxy.folder.run)
            pids = [found.pid] if found is not None and alive(found.pid) else []
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await asyncio.gather(starting, return_exceptions=True)
            await gone(pids)
            nothing_is_broken(proxy)
            if finished:
                break
            delay += 0.15
        await until(lambda: not instance.is_locked(proxy.folder.run), 10)
        async with started(proxy):
            stored = read_pair(proxy.stored())
            assert stored is not None
            assert await proxy.served() == stored.fingerprint
        assert calm_ca.accounts() == accounts + 1

    run(main)

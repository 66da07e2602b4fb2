"""A policy in a running proxy with real workers: in force for the very next request, on every worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.security import SecurityService
from flm.store import policy
from flm.store.database import open_security
from tests.runtime.harness import Running, get, prepare, run, running

WORKER = "flm.runtime.worker"
SHUT = b'{"ip_whitelist":["192.0.2.0/24"]}'


async def statuses(proxy: Running, count: int = 8) -> set[bytes]:
    """The statuses of so many requests at once, each on a connection of its own, so that every worker gets some."""
    answers = await asyncio.gather(*(get(proxy.port, "/health") for _ in range(count)))
    return {answer.split(b" ", 2)[1] for answer in answers}


def test_a_policy_holds_for_the_next_request_of_every_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            for _ in range(3):
                assert await statuses(proxy) == {b"200"}
                await service.set_policy(SHUT)
                assert await statuses(proxy) == {b"403"}
                with pytest.raises(CommandError):
                    await service.set_policy(b'{"ip_whitelist":null}')
                assert await statuses(proxy) == {b"403"}
                await service.set_policy(b"{}")

    run(main)


def test_a_policy_that_nobody_can_read_any_more_opens_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            await service.set_policy(SHUT)
            async with await open_security(proxy.folder) as database, database.transaction() as transaction:
                await policy.put(transaction, b"{}}", 0)
            await service.create_key("any")  # everything is read anew
            assert await statuses(proxy) == {b"403"}
            assert "cannot be read" in ((await proxy.handle()).last_error or "")
            workers = (await proxy.handle()).worker_pids
            with pytest.raises(CommandError, match="cannot be read") as refused:
                await proxy.service.reload()
            assert refused.value.code is CommandCode.POLICY_INVALID
            with pytest.raises(CommandError, match="cannot be read"):
                await proxy.service.restart()
            assert (await proxy.handle()).worker_pids == workers
            assert await statuses(proxy) == {b"403"}
            await service.set_policy(b"{}")
            assert await statuses(proxy) == {b"200"}
            await proxy.service.reload()
            assert (await proxy.handle()).last_error is None

    run(main)


def test_a_proxy_that_shuts_its_own_machine_out_starts_reloads_and_restarts(tmp_path: Path) -> None:
    async def main() -> None:
        first = prepare(tmp_path, WORKER, engine__discover=False)
        await SecurityService(first.folder).set_policy(SHUT)
        async with running(tmp_path, WORKER, engine__discover=False) as proxy:
            assert await statuses(proxy) == {b"403"}
            await proxy.service.reload()
            await proxy.service.restart()
            assert await statuses(proxy) == {b"403"}

    run(main)

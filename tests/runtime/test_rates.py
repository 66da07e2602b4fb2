"""Limits over several workers: exact, and kept whatever dies or is replaced. Real processes, raw sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from flm.services.rates import Bucket
from flm.services.security import SecurityService
from tests.runtime.harness import Running, alive, prepare, run, running, until

WORKER = "flm.runtime.worker"
AT_ONCE = 40  # connections
REQUESTS = 400
BURST = 100
SLOW = b'{"rate_limit":{"rpm":1,"burst":100}}'  # no token comes back while a test lasts


class Caller:
    """One key, and what its requests were answered with."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key

    @classmethod
    async def of(cls, proxy: Running) -> Caller:
        return cls(proxy.port, (await SecurityService(proxy.folder).create_key("test")).key)

    async def one(self, **headers: str) -> tuple[int, dict[str, str]]:
        """The status and headers of one request, on a connection of its own."""
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self._key}\r\n{more}"
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(head.encode() + b"connection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
        first, *lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def many(self, count: int = REQUESTS) -> Counter[int]:
        """Statuses of so many requests, AT_ONCE of them at a time."""
        seen: Counter[int] = Counter()
        left = iter(range(count))

        async def go_on() -> None:
            for _ in left:
                seen[(await self.one())[0]] += 1

        await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
        return seen


async def rows(proxy: Running, kind: str) -> list[Bucket]:
    return [row for row in await SecurityService(proxy.folder).rate_limits() if row.kind == kind]


def test_four_workers_grant_what_one_would(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=4, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            await service.set_policy(SLOW)
            caller, other = await Caller.of(proxy), await Caller.of(proxy)
            assert await caller.many() == {200: BURST, 429: REQUESTS - BURST}
            status, headers = await caller.one()
            assert (status, headers["x-ratelimit-limit-requests"]) == (429, "100")
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert 1 <= int(headers["retry-after"]) <= 60
            assert (await other.one())[0] == 200
            left = {row.subject: (row.limit_rpm, row.burst, row.remaining) for row in await rows(proxy, "key")}
            first, second = (key.id for key in await service.list_keys())
            assert left == {first: (1, 100, 0), second: (1, 100, 99)}

    run(main)


def test_the_rate_comes_back_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=4, engine__discover=False) as proxy:
            await SecurityService(proxy.folder).set_policy(b'{"rate_limit":{"rpm":600,"burst":20}}')
            caller = await Caller.of(proxy)
            began = time.monotonic()
            seen = await caller.many()
            elapsed = time.monotonic() - began
            assert 20 <= seen[200] <= 20 + elapsed * 10 + 1
            assert seen[200] + seen[429] == REQUESTS

    run(main)


async def kill_a_worker(proxy: Running) -> None:
    victim = (await proxy.handle()).worker_pids[0]
    os.kill(victim, signal.SIGKILL)
    await until(lambda: not alive(victim), 5)
    async with asyncio.timeout(20):
        while len(set((await proxy.handle()).worker_pids) - {victim}) < 2:
            await asyncio.sleep(0.05)


async def restart(proxy: Running) -> None:
    await proxy.service.restart()


async def reload(proxy: Running) -> None:
    await proxy.service.reload()


async def kill_the_supervisor(proxy: Running) -> None:
    handle = await proxy.handle()
    os.kill(handle.pid, signal.SIGKILL)
    await until(lambda: not any(map(alive, handle.worker_pids)), 10)
    await proxy.start()


async def stop_and_start(proxy: Running) -> None:
    await proxy.service.stop()
    await proxy.start()


@pytest.mark.parametrize("shake", [kill_a_worker, restart, reload, kill_the_supervisor, stop_and_start])
def test_nothing_gives_a_fresh_burst(shake: object, tmp_path: Path) -> None:
    assert callable(shake)

    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
            await SecurityService(proxy.folder).set_policy(SLOW)
            caller = await Caller.of(proxy)
            assert await caller.many(60) == {200: 60}
            await shake(proxy)
            assert await caller.many(100) == {200: 40, 429: 60}

    run(main)


def test_clients_behind_a_proxy_are_counted_apart(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
            policy = b'{"ip_rate_limit":{"rpm":1,"burst":2},"trusted_proxies":["127.0.0.1"]}'
            await SecurityService(proxy.folder).set_policy(policy)
            caller = await Caller.of(proxy)
            for chain in ("192.0.2.1", "6.6.6.6, 192.0.2.2", "2001:db8:1:2::1"):
                assert [(await caller.one(x_forwarded_for=chain))[0] for _ in range(3)] == [200, 200, 429]
            assert (await caller.one(x_forwarded_for="2001:db8:1:2:9::"))[0] == 429
            assert (await caller.one(forwarded="for=192.0.2.1"))[0] == 200
            seen = {row.subject: row.remaining for row in await rows(proxy, "ip")}
            assert seen == {"192.0.2.1": 0, "192.0.2.2": 0, "2001:db8:1:2::/64": 0, "127.0.0.1": 1}

    run(main)


def test_limits_are_shown_without_a_proxy_too(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        service = SecurityService(proxy.folder)
        assert await service.rate_limits() == []
        await service.set_policy(b'{"rate_limit":{"rpm":60,"burst":9},"global_rate_limit":{"rpm":5}}')
        key = await service.create_key("one")
        await service.revoke_key((await service.create_key("gone")).id)
        assert await service.rate_limits() == [
            Bucket("global", "all", 5, 5, 5, 0.0),
            Bucket("key", key.id, 60, 9, 9, 0.0),
        ]

    run(main)

"""A whole proxy while somebody makes it hard: clients that race, a stopped supervisor, bodies without end.

Raw sockets with keep-alive, so that no client library hides what happens.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flm.services.audit import AuditService, Query
from flm.services.security import SecurityService
from tests.runtime.harness import Running, run, running

WORKER = "flm.runtime.worker"
CLIENTS = 32
BATCH = 50  # requests in one segment
MORE_THAN_A_RING = 10_000  # it holds some thousands of rows
UNLIMITED = b'{"auth_failure_limit":{"rpm":0}}'
CLOSED = b'{"auth_failure_limit":{"rpm":0},"ip_whitelist":["192.0.2.1"]}'


class Wire:
    """One kept connection of one key."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._request = f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n".encode()

    @classmethod
    async def to(cls, port: int, key: str) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port), key)

    async def many(self, count: int) -> Counter[int]:
        """Statuses of so many requests, BATCH of them in one segment."""
        seen: Counter[int] = Counter()
        for _ in range(count // BATCH):
            self._writer.write(self._request * BATCH)
            for _ in range(BATCH):
                seen[await self._status()] += 1
        return seen

    async def one(self) -> int:
        self._writer.write(self._request)
        return await self._status()

    async def _status(self) -> int:
        head = await self._reader.readuntil(b"\r\n\r\n")
        await self._reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
        return int(head[9:12])

    def close(self) -> None:
        self._writer.close()


async def revoke(service: SecurityService, key_id: str) -> None:
    await service.revoke_key(key_id)


async def rotate(service: SecurityService, key_id: str) -> None:
    await service.rotate_key(key_id)


async def shut(service: SecurityService, _key_id: str) -> None:
    await service.set_policy(CLOSED)


@pytest.mark.parametrize(("change", "refusal"), [(revoke, 401), (rotate, 401), (shut, 403)])
def test_no_request_that_begins_after_a_command_has_returned_gets_in(
    tmp_path: Path, change: Callable[[SecurityService, str], Awaitable[None]], refusal: int
) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=3, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            for _ in range(3):
                await service.set_policy(UNLIMITED)
                made = await service.create_key("racer")
                before, after = await race(proxy, made.key, change(service, made.id))
                assert before[200] > 0
                assert set(before) <= {200, refusal}
                assert set(after) == {refusal}

    run(main)


async def race(proxy: Running, key: str, change: Awaitable[None]) -> tuple[Counter[int], Counter[int]]:
    """What requests of CLIENTS clients were answered that began before a change was in force, and after."""
    changed, seen = asyncio.Event(), (Counter[int](), Counter[int]())
    going = asyncio.Semaphore(0)

    async def client() -> None:
        wire = await Wire.to(proxy.port, key)
        left = 20  # requests after the change
        while left:
            left -= changed.is_set()
            seen[changed.is_set()][await wire.one()] += 1
            going.release()
        wire.close()

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    for _ in range(3 * CLIENTS):
        await going.acquire()
    await change
    changed.set()
    await asyncio.gather(*clients)
    return seen


def test_rows_a_stopped_supervisor_cannot_store_are_counted_and_all_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, engine__discover=False, log__level="warning") as proxy:
            key = (await SecurityService(proxy.folder).create_key("k")).key
            wire = await Wire.to(proxy.port, key)
            assert await wire.one() == 200
            log = AuditService(proxy.folder)
            known = len(await log.entries(Query(), 100_000))
            pid = (await proxy.handle()).pid
            os.kill(pid, signal.SIGSTOP)
            try:
                assert await wire.many(MORE_THAN_A_RING) == {200: MORE_THAN_A_RING}
            finally:
                os.kill(pid, signal.SIGCONT)
            stored = len(await log.entries(Query(), 100_000)) - known
            audit = (await proxy.handle()).audit
            assert audit is not None
            assert audit.rows_dropped > 0
            assert stored + audit.rows_dropped == MORE_THAN_A_RING
            assert f"{audit.rows_dropped} rows of the audit log were dropped" in proxy.log()
            assert await wire.many(BATCH) == {200: BATCH}
            assert len(await log.entries(Query(), 100_000)) == known + stored + BATCH
            wire.close()

    run(main)


@pytest.mark.parametrize("kind", ["rate_limit", "ip_rate_limit", "global_rate_limit"])
def test_bodies_that_dribble_are_charged_once_and_take_nothing_from_others(tmp_path: Path, kind: str) -> None:
    slow = 4

    async def dribble(port: int, key: str, begun: asyncio.Semaphore) -> bytes:
        """All that comes back to a client which sends its body byte by byte until it is cut."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: 1000\r\n\r\n".encode())
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b" ")
            begun.release()
            await asyncio.wait([answer], timeout=0.1)
        writer.close()
        return await answer

    async def main() -> None:
        settings = {"proxy__body_total_timeout_seconds": 1, "proxy__max_in_flight": slow + 1}
        async with running(tmp_path, WORKER, engine__discover=False, **settings) as proxy:
            service = SecurityService(proxy.folder)
            await service.set_policy(b'{"%s":{"rpm":1,"burst":20}}' % kind.encode())
            key, other = (await service.create_key("slow")).key, await service.create_key("other")
            begun = asyncio.Semaphore(0)
            clients = [asyncio.create_task(dribble(proxy.port, key, begun)) for _ in range(slow)]
            strangers = slow if kind == "rate_limit" else 0  # they are cut after DRAIN_SECONDS and LINGER_SECONDS
            clients += [asyncio.create_task(dribble(proxy.port, "flm_bad", begun)) for _ in range(strangers)]
            for _ in range(2 * len(clients)):
                await begun.acquire()
            wire = await Wire.to(proxy.port, other.key)
            assert await wire.one() == 200
            wire.close()
            answers = await asyncio.gather(*clients)
            assert sorted(answer[9:12] for answer in answers) == [b"401"] * strangers + [b"408"] * slow
            left = sorted(row.remaining for row in await service.rate_limits() if row.kind != "auth_failure")
            assert left == ([20 - slow, 19] if kind == "rate_limit" else [20 - slow - 1])
            async with asyncio.timeout(5):
                while (await proxy.handle()).in_flight:
                    await asyncio.sleep(0.01)

    run(main)

"""Engines that break when they are cut: what nobody waits for is read on, for a while, a few at a time, then cut."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from flm.engines.base import UpstreamRequest
from flm.errors import ErrorKind
from flm.upstream.pool import Pool
from tests.support.engine import Peer, ScriptedEngine, Step, answer, deaf, mark, receive, rst, say, serve, stall, until
from tests.upstream.conftest import Run
from tests.upstream.test_pool import ASK, OK, ask, failure, open_pool

LONG = 60.0  # seconds; longer than any test may take
HALF, REST = OK[:-3], OK[-3:]


async def leave_before_the_head(pool: Pool, engine: ScriptedEngine, index: int = 0) -> None:
    """Ask, and go away when the engine has the request."""
    asking = asyncio.ensure_future(pool.send(ASK))
    await (await engine.peer(index)).stalled.wait()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


def pausing(going_on: asyncio.Event) -> Step:
    async def step(peer: Peer) -> None:
        peer.stalled.set()
        await going_on.wait()

    return step


@pytest.mark.parametrize("before", [b"", HALF], ids=["before the head", "in the middle"])
def test_what_nobody_waits_for_is_read_to_its_end_and_its_connection_used_again(run: Run, before: bytes) -> None:
    async def main() -> None:
        going_on = asyncio.Event()
        script = [receive(), say(before), pausing(going_on), say(OK[len(before) :]), serve({ASK.path: OK})]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG, max_in_flight=1)
            if before:
                response = await pool.send(ASK)
                response.leave()
                response.leave()
                response.abort()
            else:
                await leave_before_the_head(pool, engine)
            assert pool.in_flight == 1
            assert (await failure(pool)).kind is ErrorKind.OVERLOADED
            assert not engine.peers[0].closed.is_set()
            going_on.set()
            while pool.in_flight:
                await asyncio.sleep(0)
            assert await ask(pool) == b"hello"
            assert (len(engine.peers), engine.errors) == (1, [])
            await pool.close()

    run(main())


def test_cancelling_inside_the_with_block_leaves_and_any_error_aborts(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(HALF), stall()]) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG)
            with contextlib.suppress(asyncio.CancelledError), await pool.send(ASK):
                raise asyncio.CancelledError
            assert pool.in_flight == 1
            with contextlib.suppress(ValueError), await pool.send(ASK):
                raise ValueError
            assert pool.in_flight == 1
            await engine.peers[1].closed.wait()
            assert not engine.peers[0].closed.is_set()
            await pool.close()
            await engine.peers[0].closed.wait()
            assert pool.in_flight == 0

    run(main())


@pytest.mark.parametrize("before", [b"", HALF], ids=["before the head", "in the middle"])
def test_a_drain_that_takes_too_long_is_cut(run: Run, before: bytes) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(before), stall()]) as engine:
            pool = open_pool(engine.url, drain_seconds=0.05)
            if before:
                (await pool.send(ASK)).leave()
            else:
                await leave_before_the_head(pool, engine)
            assert pool.in_flight == 1
            await engine.peers[0].closed.wait()
            assert pool.in_flight == 0

    run(main())


def test_only_so_many_are_drained_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.upstream.draining.MAX_DRAINS", 2)

    async def main() -> None:
        async with ScriptedEngine([receive(), stall()]) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG)
            for index in range(3):
                await leave_before_the_head(pool, engine, index)
            await engine.peers[2].closed.wait()
            assert pool.in_flight == 2
            assert not any(peer.closed.is_set() for peer in engine.peers[:2])
            await pool.close(running=True)
            for peer in engine.peers:
                await peer.closed.wait()

    run(main())


def test_a_closed_pool_drains_nothing(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(HALF), stall()]) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG)
            response = await pool.send(ASK)
            await pool.close()
            response.leave()
            await engine.peers[0].closed.wait()
            assert pool.in_flight == 0

    run(main())


def test_an_engine_without_the_whole_request_has_not_begun_and_is_cut(run: Run) -> None:
    async def main() -> None:
        large = UpstreamRequest(ASK.path, b"x" * 50_000_000)
        async with ScriptedEngine([deaf()]) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG)
            asking = asyncio.ensure_future(pool.send(large))
            await (await engine.peer(0)).stalled.wait()
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_what_goes_wrong_in_a_drain_is_nobodys_failure(run: Run) -> None:
    async def main() -> None:
        failed: list[Exception] = []
        going_on = asyncio.Event()
        async with ScriptedEngine([receive(), pausing(going_on), rst()]) as engine:
            pool = open_pool(engine.url, drain_seconds=LONG, on_failure=failed.append)
            await leave_before_the_head(pool, engine)
            going_on.set()
            while pool.in_flight:
                await asyncio.sleep(0)
            assert failed == []
            await pool.close()

    run(main())


def test_without_a_drain_time_the_engine_sees_the_end_at_once(run: Run) -> None:
    async def main() -> None:
        asked = asyncio.Event()
        async with ScriptedEngine(
            [receive(), mark(asked), until(asked), say(answer(200, b"x")[:-1]), stall()]
        ) as engine:
            pool = open_pool(engine.url)
            (await pool.send(ASK)).leave()
            assert pool.in_flight == 0
            await engine.peers[0].closed.wait()

    run(main())

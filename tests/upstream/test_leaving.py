"""A caller who leaves, at whatever moment, is never the engine's failure, and leaves nothing behind.

The moments are counted in turns of the event loop: a request is begun, the loop takes so many turns, the caller leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flm.engines.base import UpstreamRequest
from flm.errors import RequestError
from flm.upstream.pool import Pool, Timeouts
from flm.upstream.tls import authorities
from tests.support.certificates import Authority
from tests.support.engine import ScriptedEngine, Step, chunked, receive, say, stall
from tests.upstream.conftest import Run
from tests.upstream.test_tls import tls_engine

MOMENTS = 40  # an exchange on loopback is over well before
PATIENT = Timeouts(connect=60, first_byte=60, between_bytes=60, total=0)
PIECES = [b"data: %d\n\n" % number for number in range(4)]
ASK = UpstreamRequest("/v1/chat/completions", b'{"model":"m"}')
LARGE = UpstreamRequest("/v1/chat/completions", bytes(600_000))  # written in slices


def open_pool(url: str, failures: list[RequestError], drain: float = 0, ca: str | None = None) -> Pool:
    return Pool(
        url,
        credential=None,
        ca=ca,
        idle_seconds=60,
        timeouts=PATIENT,
        max_in_flight=0,
        drain_seconds=drain,
        on_failure=failures.append,
    )


async def ask(pool: Pool, request: UpstreamRequest) -> None:
    """A whole exchange, as a request makes it."""
    with await pool.send(request) as response:
        while await response.read():
            pass
        response.release()


async def upload(pool: Pool) -> None:
    """One whose body comes piece by piece, as the pass-through makes it."""
    under_way = await pool.upload("POST", "/x", ((b"content-type", b"text/plain"),), None)

    async def send() -> None:
        for _ in range(5):
            await under_way.write(b"x" * 100)
            await asyncio.sleep(0)
        await under_way.end()

    sending = asyncio.create_task(send())
    try:
        with await under_way.response() as response:
            while await response.read():
                pass
            response.release()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def leave_after(turns: int, exchange: Awaitable[None]) -> bool:
    """Begin, let the loop turn, leave; whether there was still something to leave."""
    task = asyncio.ensure_future(exchange)
    for _ in range(turns):
        await asyncio.sleep(0)
    left = not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and task.exception() is not None:
        raise task.exception()  # type: ignore[misc]
    return left


async def at_every_moment(
    pool: Pool, failures: list[RequestError], exchange: Callable[[], Awaitable[None]], least: int
) -> None:
    left = 0
    for turns in range(MOMENTS):
        left += await leave_after(turns, exchange())
        assert failures == [], turns
        await settled(pool)
    assert left >= least, "the moments lie inside the exchange"
    await pool.close(running=True)
    assert (pool.in_flight, failures) == (0, [])


async def settled(pool: Pool) -> None:
    while pool.in_flight:  # a drain may go on
        await asyncio.sleep(0)


def streams(*first: Step) -> list[Step]:
    """Answer as long as somebody asks, piece by piece."""

    async def step(peer: object) -> None:
        while True:
            for each in [*first, *map(say, [STREAM_HEAD, *map(_chunk, PIECES), b"0\r\n\r\n"])]:
                await each(peer)  # type: ignore[arg-type]
                await asyncio.sleep(0)

    return [step]


STREAM_HEAD = chunked(200, [])[:-5]


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


@pytest.mark.parametrize("drain", [0, 5], ids=["cut", "drained"])
@pytest.mark.parametrize("request_", [ASK, LARGE], ids=["small", "in slices"])
def test_a_caller_who_leaves(run: Run, request_: UpstreamRequest, drain: float) -> None:
    async def main() -> None:
        failures: list[RequestError] = []
        async with ScriptedEngine(streams(receive())) as engine:
            pool = open_pool(engine.url, failures, drain)
            await at_every_moment(pool, failures, lambda: ask(pool, request_), least=5)

    run(main())


def test_a_caller_who_leaves_while_the_engine_thinks(run: Run) -> None:
    async def main() -> None:
        failures: list[RequestError] = []
        async with ScriptedEngine([receive(), stall()]) as engine:
            pool = open_pool(engine.url, failures)
            await at_every_moment(pool, failures, lambda: ask(pool, ASK), least=MOMENTS)

    run(main())


def test_a_caller_who_leaves_where_nothing_accepts(run: Run) -> None:
    """While the connection is being made: a name with addresses that swallow packets would be the same."""

    async def main() -> None:
        failures: list[RequestError] = []
        async with ScriptedEngine([stall()]) as engine:
            pool = open_pool(engine.url.replace("http:", "https:"), failures)  # its handshake never ends
            await at_every_moment(pool, failures, lambda: ask(pool, ASK), least=MOMENTS)

    run(main())


def test_a_caller_who_leaves_in_the_middle_of_a_body(run: Run) -> None:
    async def whole(peer: object) -> None:
        while await peer.receive_some():  # type: ignore[attr-defined]
            if peer.received.endswith(b"0\r\n\r\n"):  # type: ignore[attr-defined]
                await say(chunked(200, PIECES))(peer)  # type: ignore[arg-type]

    async def main() -> None:
        failures: list[RequestError] = []
        async with ScriptedEngine([whole]) as engine:
            pool = open_pool(engine.url, failures)
            await at_every_moment(pool, failures, lambda: upload(pool), least=5)
            assert all(not peer.received.endswith(b"0\r\n\r\n") or peer.sent for peer in engine.peers)

    run(main())


def test_a_caller_who_leaves_an_engine_behind_tls(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "CA")
    certificate = authority.issue("DNS:localhost")

    async def main() -> None:
        failures: list[RequestError] = []
        async with tls_engine(certificate, chunked(200, PIECES)) as engine:
            pool = open_pool(f"https://localhost:{engine.port}", failures, ca=authorities(authority.pem))
            await at_every_moment(pool, failures, lambda: ask(pool, UpstreamRequest("/", b"", "GET")), least=5)

    run(main())


def test_the_moments_would_show_a_failure(run: Run) -> None:
    """The control: an engine that really fails is told of."""

    async def main() -> None:
        failures: list[RequestError] = []
        async with ScriptedEngine([receive(), say(STREAM_HEAD)]) as engine:
            pool = open_pool(engine.url, failures)
            with pytest.raises(RequestError):
                await ask(pool, ASK)
            assert len(failures) == 1
            await pool.close()

    run(main())

"""What one exchange with an engine costs on a warm connection: request out, answer in, connection back to the pool.

The engine is a trivial protocol on the same loop, so its own share is in the figures; `test_engine_alone` measures the
same round trip with nothing of FLM on the asking side, and the difference is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from flm.engines.base import UpstreamRequest
from flm.upstream.pool import Pool, Timeouts

BATCH = 200  # exchanges per measured round, so that starting the loop does not count
TIMEOUTS = Timeouts(connect=3, first_byte=600, between_bytes=300)
REQUEST = UpstreamRequest("/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hello"}]}' * 4)
HEAD = b"HTTP/1.1 200 OK\r\nserver: trivial\r\ncontent-type: application/json\r\n"
EVENT = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
WHOLE = HEAD + b"content-length: 700\r\n\r\n" + b"x" * 700
STREAM = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(EVENT), EVENT) * 50 + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """Answers every segment it gets with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer)  # type: ignore[attr-defined]


class Asker(asyncio.Protocol):
    """The least that can ask: writes a request, waits until as many bytes have come as an answer has."""

    def __init__(self, size: int) -> None:
        self.size = size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if self.missing == 0:
            self.done.set_result(None)

    async def ask(self, request: bytes) -> None:
        self.missing = self.size
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        await self.done


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


def measure(
    benchmark: BenchmarkFixture,
    loop: asyncio.AbstractEventLoop,
    one: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    async def batch() -> None:
        for _ in range(BATCH):
            await one()

    benchmark.extra_info["exchanges per round"] = BATCH
    benchmark.pedantic(lambda: loop.run_until_complete(batch()), rounds=30, warmup_rounds=3)
    benchmark.extra_info["microseconds per exchange"] = round(benchmark.stats.stats.median / BATCH * 1e6, 1)


async def listen(loop: asyncio.AbstractEventLoop, answer: bytes) -> tuple[asyncio.Server, int]:
    server = await loop.create_server(lambda: Engine(answer), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("answer", [WHOLE, STREAM], ids=["whole", "stream of 50 events"])
def test_exchange(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, answer: bytes) -> None:
    server, port = loop.run_until_complete(listen(loop, answer))
    pool = Pool(f"http://127.0.0.1:{port}", credential="token", idle_seconds=5, timeouts=TIMEOUTS, max_in_flight=0)

    async def one() -> None:
        response = await pool.send(REQUEST)
        while await response.read():
            pass
        response.release()

    measure(benchmark, loop, one)
    assert pool.idle == 1  # one connection carried them all
    loop.run_until_complete(pool.close())
    server.close()
    loop.run_until_complete(server.wait_closed())


@pytest.mark.parametrize("answer", [WHOLE, STREAM], ids=["whole", "stream of 50 events"])
def test_engine_alone(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, answer: bytes) -> None:
    server, port = loop.run_until_complete(listen(loop, answer))
    transport, asker = loop.run_until_complete(loop.create_connection(lambda: Asker(len(answer)), "127.0.0.1", port))
    request = b"POST / HTTP/1.1\r\n\r\n" + REQUEST.body
    measure(benchmark, loop, lambda: asker.ask(request))
    transport.abort()
    server.close()
    loop.run_until_complete(server.wait_closed())

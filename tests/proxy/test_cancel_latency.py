"""How long an engine works for nobody: from a client's close to the end of the engine's socket, at a real FLM.

Client and engine are in this process, FLM in others, so one monotonic clock measures both ends. 200 tries for each
moment at which a client may leave, some at once, going round by route, by FIN and RST, and by how long the client
waited before it left: request watching begins a little after a request does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flm.engines.call import Endpoint
from tests.support.engine import answer, chunked
from tests.support.installed import Flm, installed

TRIES = 200
AT_ONCE = 8
LIMIT_SECONDS = 0.25
LONGEST_WAIT = 0.12  # before a client leaves: from well before a request is watched to well after
MODELS = answer(200, b'{"object":"list","data":[{"id":"m","object":"model","created":1}]}')
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = {Endpoint.CHAT: '"delta":{"content":"hi"}', Endpoint.COMPLETIONS: '"text":"hi"'}
PREFIXES = ("", "/engine/e")  # translated, and passed on
MOMENTS = ("before the first byte", "mid-stream", "waiting for a whole answer")


class Try(NamedTuple):
    """One client's visit."""

    name: str
    moment: str
    endpoint: Endpoint
    prefix: str
    reset: bool
    wait: float

    @property
    def path(self) -> str:
        return self.prefix + self.endpoint.value

    @property
    def body(self) -> dict[str, Any]:
        said: dict[Endpoint, dict[str, Any]] = {
            Endpoint.CHAT: {"messages": [{"role": "user", "content": self.name}]},
            Endpoint.COMPLETIONS: {"prompt": self.name},
            Endpoint.EMBEDDINGS: {"input": self.name},
        }
        stream = {} if self.endpoint is Endpoint.EMBEDDINGS else {"stream": self.moment != MOMENTS[2]}
        return {"model": "flm://e/m", **said[self.endpoint], **stream}


def tries(moment: str) -> Iterator[Try]:
    """TRIES visits. Embeddings do not stream: they are only ever waited for."""
    asked = [endpoint for endpoint in Endpoint if endpoint is not Endpoint.EMBEDDINGS or moment == MOMENTS[2]]
    ways = itertools.cycle(itertools.product(asked, PREFIXES, (False, True)))
    chance = random.Random(moment)
    for number, (endpoint, prefix, reset) in zip(range(TRIES), ways, strict=False):
        wait = chance.choice((0.0, chance.uniform(0, LONGEST_WAIT)))
        yield Try(f"{moment} {number}", moment, endpoint, prefix, reset, wait)


class Engine:
    """Takes requests, answers none to its end, and notes when its connections end. Requests are known by their text."""

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Event] = {}
        self.gone: dict[str, asyncio.Future[float]] = {}

    def expect(self, name: str) -> None:
        self.asked[name] = asyncio.Event()
        self.gone[name] = asyncio.get_running_loop().create_future()


class Wire(asyncio.Protocol):
    """The engine's end of one connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._received = bytearray()
        self._name: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(b"\r\n\r\n")
        if end and head.startswith(b"GET "):
            self._received.clear()
            self._transport.write(MODELS)
        elif end and len(body) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._begin(json.loads(body))

    def _begin(self, asked: dict[str, Any]) -> None:
        self._name = asked.get("prompt") or asked.get("input") or asked["messages"][0]["content"]
        if self._name.startswith("mid-stream"):
            text = TEXT[Endpoint.CHAT if "messages" in asked else Endpoint.COMPLETIONS]
            event = f'data: {{"choices":[{{"index":0,{text},"finish_reason":null}}],"id":"c","model":"m"}}\n\n'
            self._transport.write(
                chunked(200, [event.encode()], b"content-type: text/event-stream")[: -len(b"0\r\n\r\n")]
            )
        self._engine.asked[self._name].set()

    def eof_received(self) -> None:
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()

    def _ended(self) -> None:
        if self._name is not None and not self._engine.gone[self._name].done():
            self._engine.gone[self._name].set_result(time.monotonic())


async def visit(flm: Flm, engine: Engine, one: Try) -> float:
    """Ask, leave, and see for how many seconds the engine did not know."""
    loop = asyncio.get_running_loop()
    engine.expect(one.name)
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", flm.port))
        await loop.sock_sendall(client, flm.request("POST", one.path, one.body))
        await engine.asked[one.name].wait()
        received = b""
        while one.moment == "mid-stream" and b"data: " not in received:
            received += await loop.sock_recv(client, 65536)
        await asyncio.sleep(one.wait)
        if one.reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left = time.monotonic()
    return await engine.gone[one.name] - left


@asynccontextmanager
async def measuring(root: Path, **more: Any) -> Any:
    engine = Engine()
    server = await asyncio.get_running_loop().create_server(lambda: Wire(engine), "127.0.0.1", 0, backlog=128)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with installed(root, {"e": ("openai", f"http://127.0.0.1:{port}")}, **more) as flm:
            yield flm, engine


async def measure(flm: Flm, engine: Engine, visits: list[Try]) -> list[float]:
    """The seconds of each visit, sorted; AT_ONCE visits overlap."""
    room = asyncio.Semaphore(AT_ONCE)

    async def bounded(one: Try) -> float:
        async with room:
            return await visit(flm, engine, one)

    return sorted(await asyncio.gather(*map(bounded, visits)))


def p99(seconds: list[float]) -> float:
    return seconds[-1 - len(seconds) // 100]


def test_an_engine_learns_within_250_ms_that_its_client_has_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with measuring(tmp_path) as (flm, engine):
            for moment in MOMENTS:
                seconds = await measure(flm, engine, list(tries(moment)))
                print(f"{moment}: median {seconds[TRIES // 2] * 1000:.0f} ms, p99 {p99(seconds) * 1000:.0f} ms")
                assert all(second >= 0 for second in seconds)
                assert p99(seconds) <= LIMIT_SECONDS, (moment, seconds[-10:])

    asyncio.run(main())


def test_the_measurement_sees_a_worker_that_watches_too_late(tmp_path: Path) -> None:
    async def main() -> None:
        async with measuring(tmp_path, worker_module="tests.proxy.late_worker") as (flm, engine):
            seconds = await measure(flm, engine, list(tries(MOMENTS[2]))[:AT_ONCE])
            assert p99(seconds) > LIMIT_SECONDS

    asyncio.run(main())


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_way_of_leaving_is_tried(moment: str) -> None:
    seen = list(tries(moment))
    assert len({one.name for one in seen}) == TRIES
    assert {one.reset for one in seen} == {False, True}
    assert {one.path for one in seen} == {
        prefix + endpoint.value
        for prefix in PREFIXES
        for endpoint in Endpoint
        if endpoint is not Endpoint.EMBEDDINGS or moment == MOMENTS[2]
    }
    assert {one.wait == 0 for one in seen} == {False, True}

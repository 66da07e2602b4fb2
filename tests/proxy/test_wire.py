"""The data path behind the real server, spoken to over raw sockets: framing, connections, and clients that vanish.

Numbers in brackets are those of the reliability catalogue that docs/granian.md goes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from flm.runtime.listener import Listener, cut
from flm.runtime.sockets import open_listening
from tests.proxy.harness import CHAT, World, chat, engine
from tests.support.engine import ScriptedEngine, answer, chunked, fin, flood, mark, receive, say, serve, stall

JSON = b"content-type: application/json"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WHOLE = answer(200, b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[]}', JSON)
STREAM = chunked(200, [EVENT.replace(b"[]", b'[{"index":0,"delta":{},"finish_reason":"stop"}]'), b"data: [DONE]\n\n"],
                 b"content-type: text/event-stream")  # fmt: skip
HOST = b"Host: localhost\r\n"
CANCEL_SECONDS = 0.25
HEADER_TIMEOUT = 5.0


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    uvloop.run(bounded())


class Server:
    """A world behind the server. `port`: where it listens."""

    def __init__(self, world: World, port: int) -> None:
        self.world = world
        self.port = port
        self.wires: list[Wire] = []
        self.cut = asyncio.Event()

    @property
    def auth(self) -> bytes:
        return b"Authorization: Bearer " + self.world.key.encode() + b"\r\n"

    def post(self, body: bytes, *headers: bytes, framing: bytes | None = None) -> bytes:
        """A chat request as bytes."""
        lines = b"".join(line + b"\r\n" for line in headers)
        framing = b"Content-Length: %d" % len(body) if framing is None else framing
        return (
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + HOST + self.auth + framing + b"\r\n" + lines + b"\r\n" + body
        )

    async def connect(self) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.wires.append(wire)
        return wire

    async def lines(self, count: int = 1) -> list[dict[str, Any]]:
        """The log's lines once there are so many: a request's own may come after its client has the answer."""
        while len(self.world.raw) < count:
            await asyncio.sleep(0)
        return self.world.lines

    async def say(self, data: bytes) -> Wire:
        wire = await self.connect()
        wire.writer.write(data)
        return wire


class Wire:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def response(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """The next response with a known length or in chunks; (0, {}, b"") when the connection has closed instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, {}, b""
        first, *lines = head.split(b"\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if b"content-length" in headers:
            return int(first.split()[1]), headers, await self.reader.readexactly(int(headers[b"content-length"]))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return int(first.split()[1]), headers, body

    async def closed(self) -> bool:
        """Whether the connection ends now, with nothing more on it."""
        with contextlib.suppress(ConnectionError):
            return not await self.reader.read(1)
        return True

    def leave(self, *, reset: bool) -> float:
        """Close, at once; returns when that was."""
        if reset:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        now = time.monotonic()
        self.writer.transport.abort() if reset else self.writer.close()
        return now


@contextlib.asynccontextmanager
async def serving(*engines: Any, **settings: Any) -> AsyncIterator[Server]:
    world = World(*engines, **settings)
    (listening,) = open_listening("127.0.0.1", 0, 1, 60)
    port = listening.getsockname()[1]
    listener = Listener(world.app, listening.detach(), header_timeout=HEADER_TIMEOUT, connections=1000)
    listener.start()
    try:
        await listener.answers(10)
        world.raw.clear()
        server = Server(world, port)

        def cut_and_note(client: tuple[str, str]) -> None:
            assert cut(client)
            server.cut.set()

        world.app._context.cut = cut_and_note
        try:
            yield server
        finally:  # what is left open would warn in the middle of another test
            for wire in server.wires:
                wire.writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await wire.writer.wait_closed()
    finally:
        await listener.finish()
        await world.app.aclose()


def wire_test(test: Callable[[Server], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def go() -> None:
        async with serving(**settings) as server:
            await test(server)

    run(go())


def test_one_connection_carries_many_answers() -> None:
    async def test() -> None:
        async with (
            ScriptedEngine([serve({CHAT: WHOLE})]) as whole,
            ScriptedEngine([serve({CHAT: STREAM})]) as stream,
            serving(engine(whole.url, name="w"), engine(stream.url, name="s")) as server,
        ):
            wire = await server.connect()
            for _ in range(3):
                wire.writer.write(server.post(json.dumps(chat("flm://w/m")).encode()))
                status, headers, body = await wire.response()
                assert (status, json.loads(body)["model"]) == (200, "flm://w/m")
                assert headers[b"server"] == b"flm"
                wire.writer.write(server.post(json.dumps(chat("flm://s/m", stream=True)).encode()))
                status, headers, body = await wire.response()
                assert (status, body[-14:]) == (200, b"data: [DONE]\n\n")
                assert headers[b"transfer-encoding"] == b"chunked"
                wire.writer.write(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (await wire.response())[0] == 401
            assert [line["error_type"] for line in await server.lines(9)] == [None, None, "invalid_api_key"] * 3
            assert (len(whole.peers), len(stream.peers)) == (1, 1)

    run(test())


@pytest.mark.parametrize(
    ("size", "expect", "alive"), [(0, False, True), (100, False, True), (65_536, False, True), (65_537, False, False),
                                  (100, True, False)],
)  # fmt: skip
def test_a_connection_after_a_401(size: int, expect: bool, alive: bool) -> None:
    async def test(server: Server) -> None:
        head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % size
        wire = await server.say(head + (b"Expect: 100-continue\r\n" if expect else b"") + b"\r\n")
        status, headers, _ = await wire.response()  # before a byte of the body was sent
        assert status == 401
        assert (headers.get(b"connection") == b"close") is not alive
        if not alive:
            assert await wire.closed()
            return
        wire.writer.write(b"x" * size + b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await wire.response())[0] == 200

    wire_test(test)


def test_pipelined_requests_are_each_judged_alone() -> None:  # [12]
    async def test(server: Server) -> None:
        good = b"GET /v1/models HTTP/1.1\r\n" + HOST + server.auth + b"\r\n"
        bad = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
        wire = await server.say((good + bad) * 20)
        assert [(await wire.response())[0] for _ in range(40)] == [200, 401] * 20
        assert len(await server.lines(40)) == 40

    wire_test(test)


SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
FRAMINGS = [
    (b"Content-Length: 6\r\nTransfer-Encoding: chunked", SMUGGLED),  # [1]
    (b"Transfer-Encoding: chunked\r\nContent-Length: 6", SMUGGLED),
    (b"Transfer-Encoding: gzip, chunked", SMUGGLED),  # [2]
    (b"Transfer-Encoding: chunked, chunked", SMUGGLED),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", SMUGGLED),
    (b"Transfer-Encoding: identity", SMUGGLED),
    (b"Transfer-Encoding: xchunked", SMUGGLED),
    (b"Transfer-Encoding : chunked", SMUGGLED),
    (b"Content-Length: +5", b"abcde"),  # [4]
    (b"Content-Length: 5\r\nContent-Length: 6", b"abcdef"),
    (b"Content-Length: 5,5", b"abcde"),
    (b"Transfer-Encoding: chunked", b"1\na\n0\n\n"),  # [5]
    (b"Transfer-Encoding: chunked", b"1\rXa\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"1;" + b"e" * 17_408 + b"\r\na\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"0x5\r\nabcde\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"10000000000000000\r\na\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"1\r\naX0\r\n\r\n"),
]


@pytest.mark.parametrize(("framing", "body"), FRAMINGS)
def test_a_request_whose_end_is_in_doubt_is_one_400_and_the_end(framing: bytes, body: bytes) -> None:
    async def test() -> None:
        async with ScriptedEngine([fin()]) as scripted, serving(engine(scripted.url)) as server:
            wire = await server.say(server.post(body, framing=framing))
            status, _, _ = await wire.response()
            assert status in (400, 501)
            assert await wire.closed()
            assert scripted.peers == []
            assert [line["endpoint"] for line in server.world.lines] in ([], [CHAT])

    run(test())


def test_octal_looking_lengths_are_decimal() -> None:  # [4]
    async def test(server: Server) -> None:
        wire = await server.say(server.post(b"0123456789", framing=b"Content-Length: 010"))
        assert (await wire.response())[0] == 400
        assert (await server.lines())[-1]["bytes_in"] == 10

    wire_test(test)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # [11]
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost,x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a@localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost/health?\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: attacker.example\r\n\r\n", 421),
        (b"GET http://attacker.example/health HTTP/1.1\r\n\r\n", 421),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://attacker.example\r\n\r\n", 403),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n", 403),
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 200),  # [10]
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", 200),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"TRACE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /a/../health HTTP/1.1\r\nHost: localhost\r\n\r\n", 401),
        (b"GET /%68ealth HTTP/1.1\r\nHost: localhost\r\n\r\n", 401),
        (b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 66_000 + b"\r\n\r\n", 431),  # [15]
    ],
)
def test_a_head_on_the_wire(request_: bytes, status: int) -> None:
    async def test(server: Server) -> None:
        wire = await server.say(request_)
        got, headers, _ = await wire.response()
        assert got == status
        if status in (414, 431) or request_.startswith((b"CONNECT", b"TRACE")):
            assert headers[b"connection"] == b"close"
            assert await wire.closed()

    wire_test(test)


def test_another_protocol_is_no_request() -> None:  # [10]
    async def test(server: Server) -> None:
        for hello in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes.fromhex("16030100c8010000c40303") + b"\x00" * 60):
            wire = await server.say(hello)
            assert b"200" not in await wire.reader.read()
        assert server.world.lines == []

    wire_test(test)


def test_a_body_too_large_is_answered_and_closed() -> None:  # [17]
    async def test(server: Server) -> None:
        announced = await server.say(server.post(b"", framing=b"Content-Length: 33554433"))
        status, headers, _ = await announced.response()
        assert (status, headers[b"connection"]) == (413, b"close")
        assert await announced.closed()
        growing = await server.say(
            server.post(b"7d0\r\n" + b"x" * 2000 + b"\r\n", framing=b"Transfer-Encoding: chunked")
        )
        assert (await growing.response())[0] == 413
        assert await growing.closed()

    wire_test(test, proxy_max_body_bytes=1500)


def test_a_body_that_does_not_come_is_answered_and_closed() -> None:  # [23]
    async def test(server: Server) -> None:
        wire = await server.say(server.post(b"{", framing=b"Content-Length: 100"))
        status, headers, _ = await wire.response()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert await wire.closed()
        assert server.world.app.in_flight == 0

    wire_test(test, proxy_body_idle_timeout_seconds=0.2)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_cut_by_the_client_reaches_no_engine(framing: bytes) -> None:
    async def test() -> None:
        async with ScriptedEngine([fin()]) as scripted, serving(engine(scripted.url)) as server:
            body = json.dumps(chat("flm://e/m")).encode()
            data = body if framing.startswith(b"C") else b"%x\r\n%s\r\n" % (len(body), body)
            wire = await server.say(server.post(data, framing=framing))
            wire.writer.write_eof()
            assert (await wire.response())[0] == 400
            assert scripted.peers == []

    run(test())


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("script", ["silent", "head", "events"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_vanishes_stops_the_engine(script: str, stream: bool, reset: bool) -> None:  # [99] [100]
    async def test() -> None:
        asked = asyncio.Event()
        said = {"silent": b"", "head": STREAM_HEAD, "events": STREAM_HEAD + EVENT}[script]
        async with (
            ScriptedEngine([receive(), say(said), mark(asked), stall()]) as scripted,
            serving(engine(scripted.url)) as server,
        ):
            wire = await server.say(server.post(json.dumps(chat("flm://e/m", stream=stream)).encode()))
            await asked.wait()
            if script == "events" and stream:
                await wire.reader.readuntil(EVENT.partition(b"[")[2])
            left = wire.leave(reset=reset)
            peer = scripted.peers[0]
            await peer.closed.wait()
            assert peer.closed_at - left < CANCEL_SECONDS
        assert [line["error_type"] for line in server.world.lines] == ["client_disconnected"]

    run(test())


def test_a_client_that_reads_nothing_is_cut_and_its_engine_stopped() -> None:  # [24] [116]
    async def test() -> None:
        async with (
            ScriptedEngine([receive(), say(STREAM_HEAD), flood(EVENT, 1 << 40)]) as scripted,
            serving(engine(scripted.url), proxy_send_timeout_seconds=0.3) as server,
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(server.post(json.dumps(chat("flm://e/m", stream=True)).encode()))
                peer = await scripted.peer(0)
                await server.cut.wait()
                assert (await server.lines())[-1]["error_type"] == "client_too_slow"
                assert peer.sent < 32 << 20
                received = 0
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                with contextlib.suppress(ConnectionError):
                    while piece := await loop.sock_recv(client, 1 << 20):
                        received += len(piece)
                assert received < 32 << 20  # the connection has ended

    run(test())


def test_a_draining_worker_closes_after_the_answer() -> None:
    async def test(server: Server) -> None:
        wire = await server.connect()
        wire.writer.write(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"connection" not in (await wire.response())[1]
        server.world.app.drain()
        wire.writer.write(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await wire.response())[1][b"connection"] == b"close"
        assert await wire.closed()

    wire_test(test)


def test_a_broken_whole_answer_never_looks_whole() -> None:  # [109]
    async def test() -> None:
        cut_answer = b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\ncontent-length: 100\r\n\r\n{"
        async with (
            ScriptedEngine([receive(), say(cut_answer), fin()]) as scripted,
            serving(engine(scripted.url)) as server,
        ):
            wire = await server.say(server.post(json.dumps(chat("flm://e/m")).encode()))
            status, _, body = await wire.response()
            assert (status, json.loads(body)["error"]["code"]) == (502, "engine_error")

    run(test())

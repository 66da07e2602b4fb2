"""Pins what FLM relies on of the ASGI server, so that another version of it that changes any of it goes red here.

The long version, with what was seen for each hostile request, is docs/granian.md: read it again before the pin moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import socket
import tomllib
from collections.abc import AsyncIterator, Callable
from typing import Any

import granian.net
import pytest
from granian.server.embed import Server

from flm.runtime.listener import Listener, NotServingError, cut
from flm.runtime.sockets import open_listening
from tests.runtime.harness import ROOT, run

PINNED = "2.8.7"
HEADER_TIMEOUT = 1.0
HOST = b"Host: localhost\r\n"


class Echo:
    """An app that says what it was given, and remembers what happened to each request."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        path = scope["raw_path"].decode()
        self.paths.append(path)
        if path == "/unread":
            await answer(send, 401, b"no")
        elif path == "/wait":
            await receive()
            self.events.append((await receive())["type"])
        elif path == "/close":
            await receive()
            await answer(send, 200, b"bye", (b"connection", b"close"))
        elif path.startswith("/stream"):
            await self._stream(path, scope, receive, send)
        else:
            await self._echo(scope, receive, send)

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                await answer(send, 400, b"broken body", (b"connection", b"close"))
                return
            body += message["body"]
            if not message["more_body"]:
                break
        said = {
            "path": scope["raw_path"].decode(),
            "version": scope["http_version"],
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
            "body": body.decode(),
        }
        await answer(send, 200, json.dumps(said).encode())

    async def _stream(self, path: str, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if path == "/stream/unfinished":
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            return
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            if path == "/stream/flood":
                sending = asyncio.ensure_future(
                    send({"type": "http.response.body", "body": b"x" * 65_000, "more_body": True})
                )
                await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
                continue
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.wait([gone], timeout=0.01)
        self.events.append(gone.result()["type"])


async def answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class Served:
    def __init__(self, app: Echo, listening: socket.socket, listener: Listener) -> None:
        self.app = app
        self.listening = listening
        self.listener = listener
        self.port = int(listening.getsockname()[1])

    async def raw(self, data: bytes, *, seconds: float = 5.0, until_closed: bool = False) -> bytes:
        """Send bytes on a connection of its own; what comes back until it closes, or is silent for a moment."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        got = b""
        try:
            writer.write(data)
            async with asyncio.timeout(seconds):
                while chunk := await asyncio.wait_for(reader.read(65_536), None if until_closed else 0.3):
                    got += chunk
        except (TimeoutError, ConnectionError):
            assert not until_closed, f"still open after {got!r}"
        finally:
            writer.close()
        return got

    async def echo(self, head: bytes, body: bytes = b"") -> dict[str, Any]:
        """The scope of a request that is accepted."""
        got = await self.raw(head + b"\r\n" + body)
        assert got.startswith(b"HTTP/1."), got
        assert b" 200 OK" in got[:20], got
        said: dict[str, Any] = json.loads(got.partition(b"\r\n\r\n")[2])
        return said


@contextlib.asynccontextmanager
async def serving(*, send_timeout: float = 60, connections: int = 64) -> AsyncIterator[Served]:
    (listening,) = open_listening("127.0.0.1", 0, 1, send_timeout)
    app = Echo()
    listener = Listener(app, os.dup(listening.fileno()), header_timeout=HEADER_TIMEOUT, connections=connections)
    listener.start()
    await listener.answers(5)
    app.paths.clear()
    try:
        yield Served(app, listening, listener)
    finally:
        listening.close()
        async with asyncio.timeout(10):
            await listener.finish()


def test_the_version_is_pinned() -> None:
    assert importlib.metadata.version("granian") == PINNED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"granian=={PINNED}" in project["dependencies"]


def test_the_private_parts_are_there() -> None:
    assert callable(Server._init_shared_socket)
    with socket.socket() as any_socket:
        holder = granian.net.SocketHolder(any_socket.fileno(), False, 1)  # type: ignore[call-arg, attr-defined]
        assert holder.get_fd() == any_socket.fileno()
        assert holder.is_uds() is False


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_length_and_chunked_together_smuggle_nothing(order: tuple[int, int]) -> None:
    async def main() -> None:
        async with serving() as server:
            framing = [b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n"]
            head = b"POST /x HTTP/1.1\r\n" + HOST + framing[order[0]] + framing[order[1]] + b"\r\n"
            smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
            got = await server.raw(head + b"0\r\n\r\n" + smuggled, until_closed=True)
            assert got.count(b"HTTP/1.1 ") == 1
            assert server.app.paths == ["/x"]
            assert b"content-length: 6" not in got.partition(b"\r\n\r\n")[2]

    run(main)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b"Transfer-Encoding: gzip, chunked", ["gzip, chunked"]),
        (b"Transfer-Encoding: chunked, chunked", ["chunked, chunked"]),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", ["gzip", "chunked"]),
    ],
)
def test_lists_of_codings_reach_the_app_as_they_are(line: bytes, values: list[str]) -> None:
    """The server is lenient, so the app refuses them; it can, because it sees them."""

    async def main() -> None:
        async with serving() as server:
            said = await server.echo(b"POST /x HTTP/1.1\r\n" + HOST + line + b"\r\n", b"1\r\na\r\n0\r\n\r\n")
            assert [value for name, value in said["headers"] if name == "transfer-encoding"] == values

    run(main)


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Content-Length: +5",
        b"Content-Length: 5,6",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 18446744073709551616",
        b"X-A: a\x00b",
    ],
)
def test_broken_heads_are_refused(line: bytes) -> None:
    async def main() -> None:
        async with serving() as server:
            got = await server.raw(b"POST /x HTTP/1.1\r\n" + HOST + line + b"\r\n\r\nabcdef", until_closed=True)
            assert got.startswith(b"HTTP/1.1 400")
            assert server.app.paths == []

    run(main)


@pytest.mark.parametrize(
    "body", [b"1\rXa\r\n0\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"1\na\n0\n\n", b"1\r\naX0\r\n\r\n"]
)
def test_a_broken_chunk_is_a_disconnect_that_can_be_answered(body: bytes) -> None:
    async def main() -> None:
        async with serving() as server:
            got = await server.raw(
                b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body, until_closed=True
            )
            assert got.startswith(b"HTTP/1.1 400")
            assert b"broken body" in got

    run(main)


def test_hosts_and_targets_reach_the_app_as_they_are() -> None:
    async def main() -> None:
        async with serving() as server:
            assert (await server.echo(b"GET /x HTTP/1.1\r\n"))["headers"] == [["host", ""]]
            two = await server.echo(b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n")
            assert two["headers"] == [["host", "a"], ["host", "b"]]
            assert (await server.echo(b"GET /a/../b%2f%00//c HTTP/1.1\r\n" + HOST))["path"] == "/a/../b%2f%00//c"
            absolute = await server.echo(b"GET http://evil/x HTTP/1.1\r\n" + HOST)
            assert (absolute["path"], absolute["headers"]) == ("/x", [["host", "localhost"]])
            assert (await server.echo(b"GET /x HTTP/1.0\r\n" + HOST))["version"] == "1"

    run(main)


def test_sizes_of_heads() -> None:
    """100 headers pass and 101 do not; 100 KB pass, so the app must count."""

    async def main() -> None:
        async with serving() as server:
            lines = b"".join(b"X%d: y\r\n" % n for n in range(99))
            assert len((await server.echo(b"GET /x HTTP/1.1\r\n" + HOST + lines))["headers"]) == 100
            got = await server.raw(b"GET /x HTTP/1.1\r\n" + HOST + lines + b"Y: y\r\n\r\n", until_closed=True)
            assert got.startswith(b"HTTP/1.1 431")
            assert await server.echo(b"GET /x HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n")
            got = await server.raw(b"GET /x HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 400_000 + b"\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 431")

    run(main)


def test_no_other_protocol() -> None:
    async def main() -> None:
        async with serving() as server:
            upgrade = (
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
            )
            await server.echo(b"GET /x HTTP/1.1\r\n" + HOST + upgrade)
            preface = await server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", until_closed=True)
            assert b"101" not in preface
            assert b" 200" not in preface
            assert server.app.paths == ["/x"]

    run(main)


def test_no_100_continue_before_the_body_is_asked_for() -> None:
    async def main() -> None:
        async with serving() as server:
            head = b"POST /unread HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 35\r\n\r\n"
            got = await server.raw(head + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", until_closed=True)
            assert got.startswith(b"HTTP/1.1 401")
            assert server.app.paths == ["/unread"]

    run(main)


@pytest.mark.parametrize("sent", [b"", b"GET /x", b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_silence_is_closed_at_the_header_timeout(sent: bytes) -> None:
    async def main() -> None:
        async with serving() as server:
            began = asyncio.get_running_loop().time()
            await server.raw(sent, until_closed=True)
            took = asyncio.get_running_loop().time() - began
            assert HEADER_TIMEOUT - 0.1 < took < HEADER_TIMEOUT + 2

    run(main)


@pytest.mark.parametrize("path", [b"/wait", b"/stream"])
@pytest.mark.parametrize(
    "leave", [asyncio.StreamWriter.close, lambda writer: writer.write_eof()], ids=["close", "half"]
)
def test_a_client_that_leaves_is_noticed(path: bytes, leave: Callable[[asyncio.StreamWriter], None]) -> None:
    """Before the first byte of the answer and after; a half-close counts as leaving."""

    async def main() -> None:
        async with serving() as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            async with asyncio.timeout(5):
                while not server.app.paths:
                    await asyncio.sleep(0.01)
                leave(writer)
                while server.app.events != ["http.disconnect"]:
                    await asyncio.sleep(0.01)
            writer.close()

    run(main)


def test_connection_close_is_honoured() -> None:
    async def main() -> None:
        async with serving() as server:
            got = await server.raw(b"GET /close HTTP/1.1\r\n" + HOST + b"\r\n", until_closed=True, seconds=0.9)
            assert got.endswith(b"bye")

    run(main)


def test_an_app_that_leaves_a_stream_unfinished_cuts_it() -> None:
    async def main() -> None:
        async with serving() as server:
            got = await server.raw(b"GET /stream/unfinished HTTP/1.1\r\n" + HOST + b"\r\n", until_closed=True)
            assert got.endswith(b"data: 1\n\n\r\n")

    run(main)


def _deaf_client(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET /stream/flood HTTP/1.1\r\n" + HOST + b"\r\n")
    return client


def test_a_client_that_never_reads_is_cut_by_the_kernel() -> None:
    """TCP_USER_TIMEOUT of the listening socket is inherited."""

    async def main() -> None:
        async with serving(send_timeout=1) as server:
            with _deaf_client(server.port):
                async with asyncio.timeout(8):
                    while not server.app.events:
                        await asyncio.sleep(0.01)

    run(main)


def test_a_connection_can_be_cut() -> None:
    async def main() -> None:
        async with serving() as server:
            with _deaf_client(server.port) as client:
                await asyncio.sleep(0.3)
                host, port = client.getsockname()
                assert cut((host, str(port)))
                async with asyncio.timeout(2):
                    while not server.app.events:
                        await asyncio.sleep(0.01)
                assert not cut((host, "1"))

    run(main)


def test_more_connections_than_allowed_wait_their_turn() -> None:
    async def main() -> None:
        async with serving(connections=2) as server:
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
            got = await server.raw(b"GET /x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", until_closed=True)
            assert got.startswith(b"HTTP/1.1 200")
            for _, writer in silent:
                writer.close()

    run(main)


def test_a_retired_listener_accepts_no_more_and_serves_on() -> None:
    async def main() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            server.listener.retire()
            writer.write(b"GET /b HTTP/1.1\r\n" + HOST + b"\r\n")
            async with asyncio.timeout(2):
                while server.app.paths != ["/a", "/b"]:
                    await asyncio.sleep(0.01)
            waiting, late = await asyncio.open_connection("127.0.0.1", server.port)
            late.write(b"GET /c HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            await asyncio.sleep(0.3)
            assert server.app.paths == ["/a", "/b"]
            successor = Listener(
                server.app, os.dup(server.listening.fileno()), header_timeout=HEADER_TIMEOUT, connections=8
            )
            successor.start()
            assert (await waiting.read()).startswith(b"HTTP/1.1 200"), "what waited in the queue is served"
            writer.close()
            late.close()
            await successor.finish()

    run(main)


def test_a_server_that_fails_its_health_check_says_so() -> None:
    class Broken(Echo):
        async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
            await answer(send, 500, b"")

    async def main() -> None:
        (listening,) = open_listening("127.0.0.1", 0, 1, 60)
        listener = Listener(Broken(), os.dup(listening.fileno()), header_timeout=1, connections=8)
        listener.start()
        with pytest.raises(NotServingError, match="500"):
            await listener.answers(5)
        listening.close()
        await listener.finish()

    run(main)

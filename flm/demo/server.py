"""The demo engine's HTTP/1.1 server: reads requests with httptools, asks the dialect, hands answers to `delivery`.

Bounded in everything a client can make grow: connections, head, body, pipelined requests, idle time. Knows no
dialect. Strategy: one asyncio protocol per connection, one answer at a time; a plain answer is written at once, any
other is a task that dies with its connection. Reading goes on during an answer, because only that shows a client
that leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections import deque
from typing import cast
from urllib.parse import parse_qsl, unquote

import httptools

from flm.demo import admin
from flm.demo.delivery import Delivery
from flm.demo.dialect import Answer, Dialect, Request
from flm.demo.directives import NONE, DirectiveError
from flm.demo.journal import Journal, Record

MAX_CONNECTIONS = 4096
MAX_HEAD = 64 * 1024  # bytes of request line and headers
MAX_BODY = 64 * 1024 * 1024  # twice what the proxy lets through, so that the engine is never the limit
MAX_PIPELINED = 16
IDLE_SECONDS = 75.0  # nginx's default; a connection without a request is closed after it
LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends a reset


class Server:
    """What all connections of one listening socket share."""

    def __init__(
        self, dialect: Dialect, *, controls: bool = False, idle_seconds: float = IDLE_SECONDS, pace: float = 0.0
    ) -> None:
        self.dialect = dialect
        self.pace = pace
        self.controls = controls
        self.idle_seconds = idle_seconds
        self.journal = Journal(keep=controls)
        self.connections: set[Connection] = set()
        self.serial = 0
        self.accepted = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Connection(self), host, port, backlog=1024)

    def answer(self, request: Request) -> Answer:
        """The dialect's answer, and the status that a directive asks for instead of it."""
        try:
            answer = self.dialect.answer(request)
        except DirectiveError as error:
            return self.dialect.error(400, str(error))
        if request.preset is not None:
            answer.directives = request.preset
        directives = answer.directives
        if directives.status is None:
            return answer
        told = self.dialect.error(directives.status, "The demo engine fails as it was told to.")
        told.directives = directives
        if directives.body is not None:
            told.body = unquote(directives.body).encode()
        return told

    async def close(self) -> None:
        """Cut all connections and wait for their tasks."""
        tasks = [connection.task for connection in self.connections if connection.task]
        for connection in list(self.connections):
            connection.close(reset=False)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One client. Also the `Wire` its answers are written to."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Request] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._record: Record | None = None
        self._reset()
        self.task: asyncio.Task[None] | None = None
        self.number = 0

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # create_server makes nothing else
        server = self._server
        if len(server.connections) >= MAX_CONNECTIONS:
            self._transport.abort()
        server.connections.add(self)
        server.accepted += 1
        self.number = server.accepted
        server.journal.open_connections += 1
        server.journal.note("connection")
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.journal.open_connections -= 1
        self._server.journal.note("closed")
        self._queue.clear()
        if self._idle:
            self._idle.cancel()
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        self._client_left()

    def eof_received(self) -> bool:
        self._client_left()
        return False

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            if self._in_head:
                self._grow_head(len(data))
        except httptools.HttpParserUpgrade:
            self._refuse(400, "this server upgrades to no other protocol")
        except httptools.HttpParserError as error:
            self._refuse(400, f"not an HTTP request: {error}")

    # --- httptools

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._head_size = 0
        self._in_head = False
        self._refused = False

    def on_message_begin(self) -> None:
        self._reset()
        self._in_head = True
        if self._idle:
            self._idle.cancel()
            self._idle = None

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        for name, value in self._headers:
            if name == b"expect" and value.lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) > MAX_BODY:
            self._refuse(413, "the request body is too large")
        elif not self._refused:
            self._body += body

    def on_message_complete(self) -> None:
        if self._refused:
            return
        server = self._server
        server.serial += 1
        raw_path, _, raw_query = self._target.decode("latin-1").partition("?")
        path = unquote(raw_path)
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=path,
            query=dict(parse_qsl(raw_query)) if raw_query else {},
            headers=dict(self._headers),
            body=bytes(self._body),
            serial=server.serial,
            created=time.time(),
            keep_alive=self._parser.should_keep_alive(),
            preset=server.journal.faults.get(path) if server.journal.faults else None,
        )
        if len(self._queue) >= MAX_PIPELINED:
            self._refuse(400, "too many pipelined requests")
        elif self.task or self._queue:
            self._queue.append(request)
        else:
            self._begin(request)

    def _grow_head(self, size: int) -> None:
        """Bytes of a head that is not yet whole: the parser keeps an unfinished header to itself."""
        self._head_size += size
        if self._head_size > MAX_HEAD:
            self._refuse(431, "the request head is too large")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no acceptable request, unless another answer is under way, and close."""
        if self._refused or self._transport.is_closing():
            return
        self._refused = True
        if self.task is None:
            answer = self._server.dialect.error(status, message)
            assert isinstance(answer.body, bytes)  # errors are never streamed
            head = self._server.dialect.head(answer, len(answer.body), time.time(), False)
            self._transport.write(head + answer.body)
        self._transport.close()

    # --- one request after the other

    def _begin(self, request: Request) -> None:
        server = self._server
        if server.controls and request.path.startswith(admin.PREFIX):
            self.task = self._loop.create_task(self._control(request))
            return
        record = server.journal.received(
            request.serial, self.number, request.method, request.path, self._headers, request.body
        )
        answer = server.answer(request)
        if request.method == "HEAD":
            self._write_at_once(request, record, answer, with_body=False)
        elif answer.directives == NONE and isinstance(answer.body, bytes):
            self._write_at_once(request, record, answer, with_body=True)
        else:
            self._record = record
            self.task = self._loop.create_task(self._deliver(request, record, answer))

    def _write_at_once(self, request: Request, record: Record, answer: Answer, with_body: bool) -> None:
        length = len(answer.body) if isinstance(answer.body, bytes) else None
        head = self._server.dialect.head(answer, length, request.created, request.keep_alive)
        self._server.journal.started(record)
        body = answer.body if with_body and isinstance(answer.body, bytes) else b""
        self._transport.write(head + body)
        record.status, record.bytes_sent = answer.status, len(head) + len(body)
        self._server.journal.finished(record)
        self._after(request.keep_alive)

    async def _deliver(self, request: Request, record: Record, answer: Answer) -> None:
        delivery = Delivery(self, self._server.journal, record, request, self._server.pace)
        await delivery.run(self._server.dialect, answer)
        self.task = self._record = None
        self._after(delivery.keep_alive)

    async def _control(self, request: Request) -> None:
        answer = await admin.answer(self._server.journal, request)
        assert isinstance(answer.body, bytes)  # controls are never streamed
        head = self._server.dialect.head(answer, len(answer.body), request.created, request.keep_alive)
        self._transport.write(head + answer.body)
        self.task = None
        self._after(request.keep_alive)

    def _after(self, keep_alive: bool) -> None:
        if not keep_alive:
            self._transport.close()
        elif self._queue:
            self._begin(self._queue.popleft())
        elif not self._transport.is_closing():
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._idle = self._loop.call_later(self._server.idle_seconds, self._transport.close)

    def _client_left(self) -> None:
        record, self._record = self._record, None
        if record is not None and record.outcome == "running":
            self._server.journal.cancelled(record)
        if self.task is not None:
            self.task.cancel()

    # --- Wire

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    async def flushed(self) -> None:
        self._transport.set_write_buffer_limits(high=0)
        while self._transport.get_write_buffer_size() and not self._transport.is_closing():
            await self.drained()
            await asyncio.sleep(0)

    def close(self, reset: bool) -> None:
        if not reset:
            self._transport.close()
            return
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self._transport.abort()


def explain_bind_error(host: str, port: int, error: OSError) -> str:
    """Why the demo engine cannot listen, for people."""
    if error.errno == errno.EADDRINUSE:
        return f"the demo engine cannot listen on {host}:{port}: another program does; use --port 0 for any free port"
    return f"the demo engine cannot listen on {host}:{port}: {error.strerror}"

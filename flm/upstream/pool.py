"""Connections to one engine: kept alive, lent for one exchange, given back.

Does not know what is asked (see `engines`), who asked, how bytes are parsed (see `wire/http1`), nor how a connection
comes to be (see `connector`). It knows which failures are the engine's.

Strategy: last in, first out, so that the warmest connection is used and the rest age away. A request that a reused
connection loses before a single byte of answer came is sent once more on a fresh one (RFC 9112 §9.3.1: the engine
closed an idle connection just then); never after a byte, never on a fresh connection, never twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final

from flm.config import IDLE_UPSTREAM_CONNECTIONS
from flm.engines.base import UpstreamRequest
from flm.errors import EngineTimeoutError, ErrorKind, Header, RequestError
from flm.upstream.connection import Connection
from flm.upstream.connector import RETRY_AFTER, Connector
from flm.upstream.draining import Drains
from flm.upstream.timeouts import Timeouts
from flm.wire.http1 import LAST_CHUNK, Address, RequestWriter, chunk, parse_address

__all__ = ["Pool", "Response", "Timeouts", "Upload"]

_NOT_OF_THE_ENGINE: Final = frozenset({ErrorKind.OVERLOADED, ErrorKind.INVALID_REQUEST})


class Response:
    """One engine's answer. Whoever holds it calls `release`, `abort` or `leave` in the end, once or more often.

    `with response:` does it whatever happens: a cancellation leaves the answer, anything else that is not a release
    aborts it. `satisfied` is set by the holder who has all it needs: what goes wrong from then on is nobody's failure.
    """

    __slots__ = ("_connection", "_error", "_pool", "headers", "satisfied", "status")

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._error: RequestError | None = None
        self.satisfied = False
        self.status = connection.status
        self.headers = connection.headers

    async def read(self) -> bytes:
        """The next piece of the body as it came, at most 64 KiB; b"" at its orderly end.

        Raises RequestError: ENGINE_ERROR (reset, early end), ENGINE_TIMEOUT (between_bytes or total), or
        UpstreamProtocolError (garbage), after everything that came before has been returned. While nobody reads, the
        engine is not read either.
        """
        connection = self._connection
        if connection is None:
            if self._error is not None:
                raise self._error
            return b""
        try:
            return await connection.read()
        except RequestError as error:
            if not self.satisfied:
                self._pool.failed(error)
            self.abort()
            self._error = error
            raise

    def release(self) -> None:
        """The answer is done with. If it was read to its end the connection is kept for the next request."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._pool.give_back(connection)

    def abort(self) -> None:
        """Close the engine's socket now (an error): the engine sees it at once."""
        if (connection := self._broken_off()) is not None:
            self._pool.discard(connection)

    def leave(self) -> None:
        """Nobody waits for the answer any more: close the engine's socket now, unless this engine breaks when it is
        cut; then the rest is read on in the background, within the bounds of `draining`."""
        if (connection := self._broken_off()) is not None:
            self._pool.part(connection)

    def _broken_off(self) -> Connection | None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._error = RequestError(ErrorKind.ENGINE_ERROR, f"the exchange with {self._pool.origin} was broken off")
        return connection

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.leave()
        else:
            self.abort()


class Upload:
    """An exchange whose request body comes piece by piece. One task writes, another waits for the answer."""

    __slots__ = ("_chunked", "_connection", "_pool")

    def __init__(self, pool: Pool, connection: Connection, *, chunked: bool) -> None:
        self._pool = pool
        self._connection = connection
        self._chunked = chunked

    async def write(self, piece: bytes) -> None:
        """Returns when the engine takes more. Without effect once the engine is gone, which `response` tells."""
        if piece:
            await self._connection.upload(chunk(piece) if self._chunked else piece)

    async def end(self) -> None:
        """The body is complete. Never called for one that was cut: the engine must not take it for whole."""
        await self._connection.end_upload(LAST_CHUNK if self._chunked else b"")

    def stop(self) -> None:
        """The engine has answered and does not want the rest."""
        self._connection.stop_upload()

    async def response(self) -> Response:
        """The answer, as soon as its head is there. Raises like `Pool.send`; cancelling closes the engine's socket."""
        try:
            await self._connection.answered()
        except BaseException as error:
            if isinstance(error, RequestError):
                if self._connection.asked or isinstance(error, EngineTimeoutError):
                    self._pool.failed(error)  # else it may have had enough of waiting for the caller's next piece
                self._pool.discard(self._connection)
            else:
                self._pool.part(self._connection)
            raise
        return Response(self._pool, self._connection)


class Pool:
    """The connections of one worker to one engine.

    `url`: scheme://host:port with an optional base path. `credential`: bearer token, or None. `ca`: PEM text of the
    authorities that verify an https engine, None for the system's. `idle_seconds`: how long an unused connection is
    kept. `max_in_flight`: exchanges at once, 0 for no limit. `drain_seconds`: how long an answer nobody waits for is
    read on (see `draining`); 0 cuts at once. `on_failure` is told every error that is the engine's fault, never that a
    caller went away; it must not raise.
    Raises ValueError for a URL or credential that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        credential: str | None,
        ca: str | None = None,
        server_name: str | None = None,
        idle_seconds: float,
        timeouts: Timeouts,
        max_in_flight: int,
        drain_seconds: float = 0,
        on_failure: Callable[[RequestError], None] | None = None,
    ) -> None:
        self._address: Address = parse_address(url)
        self._writer = RequestWriter(self._address, credential)
        self._connector = Connector(self._address, ca=ca, server_name=server_name, seconds=timeouts.connect)
        self._idle_seconds = idle_seconds
        self._timeouts = timeouts
        self._max_in_flight = max_in_flight
        self._on_failure = on_failure
        self._waiting: list[Connection] = []
        self._open: set[Connection] = set()
        self._drains = Drains(drain_seconds, self._drained)
        self._closed = self._ending = False
        self.in_flight = 0

    @property
    def origin(self) -> str:
        """`scheme://host:port` of the engine, for messages and logs."""
        return self._address.origin

    @property
    def base_path(self) -> str:
        """What stands before every path; empty, or `/a/b`."""
        return self._address.base_path

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._waiting)

    async def send(self, request: UpstreamRequest) -> Response:
        """Send `request`, wait for the head of the answer.

        Raises RequestError: OVERLOADED, ENGINE_UNAVAILABLE (nothing listens), ENGINE_TIMEOUT (connect, first byte,
        total), ENGINE_ERROR (closed or reset before a head), UpstreamProtocolError, INVALID_REQUEST (a path or header
        that cannot be sent). Cancelling it is as `Response.leave`.
        """
        self._check_room()
        head = self._writer.head(request.method, request.path, request.headers, len(request.body))
        self.in_flight += 1
        try:
            connection = await self._exchange(request, head)
        except BaseException as error:
            self.in_flight -= 1
            if isinstance(error, RequestError):
                self.failed(error)
            raise
        return Response(self, connection)

    async def upload(self, method: str, path: str, headers: Iterable[Header], length: int | None) -> Upload:
        """Begin a request whose body of `length` bytes (None: in chunks) comes piece by piece. Raises like `send`.

        Always on a connection of its own: on one that the engine closes just now, pieces would be lost that nobody
        has any more.
        """
        self._check_room()
        head = self._writer.head(method, path, headers, length)
        loop = asyncio.get_running_loop()
        total_at = self._total_at(loop)
        self.in_flight += 1
        try:
            connection = await self._connect(total_at)
            connection.begin_upload(method, head, self._timeouts, total_at)
        except BaseException as error:
            self.in_flight -= 1
            if isinstance(error, RequestError):
                self.failed(error)
            raise
        return Upload(self, connection, chunked=length is None)

    def _check_room(self) -> None:
        if self._max_in_flight and self.in_flight >= self._max_in_flight:
            message = f"the engine at {self.origin} already has {self._max_in_flight} requests; try again shortly"
            raise RequestError(ErrorKind.OVERLOADED, message, headers=RETRY_AFTER)

    def _total_at(self, loop: asyncio.AbstractEventLoop) -> float:
        return loop.time() + self._timeouts.total if self._timeouts.total else float("inf")

    async def _exchange(self, request: UpstreamRequest, head: bytes) -> Connection:
        loop = asyncio.get_running_loop()
        total_at = self._total_at(loop)
        connection = self._take_idle()
        if connection is not None:
            try:
                await self._attempt(connection, request, head, total_at)
                return connection
            except RequestError as error:
                if not connection.unanswered or error.kind is not ErrorKind.ENGINE_ERROR:
                    raise
        connection = await self._connect(total_at)
        await self._attempt(connection, request, head, total_at)
        return connection

    async def _attempt(self, connection: Connection, request: UpstreamRequest, head: bytes, total_at: float) -> None:
        try:
            await connection.exchange(request.method, head, request.body, self._timeouts, total_at)
        except asyncio.CancelledError:
            if self._drains.take(connection):
                self.in_flight += 1  # of the drain; `send` takes back the one of the request
            else:
                connection.abort()
            raise
        except BaseException:
            connection.abort()
            raise

    def _take_idle(self) -> Connection | None:
        while self._waiting:
            connection = self._waiting.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, total_at: float) -> Connection:
        connection = await self._connector.connect(total_at, self._on_lost)
        self._open.add(connection)
        return connection

    # --- for Response and Connection ---------------------------------------------------------------------------------

    def failed(self, error: RequestError) -> None:
        """Tell the owner, if the fault is the engine's: not one of FLM, not a long answer, not an end that FLM made."""
        if self._on_failure is None or self._ending or error.kind in _NOT_OF_THE_ENGINE:
            return
        if isinstance(error, EngineTimeoutError) and error.limit == "total":
            return  # the caller may just have read slowly
        self._on_failure(error)

    def give_back(self, connection: Connection) -> None:
        """An exchange is over; keep the connection if it can be kept."""
        self.in_flight -= 1
        if self._closed or len(self._waiting) >= IDLE_UPSTREAM_CONNECTIONS:
            connection.abort()
        elif connection.finish(self._idle_seconds):
            self._waiting.append(connection)

    def discard(self, connection: Connection) -> None:
        """An exchange is broken off."""
        self.in_flight -= 1
        connection.abort()

    def part(self, connection: Connection) -> None:
        """Nobody waits for an exchange any more. While it is drained it still counts as in flight."""
        if not self._drains.take(connection):
            self.discard(connection)

    def _drained(self, connection: Connection, whole: bool) -> None:
        if whole:
            self.give_back(connection)
        else:
            self.discard(connection)

    def _on_lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._waiting:
            self._waiting.remove(connection)

    async def close(self, *, running: bool = False) -> None:
        """Close idle connections and keep none from now on; drains end, running exchanges finish, or end if `running`.

        Returns when the closed ones are gone. A closed pool still sends: a request that began with it may finish.
        """
        self._closed = True
        self._ending = self._ending or running
        ending = list(self._open if running else self._waiting)
        self._waiting.clear()
        for connection in ending:
            connection.abort()
        await self._drains.close()
        for connection in ending:
            await connection.lost

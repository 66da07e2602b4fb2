"""One connection to an engine: one exchange at a time, on the loop's own transport.

Does not know which engine it talks to, nor when a connection is opened, kept or retried (see `pool`).

Strategy: a `BufferedProtocol` hands every byte to the sans-io `ResponseReader`. At most one task waits for the answer,
on one future, and looks again when something happened; there is no queue. A body that comes piece by piece is sent by
a second task, which waits only for the engine to take it. Deadlines are one number and one timer that is
only ever re-armed when it fires or when a nearer deadline is set: an exchange on a warm connection arms none.
Back-pressure both ways: the socket is not read while BUFFER_HIGH bytes wait for the client, and a large request body
is written slice by slice as the engine takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from flm.config import SEND_FRAME_BYTES
from flm.errors import EngineTimeoutError, ErrorKind, RequestError, UpstreamProtocolError
from flm.upstream.timeouts import Timeouts
from flm.wire.http1 import ResponseReader

RECEIVE_BYTES: Final = 65_536  # read from a socket at once; the buffer is shared by all connections of a pool
BUFFER_HIGH: Final = 65_536  # waiting for the client: above it the socket is not read. Held at most: HIGH + RECEIVE
BUFFER_LOW: Final = 16_384  # below it reading goes on
WRITE_SLICE: Final = 262_144  # of a request body, written before looking whether the engine takes it

_NEVER: Final = float("inf")
_TLS_ALERT: Final = b"\x15\x03"  # content type and major version of the record that refuses plain HTTP


class Connection(asyncio.BufferedProtocol):
    """One connection. `name` is the engine's origin, for messages; `on_lost` is called once when it is gone."""

    __slots__ = (
        "_body",
        "_buffer",
        "_deadline",
        "_drain",
        "_early",
        "_idle",
        "_late",
        "_limit",
        "_loop",
        "_name",
        "_on_lost",
        "_read_paused",
        "_reader",
        "_timeouts",
        "_timer",
        "_timer_at",
        "_total_at",
        "_transport",
        "_unsent",
        "_uploading",
        "_waiter",
        "_write_paused",
        "error",
        "lost",
        "reused",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, buffer: memoryview, name: str, on_lost: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._buffer = buffer
        self._name = name
        self._on_lost = on_lost
        self._reader = ResponseReader()
        self._body: bytes | bytearray = b""
        self._early = b""
        self._idle = True
        self._unsent = self._read_paused = self._write_paused = self._uploading = False
        self._waiter: asyncio.Future[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = self._total_at = _NEVER
        self._late = ""
        self._limit = "total"  # the field of Timeouts that the deadline comes from
        self.error: RequestError | None = None
        self.lost = loop.create_future()
        self.reused = False

    @property
    def unanswered(self) -> bool:
        """Not one byte of an answer has come."""
        return not self._reader.started

    @property
    def asked(self) -> bool:
        """The whole request is on its way to the engine, which may have begun to work on it."""
        return not self._idle and not self._unsent

    @property
    def _awaiting_head(self) -> bool:
        return self.error is None and not self._reader.head_complete

    @property
    def usable(self) -> bool:
        """The transport is open and nothing went wrong yet."""
        return self.error is None and not self._transport.is_closing()

    @property
    def status(self) -> int:
        return self._reader.status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return self._reader.headers

    async def exchange(self, method: str, head: bytes, body: bytes, timeouts: Timeouts, total_at: float) -> None:
        """Send one request and wait for the head of its answer. `total_at`: loop time at which all must be over.

        Raises RequestError: ENGINE_TIMEOUT, ENGINE_ERROR (closed or reset), UpstreamProtocolError. The caller aborts
        after any exception, cancellation included.
        """
        self._begin(method, timeouts, total_at)
        if len(body) <= WRITE_SLICE:
            self._transport.write(head + body)
        else:
            await self._send_slices(head, body)
        first_byte = timeouts.first_byte
        self._expect(first_byte, "first_byte", f"did not begin to answer within {first_byte:g} s")
        await self.answered()

    def _begin(self, method: str, timeouts: Timeouts, total_at: float) -> None:
        self._reader.begin(method)
        self._idle = False
        self._timeouts = timeouts
        self._total_at = total_at
        if self._early:
            self._feed(self._early)
            self._early = b""
        if not self.usable and not self._reader.head_complete:
            raise self.error or self._broken("closed the connection")

    async def answered(self) -> None:
        """Wait for the head of the answer to what has been asked. Raises like `exchange`."""
        while not self._reader.head_complete:
            if self.error is not None:
                raise self.error
            await self._wait()
        self._rest()

    async def _send_slices(self, head: bytes, body: bytes) -> None:
        self._unsent = True
        gap = self._timeouts.between_bytes
        rest = memoryview(body)
        self._transport.write(head)
        while rest and self._awaiting_head:
            self._transport.write(rest[:WRITE_SLICE])
            rest = rest[WRITE_SLICE:]
            self._expect(gap, "between_bytes", f"took nothing of the request for {gap:g} s")
            while self._write_paused and self._awaiting_head:
                await self._wait()
        # An engine that answers before it has read everything is believed, but the connection is spent.
        self._unsent = len(rest) > 0 or self._write_paused

    # --- a request whose body comes piece by piece -------------------------------------------------------------------

    def begin_upload(self, method: str, head: bytes, timeouts: Timeouts, total_at: float) -> None:
        """Send the head of a request; its body follows by `upload` and `end_upload`, of one task.

        Meanwhile another may wait for the answer with `answered`, and read it, before the body is complete.
        Raises RequestError if the engine is gone already.
        """
        self._unsent = self._uploading = True
        self._begin(method, timeouts, total_at)
        self._rest()
        self._transport.write(head)

    async def upload(self, data: bytes) -> None:
        """The next bytes, with their framing. Returns when the engine takes more; at once, and without effect, when
        nothing more is to be sent: after `stop_upload`, or when the connection has failed, which `answered` tells."""
        if not self._uploading:
            return
        self._transport.write(data)
        if self._write_paused:
            await self._drained()

    async def end_upload(self, last: bytes) -> None:
        """The body is complete; `last` ends its framing. From now on the engine's time to answer runs."""
        await self.upload(last)
        if not self._uploading:
            return
        self._uploading = self._unsent = False
        if self._awaiting_head:
            first_byte = self._timeouts.first_byte
            self._expect(first_byte, "first_byte", f"did not begin to answer within {first_byte:g} s")

    def stop_upload(self) -> None:
        """Send no more of the body: the connection is spent, but the engine's answer can still be read."""
        self._uploading = False
        self._wake_upload()

    async def _drained(self) -> None:
        gap = self._timeouts.between_bytes
        if self._awaiting_head:
            self._expect(gap, "between_bytes", f"took nothing of the request for {gap:g} s")
        while self._write_paused and self._uploading:
            self._drain = self._loop.create_future()
            try:
                await self._drain
            finally:
                self._drain = None
        if self._awaiting_head:
            self._rest()

    def _wake_upload(self) -> None:
        drain = self._drain
        if drain is not None and not drain.done():
            drain.set_result(None)

    # --- the answer --------------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """The next piece of the body as it came, at most SEND_FRAME_BYTES; b"" at its orderly end.

        Raises like `exchange`, after everything that came before the fault has been returned.
        """
        while not self._body:
            if self._reader.complete:
                return b""
            if self.error is not None:
                raise self.error
            gap = self._timeouts.between_bytes
            self._expect(gap, "between_bytes", f"sent nothing for {gap:g} s in the middle of its answer")
            await self._wait()
            self._rest()
        return self._take()

    def _take(self) -> bytes:
        body = self._body
        piece = bytes(body[:SEND_FRAME_BYTES])
        self._body = body[SEND_FRAME_BYTES:]
        if self._read_paused and len(self._body) < BUFFER_LOW:
            self._read_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return piece

    def finish(self, idle_seconds: float) -> bool:
        """The exchange is over. True: the connection can carry another, for `idle_seconds`; False: it is closed."""
        if not self._reader.reusable or self._unsent or self._read_paused or not self.usable:
            self.abort()
            return False
        self._body = b""
        self._idle = self.reused = True
        self._total_at = _NEVER
        self._expect(idle_seconds, "", "")
        return True

    def abort(self) -> None:
        """Close the engine's socket now: it sees the end at once, unsent bytes are dropped. Harmless when closed."""
        self._transport.abort()

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float, limit: str, late: str) -> None:
        """Something must happen within `seconds`, as the field `limit` of Timeouts says; `late` completes
        "the engine at … ". Both are empty for an idle connection."""
        when = self._loop.time() + seconds
        if when >= self._total_at:
            self._rest()
        else:
            self._late = late
            self._limit = limit
            self._set_deadline(when)

    def _rest(self) -> None:
        """Nothing is waited for; only the exchange as a whole may not take longer than allowed."""
        self._late = ""
        self._limit = "total"
        self._set_deadline(self._total_at)

    def _set_deadline(self, when: float) -> None:
        self._deadline = when
        if when < self._timer_at:  # never true for "no deadline"
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        now = self._loop.time()
        if self._deadline > now + 0.001:  # moved since the timer was armed; loops round to milliseconds
            self._set_deadline(self._deadline)
        elif self._idle:
            self.abort()
        else:
            late = self._late or f"was not done within {self._timeouts.total:g} s"
            self._fail(EngineTimeoutError(f"the engine at {self._name} {late}", self._limit))

    # --- the one waiter ----------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until something happened; the caller looks what."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _notify(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: RequestError) -> None:
        if self.error is None:
            self.error = error
        self._deadline = _NEVER
        self.abort()
        self.stop_upload()
        self._notify()

    # --- called by the transport -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._idle:
            self._feed(self._buffer[:nbytes])
        elif self.reused or self._early:
            self.abort()  # bytes nobody asked for: whose answer would they be?
        else:
            self._early = bytes(self._buffer[:nbytes])  # an engine that refuses everybody may say so at once

    def _feed(self, data: bytes | memoryview) -> None:
        reader = self._reader
        first = not reader.started
        try:
            reader.feed(data)
        except UpstreamProtocolError as error:
            self._keep(reader.take())
            if first and bytes(data[:2]) == _TLS_ALERT:
                speaks_tls = f"what listens at {self._name} speaks TLS; its URL begins with https://"
                self._fail(RequestError(ErrorKind.ENGINE_ERROR, speaks_tls))
            else:
                self._fail(UpstreamProtocolError(f"the engine at {self._name}: {error.message}"))
            return
        self._keep(reader.take())
        if reader.head_complete:
            self._notify()
        elif (
            reader.in_head and not self._unsent
        ):  # the rest of a head may not dawdle, however long the first byte may take
            gap = self._timeouts.between_bytes
            if self._loop.time() + gap < self._deadline:
                self._expect(gap, "between_bytes", f"stopped for {gap:g} s in the middle of its answer's head")

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        if not self._body:
            self._body = piece
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece
        if len(self._body) >= BUFFER_HIGH and not self._read_paused and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._reader.end()  # some answers end with their connection
        return False  # the transport closes itself, and `connection_lost` follows

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._notify()
        self._wake_upload()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._idle and not self._reader.complete and self.error is None:
            self.error = self._broken("reset the connection" if exc is not None else "closed the connection")
        self.stop_upload()
        self._notify()
        if not self.lost.done():
            self.lost.set_result(None)
        self._on_lost(self)

    def _broken(self, what: str) -> RequestError:
        when = "before it answered" if not self._reader.head_complete else "in the middle of its answer"
        return RequestError(ErrorKind.ENGINE_ERROR, f"the engine at {self._name} {what} {when}")

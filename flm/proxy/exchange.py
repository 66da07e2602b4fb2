"""One request in progress: what is known of it so far, and the one way to break it off.

Whatever ends a request from outside (the client left, a timeout, the worker stops) calls `interrupt` with the reason;
the request's own task is cancelled, unwinds through the rooms it is in, and `app` finds the reason here. The first
reason counts.

Does not know routes, engines or what is answered. `head` is None until it has been read; `body_begun` and
`body_unread` say how far its body is; `closing`: the answer ends the connection; `answered`: its last byte has been
handed to the server; `record` is filled by each room for the one log line and the one row of the audit log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from flm.policy.restrictions import Restriction
from flm.proxy.audit import Auditor
from flm.proxy.head import Head
from flm.proxy.recorder import Record
from flm.proxy.watchdog import Watchdog

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], "asyncio.Future[Message]"]  # the server's awaitables are futures: no task is needed to watch one
Send = Callable[[Message], Awaitable[None]]


# How long a request runs before its client is watched. Watching costs a wake-up of the server's thread and one of the
# loop's, which a request that is answered at once need not pay; and it is well below the 250 ms in which an engine
# must learn that its client has left.
WATCH_AFTER_SECONDS: Final = 0.05


class ClientGoneError(Exception):
    """The client closed its connection, or its end of it."""


class ClientTooSlowError(Exception):
    """The client does not read what it asked for, or more slowly than `proxy.min_bytes_per_second`."""


class Exchange:
    """One request in progress."""

    __slots__ = (
        "_asked",
        "_interruption",
        "_over",
        "_row",
        "_row_error",
        "_started",
        "_task",
        "_watch_timer",
        "answered",
        "auditor",
        "body_begun",
        "body_unread",
        "closing",
        "head",
        "loop",
        "receive",
        "record",
        "request_id",
        "restriction",
        "scope",
        "send",
        "timed",
        "watchdog",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str, record: Record) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.record = record
        self.head: Head | None = None
        self.restriction: Restriction | None = None  # of the key it came with
        self.timed = False  # whether the key may learn where the time went
        self._asked: float | None = None
        self.body_unread = True
        self.body_begun = False
        self.closing = False
        self.answered = False
        self.auditor: Auditor | None = None
        self._row = 0
        self._row_error: str | None = None
        self._started = time.perf_counter()
        self.loop = asyncio.get_running_loop()
        self.watchdog = Watchdog(self.loop, self.interrupt)
        self._task = asyncio.current_task()
        self._watch_timer: asyncio.TimerHandle | None = None
        self._interruption: Exception | None = None
        self._over = False

    def name(self, request_id: str | None) -> None:
        """Take over the id that somebody trusted gave the request, if any."""
        if request_id is not None:
            self.request_id = self.record.request_id = request_id

    def elapsed_ms(self) -> float:
        """Milliseconds since the request began."""
        return round((time.perf_counter() - self._started) * 1000, 2)

    def asks(self) -> None:
        """The engine is asked now. Noted for those who may know."""
        if self.timed:
            self._asked = time.perf_counter()

    def timing(self) -> bytes:
        """Where the time went until now (W3C Server Timing): FLM's own share before it asked an engine, and what came
        after, in milliseconds."""
        now = time.perf_counter()
        asked = self._asked if self._asked is not None else now
        own = b"flm;dur=%.2f" % ((asked - self._started) * 1000)
        return own if self._asked is None else own + b", engine;dur=%.2f" % ((now - asked) * 1000)

    def audit(self, last: int) -> None:
        """Before the last bytes of the answer, `last` of them, are handed to the server: write its row, unless it is
        written."""
        if self.auditor is not None and not self._row:
            self._row_error = self.record.error_type
            self._row = self.auditor.write(self.record, self.elapsed_ms(), last)

    def settle(self) -> None:
        """The request is over: write its row if that is still to be done, or if something else became of it."""
        record = self.record
        record.latency_ms = self.elapsed_ms()
        if self.auditor is not None and (not self._row or record.error_type != self._row_error):
            self._row = self.auditor.write(record, record.latency_ms, serial=self._row)
            self._row_error = record.error_type

    def interrupt(self, reason: Exception) -> None:
        """Break the request off: `reason` is raised where its task waits. Nothing happens once it is over."""
        if self._over or self._interruption is not None or self._task is None:
            return
        self._interruption = reason
        self._task.cancel()

    def interrupted(self) -> Exception | None:
        """The reason of a cancellation that `interrupt` caused, once; None: somebody else cancelled the task."""
        reason = self._interruption
        if reason is not None and self._task is not None:
            self._task.uncancel()
        return reason

    def forget_interruption(self) -> None:
        """The reason has been dealt with; the next one counts again (a client may leave while it gets an error)."""
        self._interruption = None

    def watch_client(self) -> None:
        """Soon the request will be interrupted if the client leaves, or has left. The body must have been read."""
        self._watch_timer = self.loop.call_later(WATCH_AFTER_SECONDS, self._watch)

    def _watch(self) -> None:
        self.receive().add_done_callback(self._received)

    def _received(self, future: asyncio.Future[Message]) -> None:
        if self._over or self.answered or future.cancelled():
            return  # the server also says "disconnect" when the answer is complete
        if future.result()["type"] == "http.request":
            self._watch()  # the empty frame that ends a body whose length was known
        else:
            self.interrupt(ClientGoneError())

    def end(self) -> None:
        """The request is over; nothing interrupts it any more."""
        self._over = True
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        self.watchdog.close()

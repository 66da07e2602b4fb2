"""A request's body, whole or not at all, or piece by piece: bounded in size, idle time, total time and pace.

The server has no limits of its own (docs/granian.md). A body that is cut or malformed arrives as a disconnect before
its end; it is never acted upon. After an answer that did not need the body, what is left of a small one is thrown
away so that the connection can be used again.

Does not know what the bytes mean.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flm.config import Settings
from flm.errors import ErrorKind, RequestError
from flm.proxy.exchange import Exchange
from flm.proxy.head import Head

PACE_SECONDS: Final = 30.0  # `proxy.min_bytes_per_second` is measured over this time
DRAIN_BYTES: Final = 65_536  # of an unread body, thrown away behind an answer
DRAIN_SECONDS: Final = 5.0  # nginx's lingering_timeout

CLOSE: Final = ((b"connection", b"close"),)


async def read_body(exchange: Exchange, head: Head, settings: Settings) -> bytes:
    """The whole body. Afterwards the exchange may watch its client.

    Raises RequestError: PAYLOAD_TOO_LARGE (before reading if a content-length says so), REQUEST_TIMEOUT,
    INVALID_REQUEST for a body that ended early or is malformed. All of these close the connection.
    """
    check_size(head, settings)
    exchange.body_begun = True
    reading = BodyReader(exchange, head.length, settings)
    try:
        body = await reading.run()
    finally:
        exchange.watchdog.disarm()
    exchange.body_unread = False
    exchange.record.bytes_in = len(body)
    return body


def check_size(head: Head, settings: Settings) -> None:
    """Raises RequestError PAYLOAD_TOO_LARGE if the content-length says so."""
    limit = settings.proxy_max_body_bytes
    if head.length is not None and head.length > limit:
        raise _too_large(limit)


class BodyReader:
    """The receive loop of one body, for one task. Raises like `read_body`, but for `check_size`.

    `watchdog` measures the client: the request's own, unless set. `cut`: the body ended early or is malformed.
    """

    __slots__ = (
        "_ended", "_exchange", "_idle", "_length", "_limit", "_pace", "_pace_bytes", "_pace_from", "_size", "_until",
        "cut", "watchdog",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, length: int | None, settings: Settings) -> None:
        now = exchange.loop.time()
        self._exchange = exchange
        self._length = length
        self._limit = settings.proxy_max_body_bytes
        self._idle = settings.proxy_body_idle_timeout_seconds
        self._until = now + settings.proxy_body_total_timeout_seconds
        self._pace = settings.proxy_min_bytes_per_second
        self._pace_from = now
        self._pace_bytes = 0
        self._size = 0
        self._ended = self.cut = False
        self.watchdog = exchange.watchdog

    def excuse(self, seconds: float) -> None:
        """For so long the client was not asked for more: no fault of its own."""
        self._until += seconds
        self._pace_from += seconds

    async def next(self) -> bytes | None:
        """The next piece, possibly empty; None at the end."""
        return None if self._size == self._length or self._ended else await self._piece()

    async def run(self) -> bytes:
        first = await self._piece()
        if first is None or self._size == self._length:
            return first or b""
        pieces = [first]
        while (piece := await self._piece()) is not None:
            pieces.append(piece)
            if self._size == self._length:
                break  # the server's empty last frame is still to come; whoever watches the client takes it
        return b"".join(pieces)

    async def _piece(self) -> bytes | None:
        """The next piece, b"" included; None at the end."""
        exchange = self._exchange
        now = exchange.loop.time()
        self.watchdog.arm(min(now + self._idle, self._until), _timed_out)
        message = await exchange.receive()
        if message["type"] != "http.request":
            self.cut = True
            raise RequestError(ErrorKind.INVALID_REQUEST, "the request body ended early or is malformed", headers=CLOSE)
        piece: bytes = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        if not piece and self._ended:
            return None
        self._size += len(piece)
        if self._size > self._limit:
            raise _too_large(self._limit)
        self._check_pace(len(piece))
        return piece

    def _check_pace(self, size: int) -> None:
        self._pace_bytes += size
        now = self._exchange.loop.time()
        passed = now - self._pace_from
        if passed < PACE_SECONDS:
            return
        if self._pace_bytes < passed * self._pace:
            raise _timed_out()
        self._pace_from, self._pace_bytes = now, 0


def _timed_out() -> RequestError:
    return RequestError(ErrorKind.REQUEST_TIMEOUT, "the request body did not arrive in time", headers=CLOSE)


def _too_large(limit: int) -> RequestError:
    message = f"the request body is larger than {limit} bytes (setting proxy.max_body_bytes)"
    return RequestError(ErrorKind.PAYLOAD_TOO_LARGE, message, headers=CLOSE)


def is_drainable(exchange: Exchange, head: Head) -> bool:
    """Whether an unread body is worth throwing away: untouched, on its way, and small or of unknown length."""
    if exchange.body_begun or b"expect" in head.fields:
        return False
    return head.length is None or head.length <= DRAIN_BYTES


async def drain(exchange: Exchange) -> bool:
    """Throw away what is left of a small body after the answer. Whether that was all: else the connection is no more of
    use."""
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await exchange.receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return True
                left -= len(message.get("body", b""))
    except TimeoutError:
        pass
    return False

"""Puts one answer on a connection as its directives ask: late, slowly, in odd pieces, cut, stalled or never ending.

Knows bytes and time; knows no dialect and nothing of how requests are read. One coroutine per answer; it is cancelled
when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Protocol

from flm.demo.dialect import Answer, Dialect, Request
from flm.demo.directives import Directives
from flm.demo.journal import Journal, Record

LAST_CHUNK = b"0\r\n\r\n"
GARBAGE = bytes(range(255, -1, -1)) * 4
LINE_BLOCK = b"x" * 65536


class Wire(Protocol):
    """The connection, as far as an answer needs it."""

    def write(self, data: bytes) -> None: ...

    async def drained(self) -> None:
        """Returns when what was written has left or may wait no longer; at once when the socket takes more."""

    async def flushed(self) -> None:
        """Returns when everything that was written is with the kernel."""

    def close(self, reset: bool) -> None: ...


class TrippedError(Exception):
    """The byte was reached at which the answer is to fail."""


class Delivery:
    """One answer on its way. `keep_alive` says afterwards whether the connection may be used again."""

    def __init__(self, wire: Wire, journal: Journal, record: Record, request: Request, pace: float) -> None:
        self._wire = wire
        self._journal = journal
        self._record = record
        self._request = request
        self._pace = pace
        self.keep_alive = request.keep_alive

    async def run(self, dialect: Dialect, answer: Answer) -> None:
        directives = answer.directives
        self.keep_alive = self.keep_alive and directives.after != "close"
        try:
            await self._before(directives)
            self._write(self._head(dialect, answer))
            self._record.status = answer.status
            self._room = trip_point(directives)
            await self._body(pieces_of(answer), directives)
        except TrippedError:
            await self._fail(directives)
            return
        self._journal.finished(self._record)
        if directives.after == "drop":
            await self._close(directives)

    async def _before(self, directives: Directives) -> None:
        if directives.hold and not directives.hold_at:
            await self._journal.hold(directives.hold)
        if directives.first:
            await asyncio.sleep(directives.first)
        if trip_point(directives) == -1:
            raise TrippedError

    def _head(self, dialect: Dialect, answer: Answer) -> bytes:
        length = len(answer.body) if isinstance(answer.body, bytes) else None
        return dialect.head(answer, length, self._request.created, self.keep_alive)

    def _write(self, data: bytes) -> None:
        if self._record.first_byte_at is None:
            self._journal.started(self._record)
        self._record.bytes_sent += len(data)
        self._wire.write(data)

    async def _body(self, pieces: Iterable[bytes], directives: Directives) -> None:
        if self._room == 0:
            raise TrippedError
        between = directives.between or self._pace
        for number, piece in enumerate(pieces, 1):
            if directives.hold and directives.hold_at == number:
                await self._journal.hold(directives.hold)
            if between and number > 1:
                await asyncio.sleep(between)
            for part in split(piece, directives.split):
                await self._send(part)

    async def _send(self, part: bytes) -> None:
        """One write, after a turn of the loop: each piece travels by itself, and others get their share.

        Nothing is awaited after the write, so that a client which leaves once it has the last byte has not left early.
        """
        await self._wire.drained()
        await asyncio.sleep(0)
        if self._room is not None and len(part) >= self._room:
            self._write(part[: self._room])
            raise TrippedError
        self._write(part)
        if self._room is not None:
            self._room -= len(part)

    _room: int | None = None  # bytes of the body until the answer fails

    async def _fail(self, directives: Directives) -> None:
        self._journal.failed(self._record)
        if directives.stall is not None and directives.cut is None and directives.garbage is None:
            await asyncio.get_running_loop().create_future()  # until the client leaves
        if directives.garbage is not None:
            self._wire.write(GARBAGE)
        await self._close(directives)

    async def _close(self, directives: Directives) -> None:
        await self._wire.flushed()
        self._wire.close(directives.end == "rst")


def trip_point(directives: Directives) -> int | None:
    """After how many bytes of the body the answer fails; -1 before the head, None never."""
    points = [point for point in (directives.cut, directives.stall, directives.garbage) if point is not None]
    return min(points, default=None)


def pieces_of(answer: Answer) -> Iterator[bytes]:
    """The body as it is framed on the wire."""
    if isinstance(answer.body, bytes):
        yield answer.body
        return
    for number, piece in enumerate(answer.body):
        yield chunk(piece)
        if number == 0 and answer.directives.line:
            for _ in range(answer.directives.line * 16):
                yield chunk(LINE_BLOCK)
    yield LAST_CHUNK


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def split(piece: bytes, size: int) -> Iterable[bytes]:
    return [piece] if not size else [piece[at : at + size] for at in range(0, len(piece), size)]

"""How a stream of bytes falls into lines and events: NDJSON and server-sent events, sans-io.

Knows nothing of JSON, HTTP or engines: bytes go in as they came from a socket, cut anywhere; whole lines or events
come out. Strategy: only new bytes are searched, an unfinished line waits in one growing buffer, so the work is linear
in the input whatever its cutting, and what is held is bounded by MAX_LINE_BYTES.

Server-sent events follow the WHATWG text: lines end in CR, LF or CRLF; a byte order mark may stand in front; a line
that begins with `:` is a comment; one blank after the colon belongs to the syntax; several `data` lines make one value
joined by LF; an empty line ends the event. In one point the reader is kinder than the text: an event that the end of
the stream cuts off before its empty line is given out by `finish`.
"""

from __future__ import annotations

import msgspec

from flm.config import MAX_LINE_BYTES
from flm.errors import UpstreamProtocolError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KNOWN_FIELDS = frozenset({b"event", b"id", b"retry"})
_LINE_COST = 16  # what a held line costs besides its bytes, so that a flood of empty lines is bounded too


class Event(msgspec.Struct, frozen=True, gc=False):
    """One server-sent event. `data` is its value, several lines joined by LF.

    `fields` are its other lines as they came (`event: …`, `id: …`, names nobody knows), joined by LF.
    """

    data: bytes
    fields: bytes = b""


class Comment(msgspec.Struct, frozen=True, gc=False):
    """One comment line, from its colon on and without its line end."""

    line: bytes


def _too_long() -> UpstreamProtocolError:
    return UpstreamProtocolError(f"the engine sent a line of more than {MAX_LINE_BYTES} bytes")


class LineReader:
    """Lines that end in LF; a CR before it stays.

    A line over MAX_LINE_BYTES raises UpstreamProtocolError, once the lines before it have been given out.
    """

    __slots__ = ("_held", "_overflow")

    def __init__(self) -> None:
        self._held = bytearray()
        self._overflow = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        held = self._held
        lines = data.split(b"\n")
        rest = lines.pop()
        if held and lines:
            lines[0] = bytes(held) + lines[0]
            held.clear()
        held += rest
        if self._overflow or len(held) > MAX_LINE_BYTES or len(data) > MAX_LINE_BYTES or _is_too_long(lines):
            return self._cut(lines)
        return lines

    def finish(self) -> list[bytes]:
        """What is left when the stream ends without a last line end: one line or none."""
        if self._overflow:
            raise _too_long()
        rest = bytes(self._held)
        self._held.clear()
        return [rest] if rest else []

    def _cut(self, lines: list[bytes]) -> list[bytes]:
        """Only the lines before the first that is too long, if one is."""
        whole = len(lines)
        for index, line in enumerate(lines):
            if len(line) > MAX_LINE_BYTES:
                whole = index
                break
        overflow = self._overflow or whole < len(lines) or len(self._held) > MAX_LINE_BYTES
        if overflow and (self._overflow or not whole):
            raise _too_long()
        self._overflow = overflow
        return lines[:whole]


def _is_too_long(lines: list[bytes]) -> bool:
    """Only the first line can hold older bytes, so only it can be too long when the new ones are few."""
    return bool(lines) and len(lines[0]) > MAX_LINE_BYTES


class EventReader:
    """Server-sent events, with the comments between them in their order.

    Events without data are left out unless a line with an unknown field name stands in them: such a line may be the
    only trace of an engine's failure. Raises UpstreamProtocolError when a line, or the data of one event, is longer
    than MAX_LINE_BYTES.
    """

    __slots__ = ("_data", "_fields", "_first", "_lines", "_size", "_skip_line_feed")

    def __init__(self) -> None:
        self._lines = LineReader()
        self._data: list[bytes] = []
        self._fields: list[bytes] = []
        self._size = 0
        self._first = True
        self._skip_line_feed = False

    def feed(self, data: bytes) -> list[Event | Comment]:
        """The events and comments that `data` completes."""
        if self._skip_line_feed and data:
            self._skip_line_feed = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._skip_line_feed = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return self._read(self._lines.feed(data))

    def finish(self) -> list[Event | Comment]:
        """What is left when the stream ends: at most the rest of the last event and a comment."""
        return self._read([*self._lines.finish(), b""])

    def _read(self, lines: list[bytes]) -> list[Event | Comment]:
        found: list[Event | Comment] = []
        if lines and self._first:
            self._first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        for line in lines:
            if not line:
                if self._data or self._fields:
                    self._close(found)
            elif line.startswith(b"data:"):
                self._hold(self._data, line[6:] if line.startswith(b"data: ") else line[5:])
            elif line.startswith(b":"):
                found.append(Comment(line))
            elif line == b"data":
                self._hold(self._data, b"")
            else:
                self._hold(self._fields, line)
        return found

    def _hold(self, lines: list[bytes], line: bytes) -> None:
        lines.append(line)
        self._size += len(line) + _LINE_COST
        if self._size > MAX_LINE_BYTES + _LINE_COST:
            raise UpstreamProtocolError(f"the engine sent an event of more than {MAX_LINE_BYTES} bytes")

    def _close(self, found: list[Event | Comment]) -> None:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        if data or any(line.partition(b":")[0] not in _KNOWN_FIELDS for line in self._fields):
            found.append(Event(data, b"\n".join(self._fields)))
        self._data.clear()
        self._fields.clear()
        self._size = 0


def readable(data: bytes) -> bytes:
    """`data`, if it is UTF-8; JSON that FLM copies without decoding is not checked by anybody else.

    Raises UpstreamProtocolError.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            raise UpstreamProtocolError("the engine sent bytes that are not UTF-8") from None
    return data

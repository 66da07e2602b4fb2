"""One process's log: JSON lines written to a pipe that the supervisor drains, never waiting for a reader.

When the pipe is full a line is dropped and counted, for a request must not wait for a disk. A line that only half
fitted is finished first, so that the reader never sees two lines mixed.

Knows no file and no other process. Not thread-safe but for `write`, which takes a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from flm.runtime.crash import describe

LONGEST_LINE: Final = 16_384  # a line longer than this says nothing more; the pipe holds 65,536 bytes
GATHER_SECONDS: Final = 0.02
GATHER_BYTES: Final = 32_768  # half of what the pipe holds
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_CHATTY: Final = ("aiosqlite", "asyncio")  # at debug the first logs every statement with its values, secrets too

_LINE_END: Final = 0x0A

_encoder = msgspec.json.Encoder()


class LogLines:
    """The writing end. `dropped(n)` is called with the number of lines just lost."""

    def __init__(self, descriptor: int, dropped: Callable[[int], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._dropped = dropped
        self._rest = b""
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Write one line, given without its line end."""
        self.write_all((line,))

    def write_all(self, lines: Sequence[bytes]) -> None:
        """Write several, in one go if they fit; those of which not a byte fits are dropped."""
        with self._lock:
            if not self._flush_rest():
                self._dropped(len(lines))
                return
            data = b"".join(line[:LONGEST_LINE] + b"\n" for line in lines)
            written = self._write(data)
            if written == len(data):
                return
            begun = 0 if written == 0 or data[written - 1] == _LINE_END else data.index(b"\n", written) + 1
            self._rest = data[written:begun]  # of a line that half fitted
            self._dropped(data.count(b"\n", max(written, begun)))

    def _flush_rest(self) -> bool:
        if self._rest:
            self._rest = self._rest[self._write(self._rest) :]
        return not self._rest

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except (BlockingIOError, BrokenPipeError):
            return 0


class Batch:
    """Collects the lines of requests and writes them together, GATHER_SECONDS after the first at the latest.

    One write a request would cost more than anything else that FLM does for it. What is lost with a process that is
    killed is what it gathered; an orderly end calls `flush`. For one event loop, and only from its thread.
    """

    def __init__(self, lines: LogLines) -> None:
        self._lines = lines
        self._gathered: list[bytes] = []
        self._size = 0

    def write(self, line: bytes) -> None:
        """One line, given without its line end."""
        if not self._gathered:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)
        self._gathered.append(line)
        self._size += len(line)
        if self._size >= GATHER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        if gathered:
            self._lines.write_all(gathered)


class JsonHandler(logging.Handler):
    """Turns records of `logging` into the same JSON lines as a request's. Exceptions are named, with their place."""

    def __init__(self, lines: LogLines, process: str) -> None:
        super().__init__()
        self._lines = lines
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(render(record, self._process))
        except Exception:
            self.handleError(record)


class _Line(msgspec.Struct, omit_defaults=True):
    timestamp: str
    level: str
    process: str
    logger: str
    message: str
    error: str | None = None


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339 UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def render(record: logging.LogRecord, process: str) -> bytes:
    """A record as one line of JSON."""
    error = None
    if record.exc_info and record.exc_info[1] is not None:
        error = describe(record.exc_info[1])
    level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
    return _encoder.encode(_Line(timestamp(record.created), level, process, record.name, record.getMessage(), error))


def install(lines: LogLines, process: str, level: str) -> None:
    """Send everything this process logs to `lines`, from `level` on."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler(lines, process)]
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)

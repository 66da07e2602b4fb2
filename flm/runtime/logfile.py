"""The log of a whole proxy: a thread that drains every process's log pipe into a rotated file, or into stderr.

Strategy: a thread of its own, so that a slow disk or a stopped terminal delays neither the supervisor nor, since
their pipes never block, the workers. What a disk refuses is dropped and counted, and said once it takes lines again.
Lines that are no JSON (a crash's last words on a worker's stderr) are wrapped, so that the file stays JSON lines.

Knows no process and no setting by name.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import threading
import time
from pathlib import Path
from typing import Final, Protocol

import msgspec

from flm.runtime.loglines import timestamp

READ_BYTES: Final = 65_536  # what a pipe holds
LONGEST_PART: Final = 65_536  # a line without an end is cut here
_encoder = msgspec.json.Encoder()


class Sink(Protocol):
    """Where whole lines go. `write` may block, and raises OSError when it cannot."""

    def write(self, lines: bytes) -> None: ...


class Terminal:
    """stderr, for a proxy in the foreground."""

    def write(self, lines: bytes) -> None:
        view = memoryview(lines)
        while view:
            view = view[os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, view) :]


class RotatedFile:
    """`path`, then `path.1` … `path.keep`; a new file is begun when the next lines would pass `max_bytes`."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = -1
        self._size = 0
        self._torn = False  # the file ends in half a line

    def write(self, lines: bytes) -> None:
        if self._descriptor < 0:
            self._open()
        if self._size and self._size + len(lines) > self._max_bytes:
            self._rotate()
        if self._torn:
            lines = b"\n" + lines
        written = os.write(self._descriptor, lines)
        self._size += written
        self._torn = written < len(lines)
        if self._torn:  # the disk is nearly full: the rest would be refused too
            raise OSError(f"{len(lines) - written} bytes were not written")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        if not self._keep:
            self._path.unlink(missing_ok=True)
        self._torn = False
        self._open()


class LogDrain:
    """The thread. Pipes are added from any thread; each is closed by the thread when its last writer is gone."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        self._added: list[int] = []
        self._partial: dict[int, bytes] = {}
        self._stopping = False
        self._lost = 0
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, descriptor: int) -> None:
        """Drain the reading end of a pipe from now on, and own it."""
        with self._lock:
            self._added.append(descriptor)
        self._wake()

    def open_descriptors(self) -> list[int]:
        """The reading ends that are drained now; for handing them on after `stop`."""
        with self._lock:
            return [*self._added, *self._partial]

    def stop(self, timeout: float) -> None:
        """Drain what is there, end the thread, leave the pipes open. Gives up after `timeout` seconds."""
        self._stopping = True
        self._wake()
        self._thread.join(timeout)

    def _wake(self) -> None:
        os.write(self._wake_write, b"w")

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            with self._lock:
                for descriptor in self._added:
                    os.set_blocking(descriptor, False)
                    self._selector.register(descriptor, selectors.EVENT_READ)
                    self._partial[descriptor] = b""
                self._added.clear()
            events = self._selector.select(0 if stopping else None)
            for key, _ in events:
                if key.fd == self._wake_read:
                    os.read(self._wake_read, READ_BYTES)
                else:
                    self._drain(key.fd)
            if stopping and not any(key.fd != self._wake_read for key, _ in events):
                return

    def _drain(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(descriptor)
            return
        whole, _, rest = (self._partial[descriptor] + data).rpartition(b"\n")
        if len(rest) > LONGEST_PART:
            whole, rest = (whole + b"\n" if whole else b"") + rest, b""
        with self._lock:
            self._partial[descriptor] = rest
        if whole:
            self._write(whole.split(b"\n"))

    def _forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        with self._lock:
            rest = self._partial.pop(descriptor)
        os.close(descriptor)
        if rest:
            self._write([rest])

    def _write(self, lines: list[bytes]) -> None:
        text = b"".join((line if line.startswith(b"{") else _wrapped(line)) + b"\n" for line in lines if line)
        if self._lost:
            text = _note(f"{self._lost} log lines were lost: the log could not be written") + b"\n" + text
        try:
            self._sink.write(text)
            self._lost = 0
        except OSError:
            self._lost += len(lines)


def _wrapped(line: bytes) -> bytes:
    return _note(line.decode("utf-8", "replace"))


def _note(message: str) -> bytes:
    return _encoder.encode(
        {"timestamp": timestamp(time.time()), "level": "error", "logger": "stderr", "message": message}
    )

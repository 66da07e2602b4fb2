"""The supervisor's log: its own lines and its workers' pipes, drained into one place.

Knows where lines go (`logfile`) and how they look (`loglines`); knows no worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flm.config import Settings
from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.runtime.logfile import LogDrain, RotatedFile, Sink, Terminal
from flm.runtime.loglines import LogLines, install

STOP_SECONDS: Final = 2.0  # for the last lines to reach the disk


def prepare_folder(folder: Path, root: Path) -> None:
    """Make sure of the log file's folder: ours inside the data folder `root`; elsewhere it is somebody's, and stays as
    it is. Raises PROXY_INVALID_CONFIG, IO_ERROR.
    """
    if folder.is_relative_to(root):
        secure_folder(folder)
    elif not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise CommandError(
            CommandCode.PROXY_INVALID_CONFIG,
            f"log.file says {folder}, which is no folder that can be written to; make it, or set another log.file",
        )


def open_journal(path: Path | None, settings: Settings) -> Journal:
    """A journal that writes to a file at `path`, rotated as `settings` say, or to the terminal (None)."""
    return Journal(Terminal() if path is None else RotatedFile(path, settings.log_max_bytes, settings.log_keep))


class Journal:
    """Drains every pipe it hands out, from `begin` to `end`. `own`: the supervisor's own pipe (reading, writing)."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._drain = LogDrain(sink)
        self.own: tuple[int, int] = (-1, -1)

    def begin(self, level: str) -> None:
        """Log from now on, lines of `level` and above."""
        self.adopt(os.pipe(), (), level)

    def adopt(self, own: tuple[int, int], others: Sequence[int], level: str) -> None:
        """Go on with the pipes of an earlier image of this process: its own, and the reading ends of its workers'."""
        self.own = own
        for descriptor in (*others, own[0]):
            self._drain.add(descriptor)
        self._drain.start()
        self.set_level(level)

    def set_level(self, level: str) -> None:
        install(LogLines(self.own[1], lambda _: None), "supervisor", level)

    def pipe(self) -> int:
        """The writing end of a new pipe, for a worker; the caller closes its copy."""
        reading, writing = os.pipe()
        self._drain.add(reading)
        return writing

    def others(self) -> list[int]:
        """The reading ends of the workers' pipes, as they are now."""
        return [descriptor for descriptor in self._drain.open_descriptors() if descriptor != self.own[0]]

    def pause(self) -> None:
        """Write down what is there and leave the pipes open; lines wait in them."""
        self._drain.stop(STOP_SECONDS)

    def resume(self, level: str) -> None:
        """After `pause`: drain the same pipes again."""
        others = self.others()
        self._drain = LogDrain(self._sink)
        self.adopt(self.own, others, level)

    def end(self) -> None:
        """Write down what is there; for the end of the process."""
        if self.own[0] >= 0:
            self._drain.stop(STOP_SECONDS)

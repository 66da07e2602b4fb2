"""Folders for what must lie in clear for as long as a command runs: copies for a backup, what a restore has unsealed.

Strategy: each is private, in the data folder, and its user holds a lock (flock) on it until it is gone. So whoever
comes next can tell what a killed command left behind, and removes it: the next command that opens the databases does,
and so does the start of a proxy.

Knows nothing of what is in them. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flm.disk.locks import try_lock

COPIES: Final = ".backup-"
UNSEALED: Final = ".restore-"
_LOOKING: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def workspace(root: Path, beginning: str) -> Iterator[Path]:
    """A private folder in `root` that is gone afterwards. `beginning`: COPIES or UNSEALED. Raises OSError."""
    sweep(root)
    path, lock = _create(root, beginning)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(root: Path) -> None:
    """Remove what killed commands left in `root`. What somebody uses stays, and what cannot be removed."""
    with contextlib.suppress(OSError), os.scandir(root) as found:
        for each in found:
            if each.name.startswith((COPIES, UNSEALED)):
                _remove(Path(each.path))


def _create(root: Path, beginning: str) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        path = root / f"{beginning}{os.getpid()}-{time.monotonic_ns()}"
        os.mkdir(path, 0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, _LOOKING)
            if try_lock(lock) and path.is_dir():
                return path, lock
            os.close(lock)  # somebody who swept was between our steps: it takes the folder away


def _remove(left: Path) -> None:
    try:
        lock = os.open(left, _LOOKING)
    except OSError:
        return  # it is gone by now, or no folder of ours
    try:
        if try_lock(lock):
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(lock)

"""Locks between processes on files and folders (flock): they leave nothing behind and die with their holder.

Knows what is locked by nothing but its path. Blocking.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flm.errors import CommandCode, CommandError

_POLL_SECONDS: Final = 0.01


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock what is open as `descriptor`, until that is closed, alone or with others that are `shared` too. False if
    somebody else has it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def holding(folder: Path, seconds: float, code: CommandCode, doing: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on `folder` itself, as `try_lock`. Raises `code` after so many seconds, and says what others are
    `doing` ("at work in"); OSError if the folder cannot be opened."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + seconds
        while not try_lock(descriptor, shared=shared):
            if time.monotonic() > deadline:
                raise CommandError(
                    code,
                    f"another flm has been {doing} {folder} for {seconds:g} s; "
                    "see whether it hangs (ps), end it, and try again",
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)

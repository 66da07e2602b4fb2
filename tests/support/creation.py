"""The mode that each new file has at the moment it is made, before anything could have tightened it.

Sees what is made with `os.open`, which is how FLM makes what is private.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def modes_of_new_files() -> Iterator[list[int]]:
    """Filled as files are made."""
    created: list[int] = []
    real = os.open

    def spy(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            created.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", spy)
        yield created

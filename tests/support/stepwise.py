"""A function that is cut off at each of its steps in turn: killed, or told that the disk is full.

Steps are the calls by which Python touches files and databases, as `sys.addaudithook` reports them. The function runs
in a fork of this process, so that a kill ends nothing else, and nothing of it is cleaned up.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Literal

_STEPS = ("os.", "open", "sqlite3.", "fcntl.")
FINISHED, REFUSED, BROKE = 0, 10, 11


def cut_off(work: Callable[[], object], step: int, how: Literal["kill", "full"], refusal: type[Exception]) -> int:
    """Run `work` in a fork up to its nth step: FINISHED if it has fewer, REFUSED if it raised a `refusal`, BROKE for
    another exception, -SIGKILL if it was killed there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which hold nothing here
        child = os.fork()
    if child == 0:
        _as_child(work, step, how, refusal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _as_child(work: Callable[[], object], step: int, how: str, refusal: type[Exception]) -> None:
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if not event.startswith(_STEPS):
            return
        left -= 1
        if left == 0:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        sys.addaudithook(hook)
        work()
    except refusal:
        os._exit(REFUSED)
    except BaseException:
        traceback.print_exc()
        os._exit(BROKE)
    os._exit(FINISHED)

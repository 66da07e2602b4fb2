"""How a supervisor becomes its successor: by exec, in the same process, with its descriptors and its children.

The state goes over as a document in an inherited file. The signals that a supervisor handles stay blocked from before
exec until the new image handles them again, so that none is lost, and none kills it in between.

Knows which descriptors must survive, and nothing of what they are good for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final, NoReturn

from flm.runtime.boot import SupervisorState, pack
from flm.runtime.environment import of_supervisor

HANDLED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
MODULE: Final = "flm.runtime.startup"


def descriptors(state: SupervisorState) -> list[int]:
    """Every descriptor that must survive exec."""
    workers = [worker.control_fd for worker in state.workers] + [worker.control_fd for worker in state.warm]
    single = [state.boot.lock_fd, state.shared_fd, state.keyring_fd, state.buckets_fd, state.rings_fd, state.control_fd]
    reply = [state.reply_fd] if state.reply_fd is not None else []
    return [
        *single,
        *reply,
        *state.listening_fds,
        *state.plain_fds,
        *state.life_fds,
        *state.log_fds,
        *state.own_log_fds,
        *workers,
    ]


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """While the block lasts, signals wait; over exec they wait until the new image handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become(state: SupervisorState) -> NoReturn:
    """Replace this process's program by the one that is installed now; to be called with the signals held.

    Raises OSError if the system refuses; then nothing has changed.
    """
    document = pack(state)
    inherited = [document, *descriptors(state)]
    try:
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        os.execve(  # noqa: S606 - our own interpreter and module
            sys.executable, [sys.executable, "-P", "-m", MODULE, "--resume", str(document)], of_supervisor(os.environ)
        )
    finally:
        keep_private(state)
        os.close(document)


def keep_private(state: SupervisorState) -> None:
    """What came over exec must not go on to other programs by accident: the end of the life pipe least of all."""
    for descriptor in descriptors(state):
        os.set_inheritable(descriptor, False)

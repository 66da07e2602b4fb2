"""Workers that have imported everything and wait for their boot document: what a restart prepares before it begins.

Importing is most of a worker's start, and shows whether the new version's workers can start at all. So it is done by
the processes that will serve, while the old version is still in charge; after exec the new image hands each its
document and its descriptors over its socket pair. One that is not needed ends when its socket pair is closed.

Knows how to start, keep, hand over and end them; knows no slot and no settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from flm.runtime.boot import WarmState, Word
from flm.runtime.environment import of_worker

SECONDS: Final = 30.0  # imports on a cold, loaded disk
_LINE_BYTES: Final = 4096


class WarmUpError(Exception):
    """A worker of the version that is installed now cannot start; the text says why."""


class WarmWorker:
    """One process that waits for its document on `control`."""

    def __init__(self, pid: int, control: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.control = control
        self.process = process  # kept only so that it is not collected, and complains, before it is reaped


class WarmWorkers:
    """Those that wait, and those that are ending unused."""

    def __init__(self, module: str, new_log_pipe: Callable[[], int]) -> None:
        self._module = module
        self._new_log_pipe = new_log_pipe
        self._waiting: list[WarmWorker] = []
        self._ending: list[WarmWorker] = []

    async def prepare(self, count: int) -> None:
        """Start `count` of them, and return when all wait. Raises WarmUpError, OSError; then none is left waiting."""
        try:
            for _ in range(count):
                self._waiting.append(self._start())
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*(self._await_word(worker) for worker in self._waiting))
        except BaseException as error:
            self.dismiss()
            if isinstance(error, TimeoutError):
                raise WarmUpError(f"a worker took over {SECONDS:g} s to import what it needs") from None
            raise

    def adopt(self, states: Sequence[WarmState]) -> None:
        """Take over those that an earlier image of this process prepared."""
        self._waiting += [WarmWorker(each.pid, socket.socket(fileno=each.control_fd), None) for each in states]

    def states(self) -> list[WarmState]:
        return [WarmState(each.pid, each.control.fileno()) for each in self._waiting]

    def take(self) -> WarmWorker | None:
        """One that waits, now the caller's own; None if there is none."""
        return self._waiting.pop() if self._waiting else None

    def give_back(self, worker: WarmWorker) -> None:
        """One that was taken and turned out to be gone."""
        worker.control.close()
        self._ending.append(worker)

    def dismiss(self) -> None:
        """End those that are left."""
        for each in self._waiting:
            each.control.close()
        self._ending += self._waiting
        self._waiting = []

    def reap(self) -> None:
        """Called on SIGCHLD: collect those that ended."""
        for group in (self._waiting, self._ending):
            for each in list(group):
                with contextlib.suppress(ChildProcessError):
                    pid, status = os.waitpid(each.pid, os.WNOHANG)
                    if not pid:
                        continue
                    if each.process is not None:
                        each.process.returncode = os.waitstatus_to_exitcode(status)
                group.remove(each)

    def _start(self) -> WarmWorker:
        ours, theirs = socket.socketpair()
        log_fd = self._new_log_pipe()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-P", "-m", self._module, "--warm", str(theirs.fileno()), str(log_fd)],
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    env=of_worker(os.environ),
                    pass_fds=(theirs.fileno(), log_fd),
                    process_group=0,
                )
            finally:
                os.close(log_fd)
        ours.setblocking(False)
        return WarmWorker(process.pid, ours, process)

    async def _await_word(self, worker: WarmWorker) -> None:
        """Its first and only word before it is handed its document."""
        line = await asyncio.get_running_loop().sock_recv(worker.control, _LINE_BYTES)
        if not line:
            raise WarmUpError("a worker ended while it imported what it needs; the log says why")
        word = msgspec.json.decode(line, type=Word)
        if word.event != "warm":
            raise WarmUpError(word.message)

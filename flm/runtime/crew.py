"""The workers as the supervisor sees them: starting one, hearing from it, noticing that it died or hangs.

A worker is a process of its own (exec, never a bare fork), with one end of a socket pair. Its death is known from
SIGCHLD, its readiness from its own word, its health from the heartbeat in shared memory. Works the same for workers
that an earlier image of this process started, which are children of this pid still.

Decides nothing: what to do about a death or a word is told by `Watcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from flm.runtime.boot import Order, Word, WorkerBoot, WorkerState, hand_over, pack
from flm.runtime.environment import of_worker
from flm.runtime.memory import CELLS, Memory
from flm.runtime.warm import WarmWorker

HANG_SECONDS: Final = 10.0  # without a heartbeat: no request or collection pauses a loop nearly that long
START_SECONDS: Final = 60.0  # from starting a worker to its ready word; imports on a cold, loaded disk take ten
_LINE_BYTES: Final = 65_536

log = logging.getLogger("flm.supervisor")
_words = msgspec.json.Decoder(Word)


class StartError(Exception):
    """A worker did not come up; the text says why."""


class Member:
    """One worker process."""

    def __init__(self, state: WorkerState, process: subprocess.Popen[bytes] | None) -> None:
        self.pid = state.pid
        self.slot = state.slot
        self.cell = state.cell
        self.generation = state.generation
        self.listening_fds = state.listening_fds
        self.draining = state.draining
        self.deadline = state.deadline
        self.aborted = False
        self.started = time.monotonic()
        self.control = socket.socket(fileno=state.control_fd)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.retired = asyncio.Event()  # it accepts no more: it said so, or is gone
        if state.draining:  # adopted: an earlier image of this process has waited for its word
            self.retired.set()
        self.gone = asyncio.Event()
        self._process = process  # kept only so that it is not collected, and complains, before it is reaped
        self._partial = b""

    def state(self) -> WorkerState:
        return WorkerState(
            self.pid,
            self.slot,
            self.cell,
            self.generation,
            self.control.fileno(),
            self.listening_fds,
            self.draining,
            self.deadline,
        )

    def tell(self, order: Order) -> None:
        """Send an order; a worker that does not even take orders is killed."""
        try:
            self.control.send(msgspec.json.encode(order) + b"\n")
        except BlockingIOError:
            self.kill()
        except OSError:
            pass  # it died; SIGCHLD says so

    def kill(self) -> None:
        if not self.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def reaped(self, code: int) -> None:
        if self._process is not None:
            self._process.returncode = code
        self.control.close()
        if not self.ready.done():
            self.ready.set_exception(StartError(f"it ended with {describe(code)} before it was ready"))
            self.ready.exception()  # seen: nobody may be waiting for it
        self.retired.set()
        self.gone.set()

    def words(self) -> list[Word]:
        """What it has said meanwhile."""
        try:
            data = self.control.recv(_LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            return []
        *lines, self._partial = (self._partial + data).split(b"\n")
        words = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):  # one that was sent in part only
                words.append(_words.decode(line))
        return words


class Watcher(Protocol):
    """Who decides about workers."""

    def worker_died(self, member: Member, how: str) -> None: ...
    def worker_leaves(self, member: Member) -> None: ...
    def engine_failed(self, engine_id: str, message: str) -> None: ...
    def keys_used(self, key_ids: Sequence[str]) -> None: ...


class Crew:
    """All living workers of this supervisor."""

    def __init__(self, watcher: Watcher, memory: Memory, module: str) -> None:
        self.members: list[Member] = []
        self.memory = memory
        self._watcher = watcher
        self._module = module

    def adopt(self, states: Sequence[WorkerState]) -> None:
        """Take over workers that this process started before it exec'd. They are ready."""
        for state in states:
            member = Member(state, None)
            member.ready.set_result(None)
            self._admit(member)

    def free_cell(self) -> int:
        """A place in shared memory that no living worker uses. Raises StartError if there is none."""
        used = set(self.cells())
        for cell in range(CELLS):
            if cell not in used:
                return cell
        raise StartError(f"{CELLS} workers are alive already, most of them draining; wait for them or stop the proxy")

    def cells(self) -> list[int]:
        """The places in shared memory that living workers use."""
        return [member.cell for member in self.members]

    def start(self, boot: WorkerBoot, control: socket.socket) -> Member:
        """Start a worker from its boot document; `control` is this end of its socket pair. Raises OSError."""
        control.setblocking(False)
        document = pack(boot)
        inherited = [
            document,
            *boot.listening_fds,
            boot.shared_fd,
            boot.keyring_fd,
            boot.buckets_fd,
            boot.rings_fd,
            boot.control_fd,
            boot.life_fd,
            boot.log_fd,
        ]
        self.memory.prepare(boot.cell)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", self._module, str(document)],
                stdin=subprocess.DEVNULL,
                stdout=boot.log_fd,
                stderr=boot.log_fd,
                env=of_worker(os.environ),
                pass_fds=inherited,
                process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
                close_fds=True,
            )
        finally:
            os.close(document)
        return self._join(boot, process.pid, control, process)

    def start_warm(self, boot: WorkerBoot, waiting: WarmWorker) -> Member:
        """Give a worker that waits its boot document. Raises OSError if it is gone."""
        self.memory.prepare(boot.cell)
        hand_over(waiting.control, boot)
        return self._join(boot, waiting.pid, waiting.control, waiting.process)

    def _join(
        self, boot: WorkerBoot, pid: int, control: socket.socket, process: subprocess.Popen[bytes] | None
    ) -> Member:
        state = WorkerState(
            pid, boot.slot, boot.cell, boot.generation, control.detach(), boot.listening_fds, False, None
        )
        member = Member(state, process)
        self._admit(member)
        log.info("worker %d started: pid %d, generation %d", member.slot, member.pid, member.generation)
        return member

    def reap(self) -> None:
        """Called on SIGCHLD: collect those that died."""
        for member in list(self.members):
            try:
                pid, status = os.waitpid(member.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = member.pid, 0
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._hear(member)  # its last words, which may say why
                asyncio.get_running_loop().remove_reader(member.control.fileno())
                self.members.remove(member)
                member.reaped(code)
                self._watcher.worker_died(member, describe(code))

    def kill_hung(self) -> None:
        """Kill workers whose heart has stopped; `worker_died` follows."""
        now = time.monotonic_ns() // 1_000_000
        for member in self.members:
            if member.ready.done() and now - self.memory.shared.last_beat(member.cell) > HANG_SECONDS * 1000:
                log.error("worker %d (pid %d) hangs: no heartbeat for %g s", member.slot, member.pid, HANG_SECONDS)
                member.kill()

    async def ready(self, members: Sequence[Member]) -> None:
        """Return when all of them serve. Raises StartError with the first reason; then all of them are dead."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(*(asyncio.shield(member.ready) for member in members))
        except BaseException as error:
            for member in members:
                member.draining = True  # so that its death is nobody's surprise
                member.kill()
            await asyncio.gather(*(member.gone.wait() for member in members))
            if isinstance(error, TimeoutError):
                raise StartError(
                    f"no worker was ready within {START_SECONDS:g} s; the log says how far it came"
                ) from None
            raise

    def _admit(self, member: Member) -> None:
        self.members.append(member)
        member.control.setblocking(False)
        asyncio.get_running_loop().add_reader(member.control.fileno(), self._hear, member)

    def _hear(self, member: Member) -> None:
        for word in member.words():
            if word.event == "ready" and not member.ready.done():
                member.ready.set_result(None)
            elif word.event == "failed" and not member.ready.done():
                member.ready.set_exception(StartError(word.message))
                member.ready.exception()
            elif word.event == "retired":
                member.retired.set()
            elif word.event == "leaving":
                self._watcher.worker_leaves(member)
            elif word.event == "engine-failed":
                self._watcher.engine_failed(word.engine, word.message)
            elif word.event == "keys-used":
                self._watcher.keys_used(word.keys)


def describe(code: int) -> str:
    """An exit code for people; negative ones are signals."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

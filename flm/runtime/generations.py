"""Which workers there are and which there should be: starting a generation, replacing it, replacing one that died.

The rule behind all of it: a slot's socket is never without a worker that accepts, or one that is about to; a successor
serves before its predecessor retires; a successor that does not come up changes nothing. Draining workers are bounded
in time (`proxy.drain_timeout_seconds`) and in generations (`proxy.max_draining`).

Knows workers, sockets and settings; no database, no control socket, no signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from flm.config import Settings
from flm.errors import CommandCode, CommandError
from flm.runtime import sockets
from flm.runtime.boot import Order, Tls, WorkerBoot, WorkerState
from flm.runtime.crew import HANG_SECONDS, Crew, Member, StartError
from flm.runtime.memory import Memory
from flm.runtime.warm import WarmWorkers

KILL_SECONDS: Final = 5.0  # beyond its deadline, before a worker is killed (T_KILL = T_DRAIN + 5 s)
RETIRED_SECONDS: Final = 2 * HANG_SECONDS  # until a worker accepts no more; one that hangs is killed before
SUPERSEDED_SECONDS: Final = 2.0  # for a generation that must make room to send its error events
RENEWALS_DRAINING: Final = 8  # generations, after a change that nobody has asked for; each takes memory
BACKOFF_SECONDS: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # before a dead worker is replaced, by deaths in a row
LONG_LIFE_SECONDS: Final = 30.0  # a worker that lived this long died of something new

log = logging.getLogger("flm.supervisor")


class Generations:
    """The workers of one supervisor, and the sockets they serve.

    `listening`: one socket per slot, or fewer that slots share; owned here. `new_log_pipe` gives the writing end of a
    pipe that is drained.
    `engine_failed` is told the id of an engine that failed a worker's request, and what happened; `keys_used` the ids
    of keys that requests came with.
    """

    def __init__(
        self,
        listening: list[socket.socket],
        memory: Memory,
        life: tuple[int, int],
        pepper: str,
        new_log_pipe: Callable[[], int],
        worker_module: str,
        engine_failed: Callable[[str, str], None],
        keys_used: Callable[[Sequence[str]], None],
    ) -> None:
        self.listening = listening
        self.memory = memory
        self.life = life
        self.number = 0
        self.stopping = False
        self.crew = Crew(self, memory, worker_module)
        self.warm = WarmWorkers(worker_module, new_log_pipe)
        self._pepper = pepper
        self._new_log_pipe = new_log_pipe
        self._engine_failed = engine_failed
        self._keys_used = keys_used
        self._settings = Settings()
        self.tls: Tls | None = None  # what new workers serve with
        self._changing = asyncio.Lock()
        self._deaths: dict[int, list[float]] = {}
        self._respawns: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> list[Member]:
        """Workers that accept connections."""
        return [member for member in self.crew.members if member.ready.done() and not member.draining]

    @property
    def draining(self) -> list[Member]:
        return [member for member in self.crew.members if member.draining]

    def adopt(self, states: Sequence[WorkerState], number: int, settings: Settings, tls: Tls | None) -> None:
        """Take over the workers of an earlier image of this process, and what they were started with."""
        self.number = number
        self._settings = settings
        self.tls = tls
        self.crew.adopt(states)

    def listen_instead(self, listening: list[socket.socket]) -> None:
        """Other sockets than those so far, which no worker has served yet; those are closed."""
        for each in self.listening:
            each.close()
        self.listening = listening

    async def replace(self, settings: Settings, tls: Tls | None = None, *, drain_seconds: float = 0) -> None:
        """Start a generation of workers under `settings`, which serve with `tls`; when all of them serve, retire those
        before, and return when none of those accepts any more: who connects from then on meets the new ones. The others
        have `proxy.drain_timeout_seconds` for their streams, `drain_seconds` at least; with that, RENEWALS_DRAINING
        generations may drain, without, `proxy.max_draining`.

        Raises PROXY_INVALID_CONFIG with the reason if one does not come up; then all is as before.
        """
        async with self._changing:
            former, self._settings = self._settings, settings
            former_tls, self.tls = self.tls, tls
            predecessors = [member for member in self.crew.members if not member.draining]
            try:
                await self._start(range(settings.proxy_workers), self.number + 1)
            except (StartError, OSError, CommandError) as error:
                self._settings, self.tls = former, former_tls
                raise _not_replaced(error, bool(predecessors)) from None
            finally:
                self.warm.dismiss()
            self.number += 1
            for listening in self.listening:
                sockets.set_send_timeout(listening, sockets.kernel_patience(settings))
            for member in predecessors:
                self._retire(member, drain_seconds)
            self._make_room(RENEWALS_DRAINING if drain_seconds > 0 else 0)
        await self._accept_no_more(self.draining)

    async def stop(self, seconds: float) -> None:
        """End all workers: running requests may take `seconds` more, then they get an error. Closes the sockets."""
        self.stopping = True
        self.warm.dismiss()
        for task in list(self._respawns):
            task.cancel()
        await asyncio.gather(*self._respawns, return_exceptions=True)
        for member in self.crew.members:
            member.draining = True
            member.tell(Order("stop", seconds))
        for each in self.listening:
            each.close()
        try:
            async with asyncio.timeout(seconds + KILL_SECONDS):
                await self._all_gone()
        except TimeoutError:
            for member in self.crew.members:
                log.error("worker %d (pid %d) did not stop in time and is killed", member.slot, member.pid)
                member.kill()
            await self._all_gone()

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """While the block lasts no worker is started or retired here, and none is half-started."""
        async with self._changing:
            yield

    def hurry(self) -> None:
        """While stopping: end running requests now."""
        for member in self.crew.members:
            member.tell(Order("abort"))

    def end_revoked(self) -> None:
        """A key was revoked: running requests of keys that are no longer in the keyring end with an error."""
        for member in self.crew.members:
            member.tell(Order("revoked"))

    def reap(self) -> None:
        """Called on SIGCHLD."""
        self.crew.reap()
        self.warm.reap()

    def tick(self) -> None:
        """Once a second: kill the hung, bound the draining."""
        self.crew.kill_hung()
        now = time.monotonic()
        for member in self.draining:
            if member.deadline is None:
                continue
            if now > member.deadline + KILL_SECONDS:
                log.error("worker %d (pid %d) did not drain in time and is killed", member.slot, member.pid)
                member.kill()
            elif now > member.deadline and not member.aborted:
                self._abort(member)

    def worker_died(self, member: Member, how: str) -> None:
        """A worker is gone. One that served is replaced, after a pause if that happens again and again."""
        if member.draining or self.stopping:
            log.info("worker %d (pid %d) is gone: %s", member.slot, member.pid, how)
            return
        log.error("worker %d (pid %d) died: %s", member.slot, member.pid, how)
        if member.ready.exception() is None:
            self._respawn(member.slot, member.started)

    def worker_leaves(self, member: Member) -> None:
        """A worker was asked by somebody else to go (SIGTERM): it goes when a successor serves."""
        if not member.draining and not self.stopping:
            log.info("worker %d (pid %d) was told to go: it is replaced", member.slot, member.pid)
            self._respawn(member.slot, 0.0)

    def engine_failed(self, engine_id: str, message: str) -> None:
        """A worker says that a request failed by its engine's fault."""
        self._engine_failed(engine_id, message)

    def keys_used(self, key_ids: Sequence[str]) -> None:
        """A worker's requests came with these keys."""
        self._keys_used(key_ids)

    async def _start(self, slots: range, generation: int) -> list[Member]:
        """Workers for these slots, all serving. Raises StartError, OSError, CommandError; then none is left."""
        settings = self._settings
        self.listening = sockets.enough(self.listening, settings.proxy_workers, sockets.kernel_patience(settings))
        members: list[Member] = []
        try:
            for slot in slots:
                members.append(self._start_one(slot, generation))
        except BaseException:
            for member in members:
                member.draining = True
                member.kill()
            raise
        await self.crew.ready(members)
        return members

    def _start_one(self, slot: int, generation: int) -> Member:
        waiting = self.warm.take()
        if waiting is not None:
            try:
                return self.crew.start_warm(self._boot(slot, generation, -1, -1), waiting)
            except OSError:  # it is gone: start one as always
                self.warm.give_back(waiting)
        ours, theirs = socket.socketpair()
        log_fd = self._new_log_pipe()
        with theirs:
            try:
                return self.crew.start(self._boot(slot, generation, theirs.fileno(), log_fd), ours)
            finally:
                os.close(log_fd)

    def _boot(self, slot: int, generation: int, control_fd: int, log_fd: int) -> WorkerBoot:
        settings = self._settings
        descriptors = sockets.raise_descriptor_limit()
        return WorkerBoot(
            listening_fds=[each.fileno() for each in sockets.share(self.listening, slot, settings.proxy_workers)],
            shared_fd=self.memory.shared_fd,
            keyring_fd=self.memory.keyring_fd,
            buckets_fd=self.memory.buckets_fd,
            rings_fd=self.memory.rings_fd,
            control_fd=control_fd,
            life_fd=self.life[0],
            log_fd=log_fd,
            cell=self.crew.free_cell(),
            slot=slot,
            generation=generation,
            pepper=self._pepper,
            header_timeout=settings.proxy_header_timeout_seconds,
            connections=sockets.connections_allowed(descriptors, settings.proxy_max_in_flight),
            log_level=settings.log_level,
            min_bytes_per_second=settings.proxy_min_bytes_per_second,
            send_timeout=settings.proxy_send_timeout_seconds,
            tls=self.tls,
        )

    def _respawn(self, slot: int, started: float) -> None:
        now = time.monotonic()
        deaths = [] if now - started > LONG_LIFE_SECONDS else self._deaths.get(slot, [])
        self._deaths[slot] = [*deaths, now][-len(BACKOFF_SECONDS) :]
        task = asyncio.get_running_loop().create_task(self._respawn_after(slot))
        self._respawns.add(task)
        task.add_done_callback(self._respawns.discard)

    async def _respawn_after(self, slot: int) -> None:
        """Give a slot a worker again, however long it takes, unless a new generation does."""
        generation = self.number
        attempt = len(self._deaths.get(slot, [])) - 1
        while True:
            await asyncio.sleep(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)])
            async with self._changing:
                if self.stopping or generation != self.number or slot >= self._settings.proxy_workers:
                    return
                predecessors = [member for member in self.serving if member.slot == slot]
                try:
                    await self._start(range(slot, slot + 1), generation)
                except (StartError, OSError, CommandError) as error:
                    log.error("no new worker for slot %d: %s; trying again", slot, error)
                    attempt += 1
                    continue
                for member in predecessors:
                    self._retire(member)
                return

    def _retire(self, member: Member, at_least: float = 0) -> None:
        seconds = max(self._settings.proxy_drain_timeout_seconds, at_least)
        member.draining = True
        member.deadline = time.monotonic() + seconds
        member.tell(Order("retire", seconds))

    async def _accept_no_more(self, members: Sequence[Member]) -> None:
        """Return when each of these has said so, or is gone. One whose loop hangs cannot; `tick` kills it."""
        try:
            async with asyncio.timeout(RETIRED_SECONDS):
                await asyncio.gather(*(member.retired.wait() for member in members))
        except TimeoutError:
            for member in members:
                if not member.retired.is_set():
                    log.error(
                        "worker %d (pid %d) has not said within %g s that it accepts no more: connections may still"
                        " meet the settings of before",
                        member.slot,
                        member.pid,
                        RETIRED_SECONDS,
                    )

    def _make_room(self, at_least: int) -> None:
        """End the oldest draining generations beyond `proxy.max_draining`, or `at_least` if that is more."""
        most = max(self._settings.proxy_max_draining, at_least)
        generations = sorted({member.generation for member in self.draining})
        for member in self.draining:
            if member.generation in generations[:-most]:
                self._abort(member)

    def _abort(self, member: Member) -> None:
        if not member.aborted:
            member.aborted = True
            member.deadline = time.monotonic() + SUPERSEDED_SECONDS - KILL_SECONDS
            member.tell(Order("abort"))

    async def _all_gone(self) -> None:
        await asyncio.gather(*(member.gone.wait() for member in self.crew.members))


def _not_replaced(error: Exception, had_workers: bool) -> CommandError:
    kept = "; the workers before go on serving" if had_workers else ""
    reason = error.message if isinstance(error, CommandError) else str(error)
    return CommandError(CommandCode.PROXY_INVALID_CONFIG, f"a worker did not come up: {reason}{kept}")

"""The supervisor: one process that owns the lock, the sockets, the shared memory and the workers of a running proxy.

It composes the rooms around it and reacts: to the control socket, to signals, to the clock. SIGTERM and SIGINT stop,
SIGHUP reloads. `restart` replaces its own code in place by exec: the same pid, lock, sockets, memory and workers, told
to the new image in an inherited file; then the workers are replaced as in `reload`.

Serves no request itself and never blocks on a disk for longer than a log line of its own needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from flm.config import Settings
from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.runtime import control, crash, instance, keepers, preflight, sockets, succession
from flm.runtime.audit import AuditTrail
from flm.runtime.boot import Served, SupervisorBoot, SupervisorState, Tls
from flm.runtime.control import ControlServer, Request
from flm.runtime.front import Front, Step, served_by
from flm.runtime.generations import Generations
from flm.runtime.given import Opener
from flm.runtime.handle import Access, Handle
from flm.runtime.journal import Journal, open_journal, prepare_folder
from flm.runtime.lastuse import LastUses
from flm.runtime.logfile import Terminal
from flm.runtime.loglines import timestamp
from flm.runtime.memory import Memory, wait_for_orphans
from flm.runtime.publish import Publisher
from flm.runtime.status import describe
from flm.runtime.stopping import Stopping
from flm.runtime.upkeep import Upkeep
from flm.store.folder import Folder

TICK_SECONDS: Final = 1.0  # how soon a change by others holds, and a hung worker is looked for
SETTLE_SECONDS: Final = 2.0  # for the answers of control connections

log = logging.getLogger("flm.supervisor")


def _log_step(step: str, detail: str) -> None:
    log.info("%s: %s", step, detail)


class Supervisor:
    """One running proxy. `resumed`: what an earlier image of this process left."""

    def __init__(self, boot: SupervisorBoot, resumed: SupervisorState | None = None) -> None:
        self._boot = boot
        self._resumed = resumed
        self._folder = Folder(Path(boot.root), Path(boot.config), Path(boot.security))
        self._id = resumed.instance_id if resumed else os.urandom(16).hex()
        self._began = resumed.began if resumed else time.monotonic()
        self._started_at = resumed.started_at if resumed else timestamp(time.time())
        self._publisher = Publisher(self._folder, boot.flags, self._id)
        self._last_uses = LastUses(self._folder)
        self._journal = Journal(Terminal())
        self._front = Front(partial(keepers.keeper_of, self._folder), self._swap, Opener(boot.given))
        self._memory: Memory
        self._upkeep: Upkeep
        self._trail: AuditTrail
        self._generations: Generations
        self._control: ControlServer
        self._control_socket: socket.socket
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: Stopping
        self._changing = asyncio.Lock()
        self._succession = asyncio.Lock()
        self._state = "starting"

    async def run(self, ready: Callable[[Handle], Awaitable[None]], step: Step = _log_step) -> None:
        """Start (or go on), call `ready` once a request succeeds, serve until told to stop, and leave nothing behind.
        `step` is told what a start that takes its time is at.

        Raises CommandError if it cannot start; then nothing is left behind either.
        """
        loop = asyncio.get_running_loop()
        crash.prepare()
        crash.watch(loop)
        self._stopping = Stopping()
        try:
            if self._resumed is None:
                await self._start(step)
            else:
                await self._resume(self._resumed)
            if not self._stopping.asked:
                self._state = "running"
                await ready(self.handle())
            await self._stop(await self._stopping.wait())
        except BaseException:
            await self._abandon()
            raise
        finally:
            self._journal.end()

    def handle(self) -> Handle:
        """What `flm proxy status` says of this proxy."""
        resolved = self._publisher.resolved
        return describe(
            instance_id=self._id,
            state=self._state,
            started_at=self._started_at,
            began=self._began,
            address=self._address,
            front=self._front,
            resolved=resolved,
            generations=self._generations,
            engines=self._publisher.engines_in_force,
            last_error=self._publisher.last_error or self._front.error(),
            audit=self._trail.line(),
            log_file=self._log_path(resolved.settings),
        )

    async def _start(self, step: Step) -> None:
        for folder in (self._folder.root, self._folder.run):
            await asyncio.to_thread(secure_folder, folder)
        await self._publisher.open()
        settings = (await self._publisher.load_settings()).settings
        if path := self._log_path(settings):
            await asyncio.to_thread(prepare_folder, path.parent, self._folder.root)
        self._journal = open_journal(self._log_path(settings), settings)
        self._journal.begin(settings.log_level)
        if self._boot.daemon:
            os.dup2(self._journal.own[1], 2)  # what is not logged properly, such as a crash, is logged all the same
        await asyncio.to_thread(wait_for_orphans, self._folder.run)
        self._asked = Served.by(settings)
        listening = self._front.open(settings)
        self._memory = Memory.create(self._folder.run, await self._publisher.key_count())
        self._generations = self._new_generations(listening, os.pipe())
        self._handle_signals()
        await self._upkeep.publish()
        self._upkeep.begin_rounds(settings.engine_cache_ttl_seconds)
        self._control_socket = control.listen(self._folder.run / "control.sock")
        self._begin_background()
        self._write_record(settings)
        warning = sockets.descriptor_warning(sockets.raise_descriptor_limit(), settings.proxy_max_in_flight)
        if warning:
            log.warning("%s", warning)
        await self._stopping.unless(self._serve_first(settings, step))
        await self._stopping.unless(self._upkeep.first_round())

    async def _serve_first(self, settings: Settings, step: Step) -> None:
        """A certificate, if there is to be one, and then the workers. Raises CommandError."""
        others = await self._front.obtain(settings, step)
        if others is not None:  # the fallback has another address
            self._address = others[0].getsockname()[:2]
            self._generations.listen_instead(others)
            self._write_record(settings)
        await self._generations.replace(settings, self._front.tls)
        self._front.start()

    async def _swap(self, tls: Tls, drain_seconds: float) -> None:
        """Serve with another certificate. Raises CommandError; then the workers of before serve on."""
        async with self._changing:
            self._stopping.refuse()
            settings = self._publisher.resolved.settings
            await self._generations.replace(settings, tls, drain_seconds=drain_seconds)

    async def _resume(self, state: SupervisorState) -> None:
        """Go on where the former image of this process left; its workers are serving all the while."""
        adopted = Memory.adopt(state.shared_fd, state.keyring_fd, state.buckets_fd, state.rings_fd)
        published = adopted.published() if adopted else None
        settings = published.settings if published else state.served.settings()  # until the databases are open
        self._journal = open_journal(self._log_path(settings), settings)
        self._journal.adopt(state.own_log_fds, state.log_fds, settings.log_level)
        listening, plain = (
            [socket.socket(fileno=descriptor) for descriptor in descriptors]
            for descriptors in (state.listening_fds, state.plain_fds)
        )
        self._memory = adopted or Memory.create(self._folder.run, 0)
        if adopted is not None:
            self._publisher.adopt(adopted.keyring, state.chat_keys)
        if published is not None:
            self._publisher.adopt_snapshot(published)
        self._generations = self._new_generations(listening, state.life_fds)
        self._generations.adopt(state.workers, state.generation, settings, state.tls)
        await self._front.adopt(settings, state.mode, state.tls, plain)
        self._generations.warm.adopt(state.warm)
        self._handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, succession.HANDLED)
        self._generations.reap()  # those that died while nobody looked
        self._control_socket = socket.socket(fileno=state.control_fd)
        self._asked = state.served
        failure = await self._attempt_to_renew()
        self._begin_background()
        self._front.start()
        self._upkeep.begin_rounds(math.inf)
        self._state = "running"
        if state.reply_fd is not None:
            control.send_answer(socket.socket(fileno=state.reply_fd), self.handle(), failure)

    async def _attempt_to_renew(self) -> CommandError | None:
        """Databases, snapshot, workers anew. What fails is returned: the workers of before serve on."""
        try:
            await self._publisher.open()
            settings = (await self._publisher.load_settings()).settings
            self._journal.set_level(settings.log_level)
            await self._upkeep.publish()
            await self._generations.replace(settings, self._front.renewed_for(settings))
            self._write_record(settings)
        except CommandError as error:
            log.error("the restart did not succeed: %s", error.message)
            self._publisher.last_error = error.message
            return error
        return None

    def _new_generations(self, listening: list[socket.socket], life: tuple[int, int]) -> Generations:
        self._address = listening[0].getsockname()[:2]
        self._upkeep = Upkeep(self._publisher, self._memory)
        generations = Generations(
            listening,
            self._memory,
            life,
            str(self._folder.pepper),
            self._journal.pipe,
            self._boot.worker_module,
            self._upkeep.engine_failed,
            self._last_uses.note,
        )
        self._publisher.on_revocation = generations.end_revoked
        self._trail = AuditTrail(self._folder, self._memory.rings, self._publisher.settings, generations.crew.cells)
        return generations

    def _write_record(self, settings: Settings) -> None:
        instance.announce(
            self._folder.run, self._id, served_by(settings, self._front), self._address[0], self._started_at
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop, None)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        loop.add_signal_handler(signal.SIGCHLD, self._generations.reap)

    def _begin_background(self) -> None:
        self._control = ControlServer(self._control_socket, self._answer)
        self._control.start()
        watches = (
            self._watch_workers(),
            self._upkeep.watch_databases(),
            self._upkeep.watch_engines(),
            self._last_uses.write_on(),
            self._trail.run(),
        )
        self._tasks = [asyncio.create_task(watch) for watch in watches]

    async def _end_background(self) -> None:
        await self._front.end()
        if hasattr(self, "_upkeep"):
            await self._upkeep.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._last_uses.write_last()
        if hasattr(self, "_trail"):
            await self._trail.end()

    async def _watch_workers(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - before < 3 * TICK_SECONDS:  # else this process itself was stopped: beats are old
                self._generations.tick()
            self._check_lock()

    def _check_lock(self) -> None:
        """Without its lock a proxy cannot be found, and another may start on the same databases: end in order."""
        if not self._stopping.asked and not instance.holds(self._folder.run, self._boot.lock_fd):
            log.error("%s was removed under the running proxy, which therefore stops", self._folder.run)
            self._request_stop(None)

    async def _answer(self, request: Request, connection: socket.socket) -> object:
        if request.op == "status":
            return self.handle()
        if request.op == "refresh":
            return {"epoch": await self._upkeep.refresh()}
        if request.op == "store-audit":
            await self._trail.drain()
            return {"stored": True}
        if request.op == "chat-key":
            return await self._access()
        if request.op == "stop":
            self._request_stop(0.0 if request.now else None)
            await self._stopping.over.wait()
            return {"stopped": True}
        if request.op == "reload":
            return await self._reload()
        if request.op == "restart":
            await self._restart(connection)
        raise CommandError(CommandCode.USAGE, f"the proxy knows no operation {request.op!r}; is it of another version?")

    async def _access(self) -> Access:
        if self._front.tls is None and self._front.mode != "local-http":
            raise CommandError(CommandCode.PROXY_NOT_RUNNING, "the proxy is still waiting for its certificate")
        return self._front.access(self._address, await self._publisher.chat_key(self._memory))

    async def _reload(self) -> Handle:
        """New settings, new workers. Raises CommandError; then the workers of before serve on."""
        async with self._changing:
            self._stopping.refuse()
            self._state = "reloading"
            try:
                settings = (await self._publisher.load_settings()).settings
                sockets.refuse_another_address(settings, self._asked)
                await self._upkeep.refresh()
                await self._generations.replace(settings, self._front.renewed_for(settings))
                self._journal.set_level(settings.log_level)
            finally:
                self._state = "stopping" if self._stopping.asked else "running"
            return self.handle()

    def _reload_on_signal(self) -> None:
        async def reload() -> None:
            try:
                await self._reload()
            except CommandError as error:
                log.error("reload: %s", error.message)
                self._publisher.last_error = error.message

        self._tasks = [task for task in self._tasks if not task.done()] + [asyncio.create_task(reload())]

    async def _restart(self, connection: socket.socket) -> NoReturn:
        """Become the code that is installed now. Returns only if that fails, by raising CommandError."""
        async with self._changing:
            self._stopping.refuse()
            settings = (await self._publisher.load_settings()).settings
            sockets.refuse_another_address(settings, self._asked)
            try:
                await self._replace_program(settings, connection)
            finally:
                self._generations.warm.dismiss()

    async def _replace_program(self, settings: Settings, connection: socket.socket) -> NoReturn:
        await preflight.check(self._boot, self._generations.warm.prepare(settings.proxy_workers))
        self._stopping.refuse()
        async with self._succession, self._generations.at_rest():
            self._stopping.refuse()
            log.info("restarting in place")
            await self._end_background()
            await self._control.pause(but=asyncio.current_task(), grace=SETTLE_SECONDS)
            await self._publisher.close()
            self._journal.pause()
            try:
                with succession.signals_held():
                    for _ in range(3):  # a signal that came just before is handled by the loop's next rounds
                        await asyncio.sleep(0)
                    self._stopping.refuse()
                    succession.become(self._pass_on(connection.fileno()))
            except (OSError, CommandError) as error:
                await self._go_on()
                if isinstance(error, CommandError):
                    raise
                raise CommandError(
                    CommandCode.IO_ERROR, f"the system refused to restart ({error}); the proxy goes on as it was"
                ) from None

    async def _go_on(self) -> None:
        self._journal.resume(self._publisher.resolved.settings.log_level)
        await self._publisher.open()
        self._begin_background()
        self._front.start()

    def _pass_on(self, reply_fd: int) -> SupervisorState:
        return SupervisorState(
            boot=msgspec.structs.replace(self._boot, given=()),
            instance_id=self._id,
            started_at=self._started_at,
            began=self._began,
            generation=self._generations.number,
            served=self._asked,
            mode=self._front.mode,
            tls=self._front.tls,
            listening_fds=[each.fileno() for each in self._generations.listening],
            plain_fds=self._front.plain_fds(),
            shared_fd=self._memory.shared_fd,
            keyring_fd=self._memory.keyring_fd,
            buckets_fd=self._memory.buckets_fd,
            rings_fd=self._memory.rings_fd,
            life_fds=self._generations.life,
            control_fd=self._control_socket.fileno(),
            log_fds=self._journal.others(),
            own_log_fds=self._journal.own,
            workers=[member.state() for member in self._generations.crew.members],
            warm=self._generations.warm.states(),
            reply_fd=reply_fd,
            chat_keys=self._publisher.chat_keys,
        )

    def _request_stop(self, seconds: float | None) -> None:
        """Stop; a second request while stopping, or zero seconds, no longer waits for streams."""
        if self._stopping.asked and seconds == 0:
            self._generations.hurry()
        limit = self._publisher.resolved.settings.proxy_stop_timeout_seconds
        self._stopping.ask(limit if seconds is None else seconds)

    async def _stop(self, seconds: float) -> None:
        self._state = "stopping"
        async with self._succession:  # one that is past its point of no return would take half of this along
            await self._stop_all(seconds)

    async def _stop_all(self, seconds: float) -> None:
        log.info("stopping; running requests may take %g s more", seconds)
        await self._generations.stop(seconds)
        await self._end_background()
        await self._front.close()
        await self._publisher.close()
        instance.forget(self._folder.run, self._boot.lock_fd)
        self._stopping.over.set()
        await self._control.pause(grace=SETTLE_SECONDS)
        self._control_socket.close()
        log.info("stopped")

    async def _abandon(self) -> None:
        """Something failed: leave nothing behind."""
        await self._end_background()
        await self._front.close()
        if hasattr(self, "_generations"):
            await self._generations.stop(0.0)
        if hasattr(self, "_control"):
            await self._control.pause()
            self._control_socket.close()
        with contextlib.suppress(CommandError):
            await self._publisher.close()
        instance.forget(self._folder.run, self._boot.lock_fd)

    def _log_path(self, settings: Settings) -> Path | None:
        """None: the terminal."""
        return self._folder.root / settings.log_file if self._boot.daemon else None

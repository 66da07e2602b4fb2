"""The supervisor: one process that owns the lock, the sockets, the shared memory and the workers of a running proxy.

It has the parts of a proxy (`parts`) and reacts: to the control socket, to signals, to the clock. SIGTERM and SIGINT
stop, SIGHUP reloads. `restart` replaces its own code in place by exec: the same pid, lock, sockets, memory and workers,
told to the new image in an inherited file; then the workers are replaced as in `reload`.

Serves no request itself and never blocks on a disk for longer than a log line of its own needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from flm.config import Settings
from flm.errors import CommandCode, CommandError
from flm.runtime import control, crash, instance, rehearsal, sockets, succession
from flm.runtime.boot import SupervisorBoot, SupervisorState, Tls
from flm.runtime.control import ControlServer, Request
from flm.runtime.front import Step
from flm.runtime.handle import Access, Handle
from flm.runtime.parts import Parts
from flm.runtime.stopping import Stopping

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
        self._parts = Parts(boot, resumed, self._swap)
        self._control: ControlServer
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
            self._parts.journal.end()

    def handle(self) -> Handle:
        """What `flm proxy status` says of this proxy."""
        return self._parts.describe(self._state)

    async def _start(self, step: Step) -> None:
        parts = self._parts
        settings = await parts.make()
        self._handle_signals()
        await parts.upkeep.publish()
        parts.upkeep.begin_rounds(settings.engine_cache_ttl_seconds)
        parts.listen_for_commands()
        self._begin_background()
        parts.write_record()
        warning = sockets.descriptor_warning(sockets.raise_descriptor_limit(), settings.proxy_max_in_flight)
        if warning:
            log.warning("%s", warning)
        await self._stopping.unless(self._serve_first(settings, step))
        await self._stopping.unless(parts.upkeep.first_round())

    async def _serve_first(self, settings: Settings, step: Step) -> None:
        """A certificate, if there is to be one, and then the workers. Raises CommandError."""
        others = await self._parts.front.obtain(settings, step)
        if others is not None:  # the fallback has another address
            self._parts.listen_instead(others)
            self._parts.write_record()
        async with self._changing:  # a restart meanwhile would wait for workers that this change ends
            await self._parts.generations.replace(settings, self._parts.front.tls)
        self._parts.front.start()

    async def _swap(self, tls: Tls, drain_seconds: float) -> None:
        """Serve with another certificate. Raises CommandError; then the workers of before serve on."""
        async with self._changing:
            self._stopping.refuse()
            settings = self._parts.publisher.resolved.settings
            await self._parts.generations.replace(settings, tls, drain_seconds=drain_seconds)

    async def _resume(self, state: SupervisorState) -> None:
        """Go on where the former image of this process left; its workers are serving all the while."""
        await self._parts.take_over(state)
        self._handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, succession.HANDLED)
        self._parts.generations.reap()  # those that died while nobody looked
        failure = await self._attempt_to_renew()
        self._begin_background()
        self._parts.front.start()
        self._parts.upkeep.begin_rounds(math.inf)
        self._state = "running"
        if state.reply_fd is not None:
            control.send_answer(socket.socket(fileno=state.reply_fd), self.handle(), failure)

    async def _attempt_to_renew(self) -> CommandError | None:
        """Databases, snapshot, workers anew. What fails is returned: the workers of before serve on."""
        try:
            await self._parts.publisher.open()
            settings = (await self._parts.publisher.load_settings()).settings
            self._parts.journal.set_level(settings.log_level)
            await self._parts.upkeep.publish()
            await self._parts.generations.replace(settings, self._parts.front.renewed_for(settings))
        except (CommandError, OSError) as error:
            failure = (
                error
                if isinstance(error, CommandError)
                else CommandError(CommandCode.IO_ERROR, f"the system refused: {error.strerror or error}")
            )
            log.error("the restart did not succeed: %s", failure.message)
            self._parts.publisher.last_error = failure.message
            return failure
        try:
            self._parts.write_record()
        except (CommandError, OSError) as error:  # a full disk; by the record of before the proxy is found too
            log.warning("the record of the proxy in %s stays as it was: %s", self._parts.folder.run, error)
        return None

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop, None)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        loop.add_signal_handler(signal.SIGCHLD, self._parts.generations.reap)

    def _begin_background(self) -> None:
        self._control = ControlServer(self._parts.control_socket, self._answer)
        self._control.start()
        watches = (
            self._watch_workers(),
            self._parts.upkeep.watch_databases(),
            self._parts.upkeep.watch_engines(),
            self._parts.last_uses.write_on(),
            self._parts.trail.run(),
        )
        self._tasks = [asyncio.create_task(watch) for watch in watches]

    async def _end_background(self) -> None:
        await self._parts.front.end()
        if self._parts.complete:
            await self._parts.upkeep.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._parts.last_uses.write_last()
        if self._parts.complete:
            await self._parts.trail.end()

    async def _watch_workers(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - before < 3 * TICK_SECONDS:  # else this process itself was stopped: beats are old
                self._parts.generations.tick()
            self._check_lock()

    def _check_lock(self) -> None:
        """Without its lock a proxy cannot be found, and another may start on the same databases: end in order. A record
        that is gone can be written again."""
        if not self._stopping.asked and not instance.holds(self._parts.folder.run, self._boot.lock_fd):
            log.error("%s was removed under the running proxy, which therefore stops", self._parts.folder.run)
            self._request_stop(None)
        elif self._state == "running" and not self._stopping.asked:
            self._parts.keep_record()

    async def _answer(self, request: Request, connection: socket.socket) -> object:
        if request.op == "status":
            return self.handle()
        if request.op == "refresh":
            return {"epoch": await self._parts.upkeep.refresh()}
        if request.op == "store-audit":
            await self._parts.trail.drain()
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
        if self._parts.front.tls is None and self._parts.front.mode != "local-http":
            raise CommandError(CommandCode.PROXY_NOT_RUNNING, "the proxy is still waiting for its certificate")
        return self._parts.front.access(self._parts.address, await self._parts.publisher.chat_key(self._parts.memory))

    async def _reload(self) -> Handle:
        """New settings, new workers. Raises CommandError; then the workers of before serve on."""
        async with self._changing:
            self._stopping.refuse()
            self._state = "reloading"
            try:
                settings = (await self._parts.publisher.load_settings()).settings
                sockets.refuse_another_address(settings, self._parts.asked)
                await self._parts.upkeep.refresh()  # what else changed holds, whatever the policy is
                await self._parts.publisher.load_policy()
                await self._parts.generations.replace(settings, self._parts.front.renewed_for(settings))
                self._parts.journal.set_level(settings.log_level)
            finally:
                self._state = "stopping" if self._stopping.asked else "running"
            return self.handle()

    def _reload_on_signal(self) -> None:
        async def reload() -> None:
            try:
                await self._reload()
            except CommandError as error:
                log.error("reload: %s", error.message)
                self._parts.publisher.last_error = error.message

        self._tasks = [task for task in self._tasks if not task.done()] + [asyncio.create_task(reload())]

    async def _restart(self, connection: socket.socket) -> NoReturn:
        """Become the code that is installed now. Returns only if that fails, by raising CommandError."""
        async with self._changing:
            self._stopping.refuse()
            settings = (await self._parts.publisher.load_settings()).settings
            sockets.refuse_another_address(settings, self._parts.asked)
            try:
                await self._replace_program(settings, connection)
            finally:
                self._parts.generations.warm.dismiss()

    async def _replace_program(self, settings: Settings, connection: socket.socket) -> NoReturn:
        await rehearsal.check(self._boot, self._parts.generations.warm.prepare(settings.proxy_workers))
        self._stopping.refuse()
        async with self._succession, self._parts.generations.at_rest():
            self._stopping.refuse()
            log.info("restarting in place")
            await self._end_background()
            await self._control.pause(but=asyncio.current_task(), grace=SETTLE_SECONDS)
            await self._parts.publisher.close()
            self._parts.journal.pause()
            try:
                with succession.signals_held():
                    for _ in range(3):  # a signal that came just before is handled by the loop's next rounds
                        await asyncio.sleep(0)
                    self._stopping.refuse()
                    succession.become(self._parts.pass_on(connection.fileno()))
            except (OSError, CommandError) as error:
                await self._go_on()
                if isinstance(error, CommandError):
                    raise
                raise CommandError(
                    CommandCode.IO_ERROR, f"the system refused to restart ({error}); the proxy goes on as it was"
                ) from None

    async def _go_on(self) -> None:
        self._parts.journal.resume(self._parts.publisher.resolved.settings.log_level)
        await self._parts.publisher.open()
        self._begin_background()
        self._parts.front.start()

    def _request_stop(self, seconds: float | None) -> None:
        """Stop; a second request while stopping, or zero seconds, no longer waits for streams."""
        if self._stopping.asked and seconds == 0:
            self._parts.generations.hurry()
        limit = self._parts.publisher.resolved.settings.proxy_stop_timeout_seconds
        self._stopping.ask(limit if seconds is None else seconds)

    async def _stop(self, seconds: float) -> None:
        self._state = "stopping"
        async with self._succession:  # one that is past its point of no return would take half of this along
            await self._stop_all(seconds)

    async def _stop_all(self, seconds: float) -> None:
        log.info("stopping; running requests may take %g s more", seconds)
        await self._parts.generations.stop(seconds)
        await self._end_background()
        await self._parts.front.close()
        await self._parts.publisher.close()
        instance.forget(self._parts.folder.run, self._boot.lock_fd)
        self._stopping.over.set()
        await self._control.pause(grace=SETTLE_SECONDS)
        self._parts.control_socket.close()
        log.info("stopped")

    async def _abandon(self) -> None:
        """Something failed: leave nothing behind."""
        await self._end_background()
        await self._parts.front.close()
        if self._parts.complete:
            await self._parts.generations.stop(0.0)
        if hasattr(self, "_control"):
            await self._control.pause()
            self._parts.control_socket.close()
        with contextlib.suppress(CommandError):
            await self._parts.publisher.close()
        instance.forget(self._parts.folder.run, self._boot.lock_fd)

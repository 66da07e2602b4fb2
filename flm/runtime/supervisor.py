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
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import uuid4

import msgspec

from flm import __version__
from flm.config import Settings
from flm.errors import CommandCode, CommandError
from flm.runtime import control, instance, preflight, sockets
from flm.runtime.boot import SupervisorBoot, SupervisorState, pack, unpack
from flm.runtime.control import Answer, ControlServer, Request
from flm.runtime.generations import Generations
from flm.runtime.logfile import LogDrain, RotatedFile, Sink, Terminal
from flm.runtime.loglines import LogLines, install, timestamp
from flm.runtime.memory import Memory
from flm.runtime.prober import FIRST_ROUND_SECONDS, Prober, describe_change
from flm.runtime.publish import Publisher
from flm.runtime.status import Handle, describe
from flm.snapshot import Engine, decode
from flm.store.folder import Folder, secure_folder

TICK_SECONDS: Final = 1.0  # how soon a change by others holds, and a hung worker is looked for
LOG_STOP_SECONDS: Final = 2.0  # for the last lines to reach the disk
SETTLE_SECONDS: Final = 2.0  # for the answers of control connections
_HANDLED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})

log = logging.getLogger("flm.supervisor")


class Supervisor:
    """One running proxy. `resumed`: what an earlier image of this process left."""

    def __init__(self, boot: SupervisorBoot, resumed: SupervisorState | None = None) -> None:
        self._boot = boot
        self._resumed = resumed
        self._folder = Folder(Path(boot.root), Path(boot.config), Path(boot.security))
        self._id = resumed.instance_id if resumed else uuid4().hex
        self._started_at = resumed.started_at if resumed else timestamp(time.time())
        self._publisher = Publisher(self._folder, boot.flags, self._id)
        self._prober = Prober()
        self._drain: LogDrain | None = None
        self._own_log: tuple[int, int] = (-1, -1)
        self._memory: Memory
        self._generations: Generations
        self._control: ControlServer
        self._control_socket: socket.socket
        self._tasks: list[asyncio.Task[None]] = []
        self._stop_seconds: asyncio.Future[float]
        self._stopped = asyncio.Event()
        self._changing = asyncio.Lock()
        self._state = "starting"

    async def run(self, ready: Callable[[Handle], None]) -> None:
        """Start (or go on), call `ready` once a request succeeds, serve until told to stop, and leave nothing behind.

        Raises CommandError if it cannot start; then nothing is left behind either.
        """
        loop = asyncio.get_running_loop()
        self._stop_seconds = loop.create_future()
        try:
            if self._resumed is None:
                await self._start()
            else:
                await self._resume(self._resumed)
            if not self._stop_seconds.done():
                self._state = "running"
                ready(self.handle())
            seconds = await self._stop_seconds
            await self._stop(seconds)
        except BaseException:
            await self._abandon()
            raise
        finally:
            self._end_log()

    def handle(self) -> Handle:
        """What `flm proxy status` says of this proxy."""
        return describe(
            instance_id=self._id,
            state=self._state,
            started_at=self._started_at,
            address=self._address,
            settings=self._publisher.resolved.settings,
            generations=self._generations,
            engines=self._publisher.engines,
            last_error=self._publisher.last_error,
            log_file=None if not self._boot.daemon else str(self._log_path()),
        )

    # --- the beginning -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        for folder in (self._folder.root, self._folder.run):
            await asyncio.to_thread(secure_folder, folder)
        await self._publisher.open()
        settings = (await self._publisher.load_settings()).settings
        await self._begin_log(settings)
        listening = sockets.open_listening(
            settings.proxy_bind, settings.proxy_port, settings.proxy_workers, settings.proxy_send_timeout_seconds
        )
        self._memory = Memory.create(self._folder.run, await self._publisher.key_count())
        self._generations = self._new_generations(listening, os.pipe())
        self._handle_signals()
        await self._prober.recall(self._publisher.databases()[0], time.time() - settings.engine_cache_ttl_seconds)
        await self._publisher.refresh(self._memory)
        self._control_socket = control.listen(self._folder.run / "control.sock")
        self._begin_background()
        self._write_record(settings)
        self._warn_of_limits(settings)
        first_round = asyncio.create_task(self._look_for_engines())
        self._tasks.append(first_round)
        await self._unless_stopped(self._generations.replace(settings))
        if not self._stop_seconds.done():
            await asyncio.wait([first_round], timeout=FIRST_ROUND_SECONDS)

    async def _resume(self, state: SupervisorState) -> None:
        """Go on where the former image of this process left; its workers are serving all the while."""
        drain = self._drain = LogDrain(self._sink(self._publisher.resolved.settings))
        self._own_log = state.own_log_fds
        for descriptor in (*state.log_fds, state.own_log_fds[0]):
            drain.add(descriptor)
        drain.start()
        self._install_log(self._publisher.resolved.settings)
        listening = [socket.socket(fileno=descriptor) for descriptor in state.listening_fds]
        adopted = Memory.adopt(state.shared_fd, state.keyring_fd)
        self._memory = adopted or Memory.create(self._folder.run, 0)
        if adopted is not None:
            self._publisher.adopt(adopted.keyring, state.chat_keys)
            self._publisher.engines = _published_engines(adopted)
        self._generations = self._new_generations(listening, state.life_fds)
        self._generations.number = state.generation
        self._generations.crew.adopt(state.workers)
        self._handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self._generations.crew.reap()  # those that died while nobody looked
        self._control_socket = socket.socket(fileno=state.control_fd)
        failure = await self._attempt_to_renew()
        self._begin_background()
        if state.reply_fd is not None:
            control.send_answer(socket.socket(fileno=state.reply_fd), self.handle(), failure)

    async def _attempt_to_renew(self) -> CommandError | None:
        """Databases, snapshot, workers anew. What fails is returned: the workers of before serve on."""
        try:
            await self._publisher.open()
            settings = (await self._publisher.load_settings()).settings
            self._install_log(settings)
            await self._prober.recall(self._publisher.databases()[0], 0.0)
            if not self._publisher.engines:
                await self._look_for_engines()
            await self._publisher.refresh(self._memory)
            await self._generations.replace(settings)
            self._write_record(settings)
        except CommandError as error:
            log.error("the restart did not succeed: %s", error.message)
            self._publisher.last_error = error.message
            return error
        return None

    def _new_generations(self, listening: list[socket.socket], life: tuple[int, int]) -> Generations:
        self._address = listening[0].getsockname()[:2]
        return Generations(
            listening, self._memory, life, str(self._folder.pepper), self._new_log_pipe, self._boot.worker_module
        )

    def _write_record(self, settings: Settings) -> None:
        me = instance.identify(os.getpid())
        if me is None:
            raise CommandError(CommandCode.IO_ERROR, "the system does not say when this process was started")
        address, port = self._address
        instance.write(
            self._folder.run,
            instance.Instance(
                id=self._id,
                pid=os.getpid(),
                start_time=me.start_time,
                boot_id=me.boot_id,
                mode=settings.proxy_mode,
                address=address,
                port=port,
                version=__version__,
                started_at=self._started_at,
            ),
        )

    def _warn_of_limits(self, settings: Settings) -> None:
        warning = sockets.descriptor_warning(sockets.raise_descriptor_limit(), settings.proxy_max_in_flight)
        if warning:
            log.warning("%s", warning)

    # --- while it runs -----------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop, None)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        loop.add_signal_handler(signal.SIGCHLD, self._generations.crew.reap)

    def _begin_background(self) -> None:
        self._control = ControlServer(self._control_socket, self._answer)
        self._control.start()
        watches = (self._watch_workers(), self._watch_databases(), self._watch_engines())
        self._tasks = [asyncio.create_task(watch) for watch in watches]

    async def _end_background(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _watch_workers(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - before < 3 * TICK_SECONDS:  # else this process itself was stopped: beats are old
                self._generations.tick()

    async def _watch_databases(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                if await self._publisher.changed():
                    await self._refresh()
                    log.info("a change of keys, engines or settings by another program is in force")
            except CommandError as error:
                self._publisher.last_error = error.message

    async def _watch_engines(self) -> None:
        while True:
            await asyncio.sleep(self._publisher.resolved.settings.engine_check_interval_seconds)
            await self._look_for_engines()

    async def _look_for_engines(self) -> None:
        """One round of the prober; what changed is in force afterwards."""
        try:
            before = self._publisher.engines
            if await self._prober.look(*self._publisher.databases(), self._publisher.resolved.settings):
                self._publisher.engines = self._prober.engines
                log.info("engines: %s", describe_change(before, self._prober.engines))
                await self._publisher.refresh(self._memory)
        except CommandError as error:
            self._publisher.last_error = error.message
        except TimeoutError:
            log.warning("a round of looking for engines took too long and was given up")

    async def _refresh(self) -> int:
        """Everything as the databases have it now is in force when this returns; its epoch."""
        if await self._prober.registered_changed(*self._publisher.databases()):
            await self._look_for_engines()
        return await self._publisher.refresh(self._memory)

    async def _answer(self, request: Request, connection: socket.socket) -> object:
        if request.op == "status":
            return self.handle()
        if request.op == "refresh":
            return {"epoch": await self._refresh()}
        if request.op == "chat-key":
            return {"key": await self._publisher.chat_key(self._memory)}
        if request.op == "stop":
            self._request_stop(0.0 if request.now else None)
            await self._stopped.wait()
            return {"stopped": True}
        if request.op == "reload":
            return await self._reload()
        if request.op == "restart":
            return await self._restart(connection)
        raise CommandError(CommandCode.USAGE, f"the proxy knows no operation {request.op!r}; is it of another version?")

    async def _reload(self) -> Handle:
        """New settings, new workers. Raises CommandError; then the workers of before serve on."""
        async with self._changing:
            self._refuse_while_stopping()
            self._state = "reloading"
            try:
                settings = (await self._publisher.load_settings()).settings
                self._refuse_other_address(settings)
                await self._refresh()
                await self._generations.replace(settings)
                self._install_log(settings)
            finally:
                self._state = "running" if not self._stop_seconds.done() else "stopping"
            return self.handle()

    def _reload_on_signal(self) -> None:
        async def reload() -> None:
            try:
                await self._reload()
            except CommandError as error:
                log.error("reload: %s", error.message)
                self._publisher.last_error = error.message

        self._tasks = [task for task in self._tasks if not task.done()] + [asyncio.create_task(reload())]

    def _refuse_other_address(self, settings: Settings) -> None:
        if (settings.proxy_bind, settings.proxy_port) != self._address:
            raise CommandError(
                CommandCode.PROXY_INVALID_CONFIG,
                f"the address cannot change while the proxy runs: it serves {self._address[0]} port {self._address[1]},"
                f" and the settings say {settings.proxy_bind} port {settings.proxy_port}; "
                "set them back, or `flm proxy stop` and `flm proxy start`",
            )

    def _refuse_while_stopping(self) -> None:
        if self._stop_seconds.done():
            raise CommandError(CommandCode.PROXY_NOT_RUNNING, "the proxy is stopping")

    # --- restart -----------------------------------------------------------------------------------------------

    async def _restart(self, connection: socket.socket) -> Handle:
        """Become the code that is installed now. Returns only if that fails, by raising CommandError."""
        async with self._changing:
            self._refuse_while_stopping()
            self._refuse_other_address((await self._publisher.load_settings()).settings)
            await preflight.check(self._boot)
            self._refuse_while_stopping()
            async with self._generations.at_rest():
                log.info("restarting in place")
                await self._end_background()
                await self._control.pause(but=asyncio.current_task(), grace=SETTLE_SECONDS)
                await self._publisher.close()
                assert self._drain is not None
                self._drain.stop(LOG_STOP_SECONDS)
                self._exec(connection)

    def _exec(self, connection: socket.socket) -> NoReturn:
        state = self._pass_on(connection.fileno())
        for descriptor in _descriptors(state):
            os.set_inheritable(descriptor, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # kept over exec: a signal waits until it is handled again
        os.execve(  # noqa: S606 - our own interpreter
            sys.executable,
            [sys.executable, "-P", "-m", "flm.runtime.supervisor", "--resume", str(_kept(pack(state)))],
            dict(os.environ),
        )

    def _pass_on(self, reply_fd: int) -> SupervisorState:
        assert self._drain is not None
        address, port = self._address
        return SupervisorState(
            boot=self._boot,
            instance_id=self._id,
            started_at=self._started_at,
            generation=self._generations.number,
            address=address,
            port=port,
            listening_fds=[each.fileno() for each in self._generations.listening],
            shared_fd=self._memory.shared_fd,
            keyring_fd=self._memory.keyring_fd,
            life_fds=self._generations.life,
            control_fd=self._control_socket.fileno(),
            log_fds=[each for each in self._drain.open_descriptors() if each != self._own_log[0]],
            own_log_fds=self._own_log,
            workers=[member.state() for member in self._generations.crew.members],
            reply_fd=reply_fd,
            chat_keys=self._publisher.chat_keys,
        )

    # --- the end -----------------------------------------------------------------------------------------------

    def _request_stop(self, seconds: float | None) -> None:
        """Stop; a second request while stopping, or zero seconds, no longer waits for streams."""
        if not self._stop_seconds.done():
            limit = self._publisher.resolved.settings.proxy_stop_timeout_seconds
            self._stop_seconds.set_result(limit if seconds is None else seconds)
        elif seconds == 0:
            self._generations.hurry()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, but not when a stop comes first: then let go of it, and return."""
        task = asyncio.ensure_future(work)
        waiting: list[asyncio.Future[Any]] = [task, self._stop_seconds]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _stop(self, seconds: float) -> None:
        self._state = "stopping"
        log.info("stopping; running requests may take %g s more", seconds)
        await self._generations.stop(seconds)
        await self._end_background()
        await self._publisher.close()
        self._forget()
        self._stopped.set()
        await self._control.pause(grace=SETTLE_SECONDS)
        self._control_socket.close()
        log.info("stopped")

    async def _abandon(self) -> None:
        """Something failed: leave nothing behind."""
        await self._end_background()
        if hasattr(self, "_generations"):
            await self._generations.stop(0.0)
        if hasattr(self, "_control"):
            await self._control.pause()
            self._control_socket.close()
        with contextlib.suppress(CommandError):
            await self._publisher.close()
        self._forget()

    def _forget(self) -> None:
        instance.remove(self._folder.run)
        for name in ("control.sock", "shared", "keyring"):
            with contextlib.suppress(OSError):
                (self._folder.run / name).unlink()

    # --- its log -----------------------------------------------------------------------------------------------

    async def _begin_log(self, settings: Settings) -> None:
        if self._boot.daemon:
            await asyncio.to_thread(secure_folder, self._log_path(settings).parent)
        self._drain = LogDrain(self._sink(settings))
        self._drain.start()
        self._own_log = os.pipe()
        self._drain.add(self._own_log[0])
        self._install_log(settings)

    def _install_log(self, settings: Settings) -> None:
        install(LogLines(self._own_log[1], lambda _: None), "supervisor", settings.log_level)

    def _sink(self, settings: Settings) -> Sink:
        if not self._boot.daemon:
            return Terminal()
        return RotatedFile(self._log_path(settings), settings.log_max_bytes, settings.log_keep)

    def _log_path(self, settings: Settings | None = None) -> Path:
        return self._folder.root / (settings or self._publisher.resolved.settings).log_file

    def _new_log_pipe(self) -> int:
        assert self._drain is not None
        reading, writing = os.pipe()
        self._drain.add(reading)
        return writing

    def _end_log(self) -> None:
        if self._drain is not None:
            self._drain.stop(LOG_STOP_SECONDS)


def _descriptors(state: SupervisorState) -> list[int]:
    """Every descriptor that must survive exec."""
    workers = [worker.control_fd for worker in state.workers]
    single = [state.boot.lock_fd, state.shared_fd, state.keyring_fd, state.control_fd]
    reply = [state.reply_fd] if state.reply_fd is not None else []
    return [*single, *reply, *state.listening_fds, *state.life_fds, *state.log_fds, *state.own_log_fds, *workers]


def _published_engines(memory: Memory) -> tuple[Engine, ...]:
    """The engines in force; none if what was published is of another version's shape."""
    try:
        return decode(memory.shared.snapshot()[1]).engines
    except msgspec.MsgspecError:
        return ()


def _kept(descriptor: int) -> int:
    os.set_inheritable(descriptor, True)
    return descriptor


def _not_inherited(state: SupervisorState) -> None:
    """What came over exec must not go on to workers by accident: the end of the life pipe least of all."""
    for descriptor in _descriptors(state):
        os.set_inheritable(descriptor, False)


class _Report:
    """Where whoever started this process reads how that went: the pid first, the outcome then.

    Raises BrokenPipeError if nobody reads any more: a start that nobody waits for is given up.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def pid(self) -> None:
        self._write(Answer(True, os.getpid()))

    def outcome(self, answer: Answer) -> None:
        self._write(answer)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, answer: Answer) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(answer) + b"\n")


def main() -> None:
    """Be a supervisor in the background: `flm.runtime.supervisor [--resume] DESCRIPTOR`."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if sys.argv[1] == "--resume":
        state = unpack(int(sys.argv[2]), SupervisorState)
        _not_inherited(state)
        asyncio.run(Supervisor(state.boot, state).run(lambda _: None))
        return
    boot = unpack(int(sys.argv[1]), SupervisorBoot)
    if os.fork():
        os._exit(0)  # so that the supervisor is nobody's child: who started it need not collect it
    for descriptor in (boot.lock_fd, boot.report_fd):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    report = _Report(boot.report_fd)
    try:
        report.pid()
        asyncio.run(Supervisor(boot).run(lambda handle: report.outcome(Answer(True, handle))))
    except BrokenPipeError:
        sys.exit(1)
    except CommandError as error:
        report.outcome(Answer(False, code=error.code.value, message=error.message))
        sys.exit(error.exit_code)
    except OSError as error:
        message = f"the system refused: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        report.outcome(Answer(False, code=CommandCode.IO_ERROR.value, message=message))
        sys.exit(CommandCode.IO_ERROR.exit_code)


if __name__ == "__main__":
    main()

"""One worker: the ASGI app on its inherited sockets, and what it does when it is told to go, or left alone.

Life: serve; `retire` (accept no more, close each connection after its next answer, leave when none can be left) or
`stop` (idle connections too), both with a deadline, after which streams are ended with one error event. When the
supervisor is gone the worker ends its streams and itself within ORPHAN_SECONDS; a thread makes sure of it.

Knows its boot document and the ASGI server; which app it serves is a parameter. Starts nothing, opens no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol

import msgspec
import uvloop

from flm._native import LOG_DROPPED, Buckets, Keyring, Rings, Shared
from flm.errors import ErrorKind, RequestError
from flm.runtime import crash, stragglers
from flm.runtime.boot import Order, Word, WorkerBoot, take_over, unpack
from flm.runtime.listener import App, Listener, NotServingError, cut
from flm.runtime.loglines import Batch, LogLines, install
from flm.runtime.memory import name_of_boot
from flm.runtime.reports import USE_SECONDS, FailureReports, UsedKeys

BEAT_SECONDS: Final = 0.5  # how often a worker says that it lives
READY_SECONDS: Final = 30.0  # until the accept loop has answered; a loaded machine needs one
ORPHAN_SECONDS: Final = 1.8  # from the supervisor's death to this process's own, at most
ABORT_SECONDS: Final = 1.2  # for error events to reach clients that read
QUIET_MARGIN_SECONDS: Final = 0.5  # beyond the idle timeout, after which the server has closed idle connections
COLLECT_AFTER: Final = 20_000  # new containers until the youngest are looked through; 700 by default
_POLL_SECONDS: Final = 0.1
_LINE_BYTES: Final = 4096

log = logging.getLogger("flm.worker")


class ServedApp(App, Protocol):
    """What a worker needs of the app beside calling it: see `flm.proxy.app.App`."""

    @property
    def in_flight(self) -> int: ...
    def drain(self) -> None: ...
    def abort_streams(self, error: RequestError) -> None: ...
    def end_revoked(self) -> None: ...
    def cut_slow(self, client: tuple[str, str]) -> None: ...
    async def aclose(self) -> None: ...


class Services(msgspec.Struct, frozen=True):
    """What the app is built from."""

    shared: Shared
    keyring: Keyring
    buckets: Buckets
    cell: int
    log: Callable[[bytes], None]
    audit: Callable[[bytes], bool]
    engine_failed: Callable[[str, str], None]
    key_used: Callable[[str], None]
    names: tuple[str, ...] = ()
    hsts: bool = False


CreateApp = Callable[[Services], ServedApp]
_orders = msgspec.json.Decoder(Order)


class Worker:
    """Serves until it is told to go."""

    def __init__(
        self,
        boot: WorkerBoot,
        app: ServedApp,
        shared: Shared,
        control: socket.socket,
        voice: socket.socket,
        used_keys: UsedKeys,
    ) -> None:
        self._boot = boot
        self._app = app
        self._shared = shared
        self._control = control
        self._voice = voice
        self._used_keys = used_keys
        self._going: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._listeners = [
            Listener(app, fd, header_timeout=boot.header_timeout, connections=boot.connections, tls=boot.tls)
            for fd in boot.listening_fds
        ]

    async def run(self) -> None:
        """Returns when everything has been served that can be, or the time for it is over."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._say, Word("leaving"))
        beating = loop.create_task(self._beat())
        reporting = loop.create_task(self._report_keys())
        listening = loop.create_task(self._listen_to_supervisor())
        try:
            for listener in self._listeners:
                listener.start()
            await asyncio.gather(*(listener.answers(READY_SECONDS) for listener in self._listeners))
            self._say(Word("ready"))
            await self._gone.wait()
        finally:
            tasks = (beating, reporting, listening)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._used_keys.tell()

    def orphaned(self) -> None:
        """The supervisor is gone: nobody replaces this worker, and nobody may meet its socket any more."""
        log.error("the supervisor is gone; ending")
        self._go(self._leave(ABORT_SECONDS, abort_now=True))

    async def _beat(self) -> None:
        while True:
            self._shared.beat(self._boot.cell, time.monotonic_ns() // 1_000_000)
            await asyncio.sleep(BEAT_SECONDS)

    async def _report_keys(self) -> None:
        while True:
            await asyncio.sleep(USE_SECONDS)
            self._used_keys.tell()

    async def _listen_to_supervisor(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._control, limit=_LINE_BYTES)
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                self._obey(_orders.decode(line))
        writer.transport.abort()

    def _obey(self, order: Order) -> None:
        if order.op == "retire":
            self._go(self._retire(order.seconds))
        elif order.op == "stop":
            self._go(self._leave(order.seconds, abort_now=False))
        elif order.op == "abort":
            self._go(self._leave(ABORT_SECONDS, abort_now=True))
        elif order.op == "revoked":
            self._app.end_revoked()

    def _go(self, way: Any) -> None:
        """Leave in this way, instead of a gentler one that may be under way."""
        if self._going is not None:
            self._going.cancel()
        self._going = asyncio.get_running_loop().create_task(way)

    async def _retire(self, seconds: float) -> None:
        """Hand the socket over to a successor that already serves it; be there for every connection accepted here."""
        self._app.drain()
        for listener in self._listeners:
            listener.retire()
        self._say(Word("retired"))
        quiet = self._boot.header_timeout + QUIET_MARGIN_SECONDS
        now = time.monotonic()
        deadline, quiet_since = now + seconds, now
        while now < deadline and now < quiet_since + quiet:
            await asyncio.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if self._app.in_flight or any(listener.called_since(quiet_since) for listener in self._listeners):
                quiet_since = now
        await self._leave(ABORT_SECONDS, abort_now=bool(self._app.in_flight))

    async def _leave(self, seconds: float, *, abort_now: bool) -> None:
        """Close the server: what runs may go on for `seconds`, then it is ended with an error."""
        self._app.drain()
        finishing = asyncio.gather(*(listener.finish() for listener in self._listeners), return_exceptions=True)
        if not abort_now:
            await asyncio.wait([finishing], timeout=seconds)
        if not finishing.done():
            self._app.abort_streams(RequestError(ErrorKind.ENGINE_UNAVAILABLE, _ENDED))
            await asyncio.wait([finishing], timeout=ABORT_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS / 4):
                await self._app.aclose()
        self._gone.set()

    def _say(self, word: Word) -> None:
        _say(self._voice, word)


_ENDED: Final = "FLM is stopping or being replaced and this answer took longer than it could wait; ask again"


def run(boot: WorkerBoot, create_app: CreateApp) -> None:
    """Be a worker until it ends; exits the process. `create_app` makes the ASGI app from the worker's services."""
    control = socket.socket(fileno=boot.control_fd)
    control.setblocking(False)
    voice = control.dup()  # the other one is closed by its stream, also when there is still something to say
    shared = Shared.attach(boot.shared_fd)
    lines = LogLines(boot.log_fd, lambda count: shared.add(boot.cell, LOG_DROPPED, count))
    os.dup2(boot.log_fd, 2)  # a crash's last words belong to the log as well
    install(lines, f"worker {boot.slot}", boot.log_level)
    requests = Batch(lines)
    try:
        with open(boot.pepper, "rb") as file:
            keyring = Keyring.attach(boot.keyring_fd, file.read())
        reports = FailureReports(lambda word: _say(voice, word))
        used_keys = UsedKeys(lambda word: _say(voice, word))
        buckets = Buckets.attach(boot.buckets_fd, name_of_boot())
        audit = partial(Rings.attach(boot.rings_fd).push, boot.cell)
        names, hsts = (boot.tls.names, boot.tls.hsts) if boot.tls else ((), False)
        services = Services(shared, keyring, buckets, boot.cell, requests.write, audit, reports, used_keys, names, hsts)
        app = create_app(services)
        _calm_collector()
        uvloop.run(_serve(boot, app, shared, control, voice, used_keys))
    except Exception as error:
        log.exception("the worker cannot go on")
        _say_failed(voice, error)
        requests.flush()
        _exit(1)
    requests.flush()
    _exit(0)


def _calm_collector() -> None:
    """Spare requests the collector's work: what is imported by now stays, and a request leaves hardly any cycles.

    With the interpreter's own thresholds a tenth of a request's time went into looking for them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


async def _serve(
    boot: WorkerBoot,
    app: ServedApp,
    shared: Shared,
    control: socket.socket,
    voice: socket.socket,
    used_keys: UsedKeys,
) -> None:
    worker = Worker(boot, app, shared, control, voice, used_keys)
    with socket.socket(fileno=os.dup(boot.listening_fds[0])) as listening:
        port = listening.getsockname()[1]
    loop = asyncio.get_running_loop()
    stragglers.watch(port, boot.min_bytes_per_second, boot.send_timeout, partial(_cut_slow, loop, app))
    crash.watch(loop)
    threading.Thread(
        target=_watch_supervisor, args=(boot.life_fd, loop, worker.orphaned), name="life", daemon=True
    ).start()
    await worker.run()


def _cut_slow(loop: asyncio.AbstractEventLoop, app: ServedApp, client: tuple[str, str]) -> None:
    """Called in a thread of its own."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is on its way out
        loop.call_soon_threadsafe(app.cut_slow, client)


def _watch_supervisor(life_fd: int, loop: asyncio.AbstractEventLoop, orphaned: Callable[[], None]) -> None:
    """A thread, so that a stuck loop cannot keep an orphan alive. Nothing is ever written to this pipe."""
    os.read(life_fd, 1)
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is on its way out
        loop.call_soon_threadsafe(orphaned)
    time.sleep(ORPHAN_SECONDS)
    _exit(1)


def _say_failed(voice: socket.socket, error: Exception) -> None:
    plain = isinstance(error, NotServingError)
    text = str(error) if plain else f"{type(error).__name__}: {error}".removesuffix(": ")
    _say(voice, Word("failed", text[:1000]))


def _say(voice: socket.socket, word: Word) -> None:
    """Never blocks: what a supervisor that does not listen has no room for is lost."""
    with contextlib.suppress(OSError):
        voice.send(msgspec.json.encode(word) + b"\n")


def _exit(code: int) -> None:
    """Without the interpreter's own end, where the server's threads could block."""
    logging.shutdown()
    os._exit(code)


def _create_app(services: Services) -> ServedApp:
    from flm.proxy.app import WorkerContext, create_app

    def cut_connection(client: tuple[str, str]) -> None:
        if not cut(client):
            log.debug("a connection to be cut was gone already")

    return create_app(
        WorkerContext(
            shared=services.shared,
            keyring=services.keyring,
            buckets=services.buckets,
            slot=services.cell,
            log=services.log,
            audit=services.audit,
            cut=cut_connection,
            engine_failed=services.engine_failed,
            key_used=services.key_used,
            names=services.names,
            hsts=services.hsts,
        )
    )


def begin(arguments: Sequence[str], create_app: CreateApp, warm_up: Callable[[], None]) -> None:
    """Be a worker as told by the command line: `DESCRIPTOR` of its document, or `--warm CONTROL_FD LOG_FD`.

    `warm_up` imports what `create_app` will need; what it raises is told to the supervisor, and ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to answer
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    crash.prepare()
    if arguments[0] != "--warm":
        run(unpack(int(arguments[0]), WorkerBoot), create_app)
        return
    control = socket.socket(fileno=int(arguments[1]))
    try:
        warm_up()
    except Exception as error:
        _say_failed(control, error)
        _exit(1)
    control.send(msgspec.json.encode(Word("warm")) + b"\n")
    _calm_collector()  # now, while whoever asked is busy: it would keep a successor from being ready
    boot = take_over(control, int(arguments[2]))
    if boot is None:
        _exit(0)  # not needed
    else:
        run(boot, create_app)


def _warm_up() -> None:
    import_module("flm.proxy.app")


if __name__ == "__main__":
    begin(sys.argv[1:], _create_app, _warm_up)

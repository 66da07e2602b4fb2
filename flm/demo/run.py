"""Runs the demo engine until it is told to end: by SIGTERM, SIGINT, or by its parent closing the pipe it reads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import msgspec
import uvloop

from flm.demo.dialect import Dialect
from flm.demo.server import IDLE_SECONDS, Server


class Ready(msgspec.Struct, frozen=True):
    """What is said when the engine listens: one JSON line."""

    url: str
    dialect: str
    model: str
    pid: int


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """How to run it. `port` 0: any free one. `parent_pipe`: a descriptor whose end of file ends the engine too.

    `pace`: seconds between the pieces of a stream that asks for no other.
    `controls` opens the `/demo/` routes: for tests only, since they show what others asked.
    """

    dialect: Dialect
    host: str = "127.0.0.1"
    port: int = 0
    controls: bool = False
    idle_seconds: float = IDLE_SECONDS
    pace: float = 0.0
    parent_pipe: int | None = None


def run(running: Running, announce: Callable[[Ready], None]) -> None:
    """Serve until told to end; calls `announce` once the socket listens. Raises OSError if it cannot listen."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(running, announce))


async def _serve(running: Running, announce: Callable[[Ready], None]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = Server(running.dialect, controls=running.controls, idle_seconds=running.idle_seconds, pace=running.pace)
    listener = await server.listen(running.host, running.port)
    port = listener.sockets[0].getsockname()[1]
    host = f"[{running.host}]" if ":" in running.host else running.host
    if running.parent_pipe is not None:
        loop.add_reader(running.parent_pipe, _read_parent, running.parent_pipe, ended)
    announce(Ready(f"http://{host}:{port}", running.dialect.name, running.dialect.models[0], os.getpid()))
    await ended.wait()
    listener.close()
    await server.close()


def _read_parent(pipe: int, ended: asyncio.Event) -> None:
    if not os.read(pipe, 4096):
        asyncio.get_running_loop().remove_reader(pipe)
        ended.set()


def print_ready(ready: Ready) -> None:
    """Announce on standard output."""
    sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
    sys.stdout.flush()

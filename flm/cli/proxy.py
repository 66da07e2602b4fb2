"""`flm proxy …`: the verbs that start, stop and look after the proxy."""

from __future__ import annotations

import argparse
import io
import os
import stat
import sys
from typing import TYPE_CHECKING

from flm.cli.command import Context, Noun, Output

if TYPE_CHECKING:
    from flm.config import Value

_COLUMNS = ("id", "pid", "state", "mode", "listen_addr", "workers", "uptime", "last_error")
# option -> the setting it overrides
_FLAGS = {
    "mode": "proxy.mode",
    "port": "proxy.port",
    "bind": "proxy.bind",
    "workers": "proxy.workers",
    "log_level": "log.level",
}


def register(noun: Noun) -> None:
    start = noun.verb("start", _start, "start it, and return when a request to it succeeds")
    start.add_argument("--mode", metavar="M", help="how the listener is secured: local-http")
    start.add_argument("--port", metavar="N", help="port to listen on (3560)")
    start.add_argument("--bind", metavar="A", help="address to listen on (127.0.0.1)")
    start.add_argument("--workers", metavar="N", help="worker processes (1)")
    start.add_argument("--log-level", metavar="L", help="debug, info, warning or error")
    start.add_argument("--no-daemon", action="store_true", help="stay in the foreground, log on stderr")
    stop = noun.verb("stop", _stop, "end it, when its streams have finished or their time is over")
    stop.add_argument("--port", type=int, metavar="N", help="only if it listens on this port")
    stop.add_argument("--now", action="store_true", help="do not wait for streams")
    noun.verb("restart", _restart, "new supervisor and workers, nothing refused or cut")
    noun.verb("reload", _reload, "new workers and settings, nothing refused or cut")
    noun.verb("status", _status, "what runs")


def _flags(arguments: argparse.Namespace) -> dict[str, Value]:
    given = {setting: getattr(arguments, name) for name, setting in _FLAGS.items()}
    return {setting: value for setting, value in given.items() if value is not None}


async def _start(arguments: argparse.Namespace, context: Context) -> Output | None:
    from flm.services.proxy import ProxyService

    service = ProxyService(context.folder)
    first_key = _somebody_reads()
    if not arguments.no_daemon:
        return Output(await service.start(_flags(arguments), first_key=first_key))

    from flm.cli.output import show

    await service.serve(_flags(arguments), lambda started: show(Output(started), context.format), first_key=first_key)
    return None


def _somebody_reads() -> bool:
    """Whether stdout is a terminal or a pipe. A service manager's log, or a file, would keep a key for ever."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except io.UnsupportedOperation:  # called from a program that collects what is printed
        return True
    return sys.stdout.isatty() or stat.S_ISFIFO(mode)


async def _stop(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).stop(port=arguments.port, now=arguments.now))


async def _restart(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).restart())


async def _reload(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).reload())


async def _status(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).status(), _COLUMNS)

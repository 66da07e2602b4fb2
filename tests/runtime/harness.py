"""Real proxies for the tests of the process machinery: one per test folder, with tiny workers, and clients that count.

Clients speak raw HTTP over sockets, so that a reset, a cut or an empty answer is seen as what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from flm.config import Value
from flm.runtime.handle import Handle
from flm.services.proxy import ProxyService
from flm.store.folder import Folder, locate
from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
TINY = "tests.runtime.tiny_worker"
REQUEST = b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
CLOSE = b"Connection: close\r\n"


class Running:
    """A proxy under test."""

    def __init__(self, folder: Folder, flags: Mapping[str, Value], worker_module: str = TINY) -> None:
        self.folder = folder
        self.plain_port = self.port = int(flags["proxy.port"])
        if flags.get("proxy.mode", "local-http") != "local-http":
            self.port = int(flags["proxy.https_port"])
        self.flags = dict(flags)
        self.service = ProxyService(folder, worker_module=worker_module)

    async def start(self) -> Handle:
        return await self.service.start(self.flags, first_key=False)

    async def handle(self) -> Handle:
        (handle,) = await self.service.status()
        return handle

    def trusting(self) -> ssl.SSLContext:
        """A client's settings that trust the local root of this proxy's folder, and nobody else."""
        return ssl.create_default_context(cafile=str(self.folder.certs / "local-root.crt"))

    def log(self) -> str:
        path = self.folder.logs / "flm.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def prepare(root: Path, worker_module: str = TINY, **flags: Value) -> Running:
    """A proxy that is not started yet; `flags` are settings with `__` for the dot."""
    http, https = free_ports(2)
    chosen: dict[str, Value] = {
        "proxy.port": http,
        "proxy.https_port": https,
        **{key.replace("__", "."): v for key, v in flags.items()},
    }
    return Running(locate({"FLM_HOME": str(root / "home")}), chosen, worker_module)


@contextlib.asynccontextmanager
async def running(root: Path, worker_module: str = TINY, **flags: Value) -> AsyncIterator[Running]:
    """A started proxy; afterwards nothing of it lives."""
    proxy = prepare(root, worker_module, **flags)
    handle = await proxy.start()
    pids = {handle.pid}
    try:
        yield proxy
    finally:
        with contextlib.suppress(Exception):
            found = await proxy.service.status()
            pids |= {pid for each in found for pid in (each.pid, *each.worker_pids, *each.draining_pids)}
            await proxy.service.stop(now=True)
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rfind(b")") + 2 : stat.rfind(b")") + 3] not in (b"Z", b"X")


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition came true; fails after `seconds`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.005)
    return loop.time() - began


async def get(port: int, path: str = "/echo", seconds: float = 10.0, tls: ssl.SSLContext | None = None) -> bytes:
    """The whole answer to one request on a connection of its own."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            writer.write(REQUEST % (path.encode(), CLOSE))
            return await reader.read()
        finally:
            writer.close()


class Load:
    """Clients of one port, and what happened to their requests: `ok`, or how it went wrong."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.tls = tls
        self.seen: Counter[str] = Counter()
        self._stopping = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    def add(self, *, fresh: int = 0, reused: int = 0, streams: int = 0, events: int = 100) -> None:
        makers = [self._fresh] * fresh + [self._reused] * reused
        self._clients += [asyncio.create_task(maker()) for maker in makers]
        self._clients += [asyncio.create_task(self._streams(events)) for _ in range(streams)]

    async def finish(self) -> Counter[str]:
        """Let every client end its present request, and say what was seen."""
        self._stopping.set()
        await asyncio.gather(*self._clients)
        return self.seen

    async def _fresh(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = await get(self.port, tls=self.tls)
                self.seen[
                    "fresh ok" if answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"}") else "fresh bad"
                ] += 1
            except (OSError, TimeoutError) as error:
                self.seen[f"fresh {type(error).__name__}"] += 1

    async def _reused(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stopping.is_set():
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
                reader, writer = connection
                async with asyncio.timeout(10):
                    writer.write(REQUEST % (b"/echo", b""))
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    await reader.readexactly(length)
                self.seen["reused ok"] += 1
                if b"connection: close" in head.lower():
                    writer.close()
                    connection = None
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.seen[f"reused {type(error).__name__}"] += 1
                connection = None
            await asyncio.sleep(0.01)
        if connection:
            connection[1].close()

    async def _streams(self, events: int) -> None:
        while not self._stopping.is_set():
            try:
                answer = await get(self.port, f"/stream/{events}", seconds=60, tls=self.tls)
                whole = answer.count(b"data: ") == events + 1 and b"[DONE]" in answer and answer.endswith(b"0\r\n\r\n")
                self.seen["stream ok" if whole else "stream cut"] += 1
            except (OSError, TimeoutError) as error:
                self.seen[f"stream {type(error).__name__}"] += 1


def only_ok(seen: Counter[str]) -> bool:
    return bool(seen) and all(name.endswith(" ok") for name in seen)

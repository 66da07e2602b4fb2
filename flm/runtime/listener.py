"""The ASGI server on an inherited listening socket, and how to take it off that socket without a client noticing.

The only file that names the server besides its test: everything private that FLM uses of it is in here, and pinned by
`tests/runtime/test_granian.py`. What the server does with hostile requests is written in docs/granian.md.

Knows nothing of workers, snapshots or routes: it is handed a descriptor and an ASGI app.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

import granian.net
from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings
from granian.server.embed import Server

from flm.config import MAX_HEADER_BYTES
from flm.runtime.boot import Tls, in_memory
from flm.runtime.sockets import BACKLOG, own_sockets

PROBE_WAIT_SECONDS: Final = 0.05  # how long one probe may take before another is sent: a sibling may have got it
_PROBES_AT_ONCE: Final = 8

Scope = Mapping[str, Any]


class App(Protocol):
    """An ASGI callable."""

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Awaitable[None]: ...


class NotServingError(Exception):
    """The server does not do what it was started for; the text says how that shows."""


class _Door:
    """The app as the server sees it. While a worker starts, it notices the worker's own probe connections, and while it
    drains, when the last request came; in between it only passes on.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._probes: dict[str, asyncio.Event] = {}
        self.watched = True
        self.last_call = 0.0

    def __call__(self, scope: Scope, receive: Any, send: Any) -> Awaitable[None]:
        if self.watched:
            self.last_call = time.monotonic()
            arrived = self._probes.get(scope["client"][1])
            if arrived is not None:
                arrived.set()
        return self._app(scope, receive, send)

    @contextlib.contextmanager
    def expecting(self, port: str, arrived: asyncio.Event) -> Any:
        self._probes[port] = arrived
        try:
            yield
        finally:
            del self._probes[port]


class Listener(Server):
    """One embedded server on the listening socket `descriptor`, which the server takes over.

    `header_timeout` (seconds) bounds a request's head and an idle keep-alive connection; `connections` is how many
    are served at once, further ones wait in the kernel's queue. `tls`: None serves plain HTTP. To be used on a running
    event loop.
    """

    def __init__(
        self, app: App, descriptor: int, *, header_timeout: float, connections: int, tls: Tls | None = None
    ) -> None:
        self._door = _Door(app)
        self._descriptor = descriptor
        self._tls = tls
        self._serving: asyncio.Task[None] | None = None
        super().__init__(
            self._door,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            task_impl=TaskImpl.asyncio,
            websockets=False,
            backlog=BACKLOG,
            backpressure=connections,
            http1_settings=HTTP1Settings(
                header_read_timeout=round(header_timeout * 1000), keep_alive=True, max_buffer_size=MAX_HEADER_BYTES
            ),
            log_enabled=False,  # it logs the text of exceptions; FLM's app lets none out
        )

    def _init_shared_socket(self) -> None:
        """Private in the server: it would bind a socket of its own here. FLM's is bound by the supervisor."""
        holder: Any = granian.net
        takes_backlog = (BACKLOG,) if sys.platform.startswith("linux") else ()
        descriptor: Any = self._descriptor
        self._shd = holder.SocketHolder(descriptor, False, *takes_backlog)
        self._sfd = descriptor

    def build_ssl_context(self, *_: Any) -> None:
        """Public in the server, and replaced: it would want paths, and read the disk. What is served is what the
        supervisor has verified. The certificate and the key each have a file of their own, since one that is opened
        twice may share its position (macOS)."""
        if self._tls is None:
            self.ssl_ctx: tuple[Any, ...] = (False, None, None, None, "tls1.3", None, [], False)
            return
        self._certificate = [in_memory(self._tls.pem) for _ in range(2)]
        certificate, key = (f"/dev/fd/{file.fileno()}" for file in self._certificate)
        self.ssl_ctx = (True, certificate, key, None, f"tls{self._tls.min_version}", None, [], False)

    def start(self) -> None:
        """Begin to accept. Returns before the first connection is accepted: see `answers`."""
        self._serving = asyncio.get_running_loop().create_task(self.serve())

    async def answers(self, timeout: float) -> None:
        """Return once a connection made here was accepted by this very server and got a 200 for /health, or a 403.

        Another worker may share the socket, or the port with another socket, and take a probe: then the next one may
        arrive. Raises NotServingError: the app answered with another status, or nothing within `timeout` seconds.
        """
        address = _reachable(socket.socket(fileno=os.dup(self._descriptor)))
        probes: set[asyncio.Task[bytes | None]] = set()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if len(probes) < _PROBES_AT_ONCE:
                        probes.add(asyncio.create_task(self._probe(address)))
                    done, probes = await asyncio.wait(
                        probes, timeout=PROBE_WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for answer in (probe.result() for probe in done):
                        if answer is not None:
                            return _check(answer)
        except TimeoutError:
            raise NotServingError(f"the accept loop has not answered within {timeout:g} s") from None
        finally:
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)
            self._door.watched = False

    async def _probe(self, address: tuple[str, int]) -> bytes | None:
        """The first line of this server's answer to a probe; None if another server got it, or nobody was there."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, address)
                with self._door.expecting(str(connection.getsockname()[1]), arrived):
                    line = await _ask(connection, encrypted=self._tls is not None)
            except (OSError, ValueError):
                return None
        return line if arrived.is_set() else None

    def called_since(self, moment: float) -> bool:
        """Whether a request came after `moment` (monotonic seconds). Known from `retire` on."""
        return self._door.last_call > moment

    def retire(self) -> None:
        """Stop accepting, for good, without touching what is accepted already or what waits in the socket's queue.

        An idle listening socket takes the descriptor's place, so the accept loop finds nothing there, while the
        successor's copy of the socket goes on.
        """
        self._door.watched = True
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as idle:
            idle.bind(("127.0.0.1", 0))
            idle.listen(0)
            idle.setblocking(False)
            os.dup2(idle.fileno(), self._descriptor, inheritable=False)

    async def finish(self) -> None:
        """Stop accepting, close idle connections, wait for running requests without limit: bound it from outside."""
        if self._serving is None:
            return
        self.stop()  # type: ignore[no-untyped-call]  # the server's methods have no annotations
        await asyncio.shield(self._serving)  # who waits may be cancelled; the server ends all the same


async def _ask(connection: socket.socket, *, encrypted: bool) -> bytes:
    """The first line of the answer to a request for /health."""
    reader, writer = await asyncio.open_connection(
        sock=connection.dup(), ssl=_trusting() if encrypted else None, server_hostname="" if encrypted else None
    )
    try:
        writer.write(_HEALTH_REQUEST)
        return (await reader.readline()).rstrip()
    finally:
        writer.transport.abort()


def _trusting() -> ssl.SSLContext:
    """For a connection to this very process, which is known by its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # allowed unverified-tls: it is this very process
    context.verify_mode = ssl.CERT_NONE  # allowed unverified-tls: idem
    return context


_HEALTH_REQUEST: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# A policy may shut out this machine's own addresses: whoever says so to a probe serves all others.
_SERVING: Final = (b"HTTP/1.1 200", b"HTTP/1.1 403")


def _check(answer: bytes) -> None:
    if not answer.startswith(_SERVING):
        raise NotServingError(f"/health was answered with {answer.decode('latin-1')!r}; the log says why")


def _reachable(listening: socket.socket) -> tuple[str, int]:
    """An address under which a listening socket can be reached from this machine."""
    with listening:
        host, port = listening.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 - compared with, not bound to


def cut(client: tuple[str, str]) -> bool:
    """Shut down the connection of this process whose peer is `client` (address and port, as in an ASGI scope).

    The only way to free a connection whose client reads a byte now and then: the server has no such call. True if it
    was found. Looks at every descriptor of the process: some milliseconds for ten thousand, so for rare events.
    """
    host, port = client
    for connection in own_sockets():
        with connection, contextlib.suppress(OSError):
            peer = connection.getpeername()
            if len(peer) >= 2 and peer[0] == host and str(peer[1]) == port:
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False

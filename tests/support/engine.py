"""A scripted engine for tests: a raw TCP server on loopback that does exactly what its script says, byte by byte.

A script is a list of steps for one connection; the engine takes one script per connection, in order, and repeats the
last. After its script a connection is closed in order. Everything is recorded: the bytes of each connection, and the
moment at which the other side closed. Waits are on events, never on time. It knows no HTTP but where a request ends.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType

Step = Callable[["Peer"], Awaitable[None]]
Script = Iterable[Step]


class Peer:
    """The engine's end of one connection. `received`: every byte so far; `sent`: how many bytes the kernel took.

    `closed` is set when the other side has closed or reset, `closed_at` is the monotonic time of that moment.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.received = bytearray()
        self.requests: list[bytes] = []
        self.sent = 0
        self.closed = asyncio.Event()
        self.closed_at = 0.0
        self.stalled = asyncio.Event()  # this step of the script is reached: nothing more will come of it
        self._consumed = 0

    async def receive_some(self) -> bool:
        """Record what comes next; False when the other side is gone."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed_at = time.monotonic()
            self.closed.set()
        self.received += data
        return bool(data)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                count = self.socket.send(view)
            except BlockingIOError:
                await self._writable()
                continue
            self.sent += count
            view = view[count:]

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self.socket.fileno(), lambda: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_writer(self.socket.fileno())

    def next_request(self) -> bytes | None:
        """The next whole request among the recorded bytes."""
        head_end = self.received.find(b"\r\n\r\n", self._consumed)
        if head_end < 0:
            return None
        length = 0
        for line in bytes(self.received[self._consumed : head_end]).split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        end = head_end + 4 + length
        if len(self.received) < end:
            return None
        request = bytes(self.received[self._consumed : end])
        self._consumed = end
        return request


def receive(peer_count: int = 1) -> Step:
    """Wait for whole requests."""

    async def step(peer: Peer) -> None:
        for _ in range(peer_count):
            while (request := peer.next_request()) is None:
                if not await peer.receive_some():
                    raise ConnectionAbortedError("the client closed before its request was whole")
            peer.requests.append(request)

    return step


def seen(marker: bytes) -> Step:
    """Wait until `marker` is among the bytes received."""

    async def step(peer: Peer) -> None:
        looked = 0
        while peer.received.find(marker, looked) < 0:
            looked = max(len(peer.received) - len(marker) + 1, 0)
            if not await peer.receive_some():
                raise ConnectionAbortedError("the client closed before the marker came")

    return step


def say(data: bytes) -> Step:
    """Send bytes: an answer, a part of one, or garbage."""

    async def step(peer: Peer) -> None:
        await peer.send(data)

    return step


def bytewise(data: bytes) -> Step:
    """Send each byte as a segment of its own, as far as the kernel agrees."""

    async def step(peer: Peer) -> None:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(data)):
            await peer.send(data[index : index + 1])
            await asyncio.sleep(0)

    return step


def cut(data: bytes, at: int) -> Step:
    """Send the first `at` bytes only."""
    return say(data[:at])


def until(event: asyncio.Event) -> Step:
    """Delay: go on when the test says so."""

    async def step(peer: Peer) -> None:
        await event.wait()

    return step


def mark(event: asyncio.Event) -> Step:
    """Tell the test that the script got here."""

    async def step(peer: Peer) -> None:
        event.set()

    return step


def fin() -> Step:
    """Close the sending side in order, and wait for the other side to close."""

    async def step(peer: Peer) -> None:
        peer.socket.shutdown(socket.SHUT_WR)
        while await peer.receive_some():
            pass

    return step


def rst() -> Step:
    """Reset the connection."""

    async def step(peer: Peer) -> None:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()

    return step


def stall() -> Step:
    """Read on, answer nothing, until the other side closes."""

    async def step(peer: Peer) -> None:
        peer.stalled.set()
        while await peer.receive_some():
            pass

    return step


def deaf() -> Step:
    """Neither read nor answer, until the engine is stopped."""

    async def step(peer: Peer) -> None:
        peer.stalled.set()
        await asyncio.Event().wait()

    return step


def flood(piece: bytes, limit: int) -> Step:
    """Send `piece` over and over, up to `limit` bytes, as fast as the other side takes it."""

    async def step(peer: Peer) -> None:
        while peer.sent < limit:
            await peer.send(piece)

    return step


def interim(count: int) -> Step:
    """A row of 1xx answers."""
    return say(b"HTTP/1.1 100 Continue\r\n\r\n" * count)


def serve(answers: Mapping[str, bytes], otherwise: bytes | None = None) -> Step:
    """Keep-alive: answer each request by its path until the other side closes."""

    async def step(peer: Peer) -> None:
        while True:
            while (request := peer.next_request()) is None:
                if not await peer.receive_some():
                    return
            peer.requests.append(request)
            path = request.split(b" ", 2)[1].decode()
            await peer.send(answers.get(path, otherwise or answer(404, b"not here")))

    return step


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    """One whole answer with a content-length; `headers` are lines without CRLF."""
    lines = (b"HTTP/1.1 %d Scripted" % status, *headers, b"content-length: %d" % len(body), b"", body)
    return b"\r\n".join(lines)


def chunked(status: int, pieces: Iterable[bytes], *headers: bytes) -> bytes:
    """One whole answer in chunks."""
    lines = (b"HTTP/1.1 %d Scripted" % status, *headers, b"transfer-encoding: chunked", b"", b"")
    return b"\r\n".join(lines) + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class ScriptedEngine:
    """`async with ScriptedEngine([script, …]) as engine`: listens on loopback while inside. `peers`: connections so
    far; `errors`: what went wrong inside scripts, which a test should find empty."""

    def __init__(self, *scripts: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        self._scripts = [list(script) for script in scripts]
        self._listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
        self._listener.setblocking(False)
        self._host = host
        self.port = int(self._listener.getsockname()[1])
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def peer(self, index: int) -> Peer:
        """The `index`-th connection, as soon as it is there."""
        while len(self.peers) <= index:
            self._arrived.clear()
            await self._arrived.wait()
        return self.peers[index]

    async def stop_listening(self) -> None:
        """Refuse connections from now on; those that exist go on."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()

    async def __aenter__(self) -> ScriptedEngine:
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        for peer in self.peers:
            peer.socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            peer = Peer(sock)
            script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
            self.peers.append(peer)
            self._arrived.set()
            task = loop.create_task(self._play(peer, script))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _play(self, peer: Peer, script: list[Step]) -> None:
        try:
            for step in script:
                await step(peer)
        except OSError as error:
            if not peer.closed.is_set():
                peer.closed_at = time.monotonic()
                peer.closed.set()
            self.errors.append(error)
        except Exception as error:
            self.errors.append(error)
        finally:
            peer.socket.close()

"""TLS in front of a plain engine, as a reverse proxy on another machine would be: bytes pass, nothing is looked at.

with tls_front(pair, engine.url) as front:
    ... front.url ...; front.show(another_pair)
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


class Front:
    """One front; `port` on 127.0.0.1."""

    def __init__(self, certificate: Path, engine: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._engine = urlsplit(engine)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def show(self, certificate: Path) -> None:
        """Another certificate for connections from now on; those there are end."""
        self._context.load_cert_chain(certificate)
        self._loop.call_soon_threadsafe(self._drop)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def wait(self) -> None:
        assert self._ready.wait(10)

    def _drop(self) -> None:
        for each in self._connections:
            each.cancel()

    async def _serve(self) -> None:
        self._loop.set_exception_handler(lambda _loop, _context: None)  # handshakes that are refused: the test's point
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        self._drop()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        engine_writer = None
        try:
            engine_reader, engine_writer = await asyncio.open_connection(self._engine.hostname, self._engine.port)
            await asyncio.wait(
                [
                    asyncio.ensure_future(_pass_on(reader, engine_writer)),
                    asyncio.ensure_future(_pass_on(engine_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()
            if engine_writer is not None:
                engine_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)


@contextmanager
def tls_front(certificate: Path, engine: str) -> Iterator[Front]:
    front = Front(certificate, engine)
    thread = threading.Thread(target=front.run)
    thread.start()
    front.wait()
    try:
        yield front
    finally:
        front.end()
        thread.join(10)

"""Engines behind https://: verified by the system's authorities, and refused clearly when they are not who they say."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flm.engines.base import UpstreamRequest
from flm.errors import ErrorKind, RequestError, UpstreamProtocolError
from flm.upstream.pool import Pool, Timeouts
from tests.support.engine import ScriptedEngine, answer, receive, say, stall
from tests.upstream.conftest import Run

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")

ASK = UpstreamRequest("/v1/models", b"", "GET")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for `localhost` (not for 127.0.0.1), its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "only.pem"]
    subprocess.run([*command.split(), *options], cwd=folder, check=True, capture_output=True, timeout=30)
    both = folder / "both.pem"
    both.write_text((folder / "only.pem").read_text() + (folder / "key.pem").read_text())
    return both


class TlsEngine:
    """Answers each request with the same bytes; `requests` is what it could read."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[bytes] = []
        self.closed = asyncio.Event()


@asynccontextmanager
async def tls_engine(certificate: Path, reply: bytes) -> AsyncIterator[TlsEngine]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                engine.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            engine.closed.set()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    engine = TlsEngine(server.sockets[0].getsockname()[1])
    try:
        yield engine
    finally:
        server.close()
        await server.wait_closed()
        accepting = asyncio.all_tasks() - {asyncio.current_task()}
        if accepting:  # the standard loop's own: a handshake that failed is still being cleaned up
            await asyncio.wait(accepting)


def open_pool(url: str, connect: float = 5.0) -> Pool:
    timeouts = Timeouts(connect=connect, first_byte=5, between_bytes=5)
    return Pool(url, credential="sekret", idle_seconds=5, timeouts=timeouts, max_in_flight=0)


async def failure(pool: Pool) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await pool.send(ASK)
    await pool.close()
    assert "sekret" not in caught.value.message
    return caught.value


def test_a_trusted_engine_is_asked_over_one_connection(
    run: Run, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    body = b"x" * 1_000_000

    async def main() -> None:
        async with tls_engine(certificate, answer(200, body)) as engine:
            pool = open_pool(f"https://localhost:{engine.port}")
            for _ in range(2):
                response = await pool.send(ASK)
                received = b""
                while piece := await response.read():
                    received += piece
                assert received == body
                response.release()
            assert pool.idle == 1
            assert b"authorization: Bearer sekret" in engine.requests[1]
            (await pool.send(ASK)).abort()
            await engine.closed.wait()
            await pool.close()

    run(main())


def test_an_untrusted_engine_gets_no_request(run: Run, certificate: Path) -> None:
    async def main() -> None:
        async with tls_engine(certificate, answer(200, b"")) as engine:
            error = await failure(open_pool(f"https://localhost:{engine.port}"))
            assert (error.kind, error.status) == (ErrorKind.ENGINE_ERROR, 502)
            assert "certificate is not trusted" in error.message
            assert engine.requests == []

    run(main())


def test_a_certificate_for_another_name_is_refused(
    run: Run, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def main() -> None:
        async with tls_engine(certificate, answer(200, b"")) as engine:
            error = await failure(open_pool(f"https://127.0.0.1:{engine.port}"))
            assert error.kind is ErrorKind.ENGINE_ERROR
            assert "127.0.0.1" in error.message
            assert engine.requests == []

    run(main())


def test_https_where_there_is_only_http(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), stall()]) as engine:
            error = await failure(open_pool(engine.url.replace("http:", "https:")))
            assert error.kind is ErrorKind.ENGINE_ERROR
            assert "does not speak TLS" in error.message
            assert b"sekret" not in engine.peers[0].received

    run(main())


def test_a_handshake_that_never_ends_is_late(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            error = await failure(open_pool(engine.url.replace("http:", "https:"), connect=0.1))
            assert error.kind is ErrorKind.ENGINE_TIMEOUT
            await engine.peers[0].closed.wait()

    run(main())


def test_http_where_there_is_only_https(run: Run) -> None:
    async def main() -> None:
        alert = b"\x15\x03\x01\x00\x02\x02\x46"
        async with ScriptedEngine([receive(), say(alert), stall()]) as engine:
            assert isinstance(await failure(open_pool(engine.url)), UpstreamProtocolError)

    run(main())

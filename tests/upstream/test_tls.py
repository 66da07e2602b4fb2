"""Engines behind https://: verified by the system's authorities or by one of their own, and refused clearly when they
are not who they say. Real handshakes on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flm.engines.base import UpstreamRequest
from flm.engines.registry import dialect
from flm.errors import EngineTimeoutError, ErrorKind, RequestError
from flm.upstream.detect import identify
from flm.upstream.pool import Pool, Timeouts
from flm.upstream.tls import authorities
from tests.support.certificates import Authority
from tests.support.engine import ScriptedEngine, answer, fin, receive, rst, say, serve, stall
from tests.upstream.conftest import Run

ASK = UpstreamRequest("/v1/models", b"", "GET")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours", "Ours")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "another", "Another")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    """For `localhost`, not for 127.0.0.1."""
    return authority.issue("DNS:localhost")


class TlsEngine:
    """Answers each request with the same bytes; `requests` is what it could read, `names` what was asked for by SNI."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[bytes] = []
        self.names: list[str | None] = []
        self.closed = asyncio.Event()


@asynccontextmanager
async def tls_engine(
    certificate: Path, reply: bytes, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[TlsEngine]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for name, value in options.items():
        setattr(context, name, value)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                engine.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(reply)
        except (asyncio.IncompleteReadError, OSError):
            engine.closed.set()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, host, 0, ssl=context)
    engine = TlsEngine(server.sockets[0].getsockname()[1])
    context.sni_callback = lambda _socket, name, _context: engine.names.append(name)
    try:
        yield engine
    finally:
        server.close()
        await server.wait_closed()
        accepting = asyncio.all_tasks() - {asyncio.current_task()}
        if accepting:  # the standard loop's own: a handshake that failed is still being cleaned up
            await asyncio.wait(accepting)


@contextmanager
def handshakes_only(certificate: Path) -> Iterator[int]:
    """A TLS server in a thread, as servers are: it closes what is no TLS, without a word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as secure:
                if secure.recv(1) == b"!":
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        leaving = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        leaving.check_hostname, leaving.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(listener.getsockname()) as sock, leaving.wrap_socket(sock) as secure:
            secure.send(b"!")
            thread.join()
        listener.close()


def open_pool(url: str, connect: float = 5.0, ca: bytes | None = None) -> Pool:
    timeouts = Timeouts(connect=connect, first_byte=5, between_bytes=5)
    trusted = None if ca is None else authorities(ca)
    return Pool(url, credential="sekret", ca=trusted, idle_seconds=5, timeouts=timeouts, max_in_flight=0)


async def failure(pool: Pool) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await pool.send(ASK)
    await pool.close()
    assert "sekret" not in caught.value.message
    return caught.value


async def in_detection(url: str, ca: bytes | None = None) -> str:
    """What `engines add` and `engines detect` say of it."""
    trusted = None if ca is None else authorities(ca)
    seen = await identify(url, dialect("openai"), credential="sekret", ca=trusted)
    assert seen.detail is not None
    assert "sekret" not in seen.detail
    return seen.detail


# --- verified -----------------------------------------------------------------------------------------------


def test_a_trusted_engine_is_asked_over_one_connection(
    run: Run, authority: Authority, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
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
            assert engine.names == ["localhost"]
            (await pool.send(ASK)).abort()
            await engine.closed.wait()
            await pool.close()

    run(main())


@pytest.mark.parametrize(
    ("names", "host", "bind"),
    [
        ("DNS:localhost", "localhost", "127.0.0.1"),
        ("DNS:*.example,DNS:localhost", "localhost", "127.0.0.1"),
        ("IP:127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("IP:::1", "[::1]", "::1"),
    ],
)
def test_an_authority_of_its_own(run: Run, authority: Authority, names: str, host: str, bind: str) -> None:
    async def main() -> None:
        async with tls_engine(authority.issue(names), answer(200, b"{}"), bind) as engine:
            pool = open_pool(f"https://{host}:{engine.port}", ca=authority.pem)
            response = await pool.send(ASK)
            assert (response.status, await response.read()) == (200, b"{}")
            response.release()
            await pool.close()
            # SNI carries names only (RFC 6066 §3), never an address
            assert engine.names == [host if host == "localhost" else None]

    run(main())


def test_the_certificate_itself_may_be_what_is_trusted(run: Run, authority: Authority, certificate: Path) -> None:
    async def main() -> None:
        for pair in (certificate, authority.self_signed("DNS:localhost")):
            async with tls_engine(pair, answer(200, b"{}")) as engine:
                pool = open_pool(f"https://localhost:{engine.port}", ca=pair.read_bytes())
                (await pool.send(ASK)).abort()
                await pool.close()
                assert len(engine.requests) == 1

    run(main())


def test_an_authority_of_its_own_is_the_only_one(
    run: Run, authority: Authority, another: Authority, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))  # the system trusts it

    async def main() -> None:
        async with tls_engine(certificate, answer(200, b"")) as engine:
            error = await failure(open_pool(f"https://localhost:{engine.port}", ca=another.pem))
            assert error.kind is ErrorKind.ENGINE_ERROR
            assert engine.requests == []

    run(main())


# --- refused: each reason in words of its own, for requests and for detection ------------------------------------


def reasons(authority: Authority, another: Authority) -> dict[str, tuple[Path, str]]:
    """What the engine shows as `localhost`, and what is said of it."""
    return {
        "expired": (authority.issue("DNS:localhost", -3, -1), "has expired"),
        "not yet valid": (authority.issue("DNS:localhost", 1, 3), "not valid yet"),
        "another name": (authority.issue("DNS:gpu1.lan"), "for another name than localhost"),
        "an address only": (authority.issue("IP:127.0.0.1"), "for another name than localhost"),
        "signed by itself": (authority.self_signed("DNS:localhost"), "signed by itself only"),
        "another authority": (another.issue("DNS:localhost"), "an authority nobody here knows"),
    }


@pytest.mark.parametrize(
    "case", ["expired", "not yet valid", "another name", "an address only", "signed by itself", "another authority"]
)
@pytest.mark.parametrize("own", [True, False], ids=["ca-file", "system"])
def test_a_certificate_that_is_refused(
    run: Run, authority: Authority, another: Authority, monkeypatch: pytest.MonkeyPatch, case: str, own: bool
) -> None:
    certificate, words = reasons(authority, another)[case]
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    async def main() -> None:
        async with tls_engine(certificate, answer(200, b"{}")) as engine:
            url = f"https://localhost:{engine.port}"
            ca = authority.pem if own else None
            error = await failure(open_pool(url, ca=ca))
            assert (error.kind, error.status) == (ErrorKind.ENGINE_ERROR, 502)
            assert words in error.message
            assert url in error.message
            if case in ("signed by itself", "another authority"):
                assert ("the file that was given" in error.message) == own
            assert words in await in_detection(url, ca)
            assert engine.requests == [], "an engine that is not who it says gets no request, and no key"

    run(main())


@pytest.mark.parametrize(
    ("names", "host", "bind"), [("IP:127.0.0.2", "127.0.0.1", "127.0.0.1"), ("DNS:x", "[::1]", "::1")]
)
def test_a_certificate_for_another_address(run: Run, authority: Authority, names: str, host: str, bind: str) -> None:
    async def main() -> None:
        async with tls_engine(authority.issue(names), answer(200, b""), bind) as engine:
            error = await failure(open_pool(f"https://{host}:{engine.port}", ca=authority.pem))
            assert f"for another name than {host}:{engine.port};" in error.message
            assert engine.requests == []

    run(main())


def test_an_engine_that_wants_a_certificate_from_flm(run: Run, authority: Authority, certificate: Path) -> None:
    async def main() -> None:
        async with tls_engine(certificate, answer(200, b""), verify_mode=ssl.CERT_REQUIRED) as engine:
            error = await failure(open_pool(f"https://localhost:{engine.port}", ca=authority.pem))
            assert error.status == 502
            assert engine.requests == []

    run(main())


@pytest.mark.parametrize("kept", ["nonsense", "é", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_was_kept_may_be_damaged(run: Run, kept: str) -> None:
    async def main() -> None:
        pool = Pool(
            "https://localhost:1", credential=None, ca=kept, idle_seconds=5, timeouts=Timeouts(5, 5, 5), max_in_flight=0
        )
        assert "register it anew" in (await failure(pool)).message
        seen = await identify("https://localhost:1", dialect("openai"), ca=kept)
        assert "register it anew" in str(seen.detail)

    run(main())


# --- the wrong protocol -------------------------------------------------------------------------------------


BAD = say(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    "script", [[BAD, stall()], [BAD, fin()], [fin()], [rst()]], ids=["400", "400 and close", "close", "reset"]
)
def test_https_where_there_is_only_http(run: Run, script: list[Any]) -> None:
    async def main() -> None:
        async with ScriptedEngine(script) as engine:
            url = engine.url.replace("http:", "https:")
            error = await failure(open_pool(url))
            assert error.kind is ErrorKind.ENGINE_ERROR
            assert "does not speak TLS" in error.message
            assert "does not speak TLS" in await in_detection(url)
            assert b"sekret" not in engine.peers[0].received

    run(main())


def test_a_handshake_that_never_ends_is_late(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            error = await failure(open_pool(engine.url.replace("http:", "https:"), connect=0.1234))
            assert isinstance(error, EngineTimeoutError)
            assert error.limit == "connect"
            late = "finish its TLS handshake within 0.1 s, or it does not speak TLS; then use http://"
            assert error.message.endswith(late)
            await engine.peers[0].closed.wait()

    run(main())


def test_http_where_an_alert_says_that_there_is_only_https(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(b"\x15\x03\x01\x00\x02\x02\x46"), stall()]) as engine:
            error = await failure(open_pool(engine.url))
            assert (error.kind, error.status) == (ErrorKind.ENGINE_ERROR, 502)
            assert "speaks TLS; its URL begins with https://" in error.message
            assert "speaks TLS; its URL begins with https://" in await in_detection(engine.url)

    run(main())


def test_http_where_there_is_only_https(run: Run, certificate: Path) -> None:
    async def main(url: str) -> None:
        assert (await failure(open_pool(url))).kind is ErrorKind.ENGINE_ERROR
        assert "speaks TLS; its URL begins with https://" in await in_detection(url)

    with handshakes_only(certificate) as port:
        run(main(f"http://127.0.0.1:{port}"))


def test_a_server_that_says_400_to_everybody_is_not_said_to_speak_tls(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, answer(400, b"no"))]) as engine:
            assert "TLS" not in await in_detection(engine.url)

    run(main())


# --- what may be trusted ------------------------------------------------------------------------------------


def test_only_certificates_are_kept_of_a_file(authority: Authority, another: Authority, certificate: Path) -> None:
    kept = authorities(b"# a comment\n" + certificate.read_bytes() + another.pem + another.pem)
    assert kept.count("BEGIN CERTIFICATE") == 2
    assert "PRIVATE KEY" not in kept
    assert "comment" not in kept
    assert authorities(kept.encode().replace(b"\n", b"\r\n")) == kept


def test_files_that_hold_no_authorities(authority: Authority, certificate: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.pem.decode())
    begin, body, end = b"-----BEGIN CERTIFICATE-----\n", b"AAAA\n", b"-----END CERTIFICATE-----\n"
    key = certificate.read_bytes().partition(b"-----BEGIN PRIVATE KEY")
    for data, words in [
        (b"", "holds no certificate in PEM form"),
        (der, "openssl x509 -inform der"),
        (b"".join(key[1:]), "holds no certificate"),
        (begin + end, "number 1 of 1"),
        (begin + body, "holds no certificate"),
        (begin + body + end, "number 1 of 1"),
        (authority.pem + begin + body + end, "number 2 of 2"),
        (authority.pem + begin + b"\xff\xfe\n" + end, "number 2 of 2"),
        (authority.pem[:-60] + end, "number 1 of 1"),
        (authority.pem * 1000, "larger than"),
    ]:
        with pytest.raises(ValueError, match=words):
            authorities(data)

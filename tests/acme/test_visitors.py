"""What clients of `https-acme` meet beside certificates: pages of other sites, sessions of before a new certificate."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from flm.runtime.boot import WORKER_MODULE
from flm.services.security import SecurityService
from tests.acme.harness import NAME
from tests.acme.test_proxy import Proxy, proxy_of, started
from tests.runtime.harness import run
from tests.support.pebble import Ca

LISTED, FOREIGN = "https://app.flm.example", "https://evil.flm.example"
CHAT = "/v1/chat/completions"


def ask(proxy: Proxy, context: ssl.SSLContext, head: str, session: ssl.SSLSession | None = None) -> Met:
    """One request on a connection of its own, to the name that the certificate is for."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as connection,
        context.wrap_socket(connection, server_hostname=NAME, session=session) as secure,
    ):
        secure.sendall(f"{head}\r\nHost: {NAME}:{proxy.port}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := secure.recv(65_536):
            answer += data
        der = secure.getpeercert(binary_form=True)
        assert der is not None
        return Met(answer.decode().lower(), secure.session, bool(secure.session_reused), der)


class Met:
    """What a client met: `head` in small letters, the session to come again with, whether it came by one, and the
    certificate."""

    def __init__(self, answer: str, session: ssl.SSLSession | None, reused: bool, certificate: bytes) -> None:
        self.status = int(answer.split(" ", 2)[1])
        self.head = answer.partition("\r\n\r\n")[0].splitlines()
        self.session = session
        self.reused = reused
        self.certificate = certificate

    def value(self, name: str) -> str | None:
        found = [line.partition(": ")[2] for line in self.head if line.startswith(f"{name}: ")]
        assert len(found) <= 1
        return found[0] if found else None


def test_pages_of_listed_origins_may_ask_over_tls_and_no_others(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        proxy = proxy_of(ca, tmp_path, WORKER_MODULE, engine__discover="false")
        policy = {"cors": {"allowed_origins": [LISTED]}}
        async with started(proxy):
            await SecurityService(proxy.folder).set_policy(json.dumps(policy).encode())
            context = proxy.believing()
            own = f"https://{NAME}"
            asked = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization"
            met = {
                (kind, origin): await asyncio.to_thread(ask, proxy, context, f"{head}\r\nOrigin: {origin}{more}")
                for kind, head, more in (
                    ("preflight", f"OPTIONS {CHAT} HTTP/1.1", f"\r\n{asked}"),
                    ("request", "GET /health HTTP/1.1", ""),
                    ("without a key", "GET /v1/models HTTP/1.1", ""),
                )
                for origin in (LISTED, FOREIGN, f"{LISTED}.evil.example", "null", own)
            }
            statuses = {"preflight": 204, "request": 200, "without a key": 401}
            for (kind, origin), answer in met.items():
                allowed = LISTED if origin == LISTED else None
                assert answer.value("access-control-allow-origin") == allowed, (kind, origin)
                assert answer.status == (statuses[kind] if origin in (LISTED, own) else 403), (kind, origin)
                assert "origin" in (answer.value("vary") or "")
                assert answer.value("access-control-allow-credentials") is None
                assert (answer.value("strict-transport-security") or "").startswith("max-age=")
            assert met["preflight", LISTED].value("access-control-allow-headers") == "authorization"
            assert "post" in (met["preflight", LISTED].value("access-control-allow-methods") or "")
            assert met["preflight", FOREIGN].value("access-control-allow-methods") is None

    run(main)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_before_a_new_certificate_costs_no_connection(
    ca: Ca, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Resumed or not: it works, and a full handshake meets the new certificate."""

    async def main() -> None:
        async with started(proxy_of(ca, tmp_path, tls__min_version="1.2")) as proxy:
            context = proxy.believing()
            context.maximum_version = version
            first = await asyncio.to_thread(ask, proxy, context, "GET /echo HTTP/1.1")
            assert first.session is not None
            again = await asyncio.to_thread(ask, proxy, context, "GET /echo HTTP/1.1", first.session)
            assert again.status == 200
            assert again.reused  # or nothing below is tried
            served = await proxy.served()
            proxy.stored().write_bytes(b"damaged")
            await proxy.service.reload()
            session, later = again.session or first.session, again
            async with asyncio.timeout(30):
                while later.certificate == first.certificate:  # by workers of before, which go last
                    later = await asyncio.to_thread(ask, proxy, context, "GET /echo HTTP/1.1", session)
                    assert later.status == 200
            assert not later.reused
            async with asyncio.timeout(30):
                while await proxy.served() == served:  # as a client that knows no session
                    await asyncio.sleep(0.05)

    run(main)


def test_early_data_is_never_taken(ca: Ca, tmp_path: Path) -> None:
    """It could be played back, so no session offers it, before a new certificate and after."""

    async def main() -> None:
        async with started(proxy_of(ca, tmp_path)) as proxy:
            session, early = tmp_path / "session.pem", tmp_path / "early"
            early.write_bytes(f"GET /echo HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
            first = await asyncio.to_thread(openssl, proxy, early.read_bytes(), "-sess_out", str(session))
            assert "HTTP/1.1 200" in first
            text = subprocess.run(
                ["openssl", "sess_id", "-in", session, "-noout", "-text"], capture_output=True, check=True, timeout=20
            ).stdout.decode()
            assert "TLSv1.3" in text
            assert "Max Early Data: 0" in text
            again = await asyncio.to_thread(
                openssl, proxy, early.read_bytes(), "-sess_in", str(session), "-early_data", str(early)
            )
            assert "HTTP/1.1 200" in again
            assert "Early data was accepted" not in again

    run(main)


def openssl(proxy: Proxy, request: bytes, *options: str) -> str:
    """What `openssl s_client` prints of one request."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", "-servername", NAME, "-ign_eof", *options]
    return subprocess.run(
        command, input=request, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=30
    ).stdout.decode("utf-8", "replace")

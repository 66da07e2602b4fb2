"""An attempt and the machine it runs on: a wrong clock, a proxy to the internet, and a child that hangs or fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flm.runtime import issuance
from tests.acme.conftest import NewClient
from tests.acme.harness import NAME, attempt, refused, run
from tests.support.pebble import Ca
from tests.support.ports import free_port
from tests.support.scripted_ca import Exchange, Forward, Front, Reply, changed

# --- clocks ---


@pytest.mark.parametrize(("apart", "words"), [(10_800, "3 h behind the CA's"), (-10_800, "3 h ahead of the CA's")])
def test_a_clock_that_is_not_the_cas_is_told(front: Front, client: NewClient, apart: float, words: str) -> None:
    def elsewhen(reply: Reply) -> None:
        reply.headers["Date"] = formatdate(time.time() + apart, usegmt=True)

    front.always("directory", changed(elsewhen))

    async def scenario() -> None:
        async with client(front) as one:
            await one.issue()
            (told,) = one.said("clock")
            assert told.startswith(f"the clock here is {words}; set it right")

    run(scenario())


def test_a_certificate_that_is_not_valid_yet_here_is_told_and_not_lost(front: Front, client: NewClient) -> None:
    """A CA whose clock is a day ahead of ours: the certificate is as good as its CA, and our clock is what to mend."""
    one = client(front)

    def ahead(_exchange: Exchange, _forward: Forward) -> Reply:
        key_pem = json.loads((one.folder / "pending.json").read_text())["key"]
        return Reply(200, _self_signed(key_pem.encode(), NAME, datetime.now(UTC) + timedelta(days=1)))

    front.always("certificate", ahead)

    async def scenario() -> None:
        async with one:
            pair = await one.issue()
            assert pair.not_before > time.time()
            (told,) = one.said("clock")
            assert told.startswith("the new certificate is not valid yet by the clock here, which says ")
            assert told.endswith("; set the clock right")

    run(scenario())


def test_a_certificate_for_other_names_is_not_used(front: Front, client: NewClient) -> None:
    one = client(front)

    def other(_exchange: Exchange, _forward: Forward) -> Reply:
        key_pem = json.loads((one.folder / "pending.json").read_text())["key"]
        return Reply(200, _self_signed(key_pem.encode(), "other.flm.example", datetime.now(UTC)))

    front.always("certificate", other)
    no = attempt(one)
    assert no.kind == "server"
    assert f"it is not for {NAME}, but for other.flm.example" in no.message


def _self_signed(key_pem: bytes, dns_name: str, begin: datetime) -> bytes:
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


# --- a proxy to the internet ---


class _Tunnel(socketserver.StreamRequestHandler):
    """CONNECT, for any host at 127.0.0.1."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.seen.append(target)  # type: ignore[attr-defined]
        with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as onward:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pass_on, args=(onward, self.connection))
            back.start()
            _pass_on(self.connection, onward)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def tunnel() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Tunnel) as server:
        server.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_a_proxy_of_the_environment_is_used(
    front: Front,
    client: NewClient,
    tunnel: socketserver.ThreadingTCPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".netrc").write_text("machine localhost login somebody password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{tunnel.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")  # would be requests' own; what is set here is what counts

    async def scenario() -> None:
        async with client(front) as one:
            await one.issue()

    run(scenario())
    assert tunnel.seen == [f"localhost:{front.port}"] * len(tunnel.seen) != []  # type: ignore[attr-defined]
    assert not any("authorization" in each.headers for each in front.seen)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://user:hunter2@127.0.0.1:{port}", "could not be used: connection refused; see HTTPS_PROXY and NO_PROXY"),
        ("socks5://user:hunter2@127.0.0.1:{port}", "names one of a kind that FLM cannot use"),
    ],
)
def test_a_proxy_that_cannot_be_used(
    ca: Ca, client: NewClient, monkeypatch: pytest.MonkeyPatch, proxy: str, words: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.format(port=free_port()))
    no = attempt(client(ca))
    assert no.kind == "network"
    assert no.message.startswith(f"the proxy to localhost port {ca.port} ")
    assert words in no.message
    assert "hunter2" not in no.message


# --- the child ---


def test_a_child_that_does_not_keep_its_deadline_is_killed(ca: Ca, client: NewClient, children: list[int]) -> None:
    async def scenario() -> None:
        async with client(ca) as one:
            stopping = one._step

            def stop(step: str, detail: str) -> None:
                stopping(step, detail)
                if step == "order":
                    os.kill(children[0], signal.SIGSTOP)

            one._step = stop  # type: ignore[method-assign]
            began = time.monotonic()
            no = await refused(one.issue(seconds=1.5))
            took = time.monotonic() - began
            assert no.kind == "deadline"
            assert "it was still ordering a certificate for one.flm.example" in no.message
            assert took < 1.5 + issuance.MARGIN_SECONDS + 3
            assert one.tokens == {}
            with pytest.raises(ProcessLookupError):
                os.kill(children[0], 0)

    run(scenario())


def test_a_fault_of_flm_itself_is_told_without_what_it_holds(
    ca: Ca, client: NewClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The words of an exception may hold anything; where it happened goes to the log."""
    (tmp_path / "sitecustomize.py").write_text(
        "import flm.tls.names\n"
        "def broken(names): raise KeyError('-----BEGIN ' + 'PRIVATE ' + 'KEY-----')\n"
        "flm.tls.names.check = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    no = attempt(client(ca))
    assert no.kind == "local"
    assert no.message == "FLM itself failed (KeyError); please report it with what the log says"
    assert "names.check(ask.names)" in caplog.text
    assert "PRIVATE KEY" not in caplog.text + no.message


def test_words_that_are_none_end_the_attempt(
    ca: Ca, client: NewClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        'import flm.tls.words, msgspec\nmsgspec.json.encode = lambda said: b\'{"event": "sudden"}\'\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    no = attempt(client(ca))
    assert no.kind == "local"
    assert no.message.startswith("the attempt to get a certificate broke off: its process ended with exit code ")


def test_two_attempts_at_once_do_not_disturb_each_other(ca: Ca, client: NewClient) -> None:
    """Two folders: one port answers for both."""

    async def scenario() -> None:
        a, b = client(ca, "a"), client(ca, "b")
        b.site = a.site
        async with a, b:
            first, second = await asyncio.gather(a.issue("a.flm.example"), b.issue("b.flm.example"))
            assert (first.domains, second.domains) == (("a.flm.example",), ("b.flm.example",))

    run(scenario())

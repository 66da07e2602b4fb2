"""What a person reads when the CA is not reached, is not trusted, or speaks no ACME: what happened, and what to do."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from tests.acme.conftest import NewClient
from tests.acme.harness import NAME, Client, attempt, run
from tests.support.certificates import Authority
from tests.support.pebble import Ca
from tests.support.ports import free_port
from tests.support.scripted_ca import Front, Reply, answer, changed, dropped, dropped_after, edited, problem

HTML = b"<html><head><title>Hotel WiFi</title></head><body>Log\x1b[31min please</body></html>"
EAB_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")


# --- the way to the CA ---


def test_a_host_that_no_dns_knows(tmp_path: Path) -> None:
    no = attempt(Client(tmp_path, "https://ca.flm.invalid/dir", Path()), ca_bundle="")
    assert no.kind == "network"
    assert no.message.startswith("the CA's host name ca.flm.invalid could not be looked up (")
    assert "see that this machine's DNS works, and that acme.directory is right" in no.message


def test_a_ca_that_is_not_there(ca: Ca, tmp_path: Path) -> None:
    port = free_port()
    no = attempt(Client(tmp_path, f"https://localhost:{port}/dir", ca.ca_file))
    assert no.kind == "network"
    assert f"the CA at localhost port {port} could not be reached: the connection was refused" in no.message
    assert "see that this machine reaches the internet" in no.message


def test_a_ca_whose_own_certificate_nobody_here_knows(ca: Ca, tmp_path: Path) -> None:
    no = attempt(Client(tmp_path, ca.directory, Path()), ca_bundle="")
    assert no.kind == "tls"
    assert f"the CA at localhost port {ca.port} could not be trusted" in no.message
    assert "set acme.ca_bundle to a file with the authority's certificate" in no.message


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [(1, 2, "not valid yet, if the clock here is right"), (-2, -1, "has expired, if the clock here is right")],
)
def test_a_clock_that_does_not_fit_the_cas_certificate(
    front: Front, client: NewClient, tmp_path: Path, begins: float, ends: float, words: str
) -> None:
    authority = Authority(tmp_path / "authority", "another CA")
    front.show(authority.issue("DNS:localhost", begins, ends))
    no = attempt(client(front), ca_bundle=str(authority.file))
    assert no.kind == "tls"
    assert words in no.message
    assert "date -u" in no.message


def test_a_ca_with_the_certificate_of_another_host(front: Front, client: NewClient, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "another CA")
    front.show(authority.issue("DNS:elsewhere.example"))
    no = attempt(client(front), ca_bundle=str(authority.file))
    assert no.kind == "tls"
    assert "its certificate is for another host" in no.message


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "could not be read: No such file"), (b"no certificate", "holds no certificate in PEM form")],
)
def test_a_bundle_that_cannot_be_used(
    ca: Ca, client: NewClient, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "bundle.pem"
    if content is not None:
        file.write_bytes(content)
    no = attempt(client(ca), ca_bundle=str(file))
    assert no.kind == "local"
    assert no.message.startswith(f"acme.ca_bundle {file} ")
    assert words in no.message


def test_a_directory_that_is_not_https(ca: Ca, tmp_path: Path) -> None:
    no = attempt(Client(tmp_path, "http://localhost/dir", ca.ca_file))
    assert "no https:// URL" in no.message
    assert "acme.directory" in no.message


# --- answers that are no ACME ---


def test_a_login_page(front: Front, client: NewClient) -> None:
    front.always("directory", answer(200, HTML, content_type="text/html"))
    no = attempt(client(front))
    assert no.kind == "server"
    assert f"localhost:{front.port} answered HTTP 200, and what came is not an ACME directory" in no.message
    assert '"<html><head><title>Hotel WiFi</title></head><body>Log [31min please' in no.message
    assert "no proxy or login page stands between" in no.message


def test_a_page_that_is_not_there(front: Front, client: NewClient) -> None:
    front.always("directory", answer(404, b"<html>404 page not found"))
    no = attempt(client(front))
    assert no.kind == "server"
    assert (
        'what it was asked for while FLM was asking for its directory; it said: "<html>404 page not found"'
        in no.message
    )
    assert "see that acme.directory is right" in no.message


def test_a_redirect(front: Front, client: NewClient) -> None:
    front.always("directory", answer(301, location="https://elsewhere.example/directory"))
    no = attempt(client(front))
    assert 'sent FLM on to "https://elsewhere.example/directory"' in no.message


def test_an_error_page_of_the_ca(front: Front, client: NewClient) -> None:
    front.always("order", answer(502, b"<html>Bad Gateway</html>"))
    no = attempt(client(front))
    assert no.kind == "server"
    assert "answered HTTP 502" in no.message
    assert '"<html>Bad Gateway</html>"' in no.message
    assert "the CA is out of order, which may pass: try again later" in no.message
    assert front.count("order", 502) == 3  # asked again, since it might have passed


def test_broken_connections_and_errors_that_pass(front: Front, client: NewClient) -> None:
    front.script("directory", dropped, answer(500, HTML))
    front.script("finalize", dropped_after)
    front.script("certificate", answer(503))

    async def scenario() -> None:
        async with client(front) as one:
            await one.issue()

    run(scenario())
    assert front.count("order", 201) == 1


def test_the_cas_own_fault(front: Front, client: NewClient) -> None:
    front.always("finalize", problem("serverInternal", "the database is on fire", 500))
    no = attempt(client(front))
    assert no.kind == "server"
    assert 'it said: "the database is on fire" (serverInternal)' in no.message


def test_an_answer_without_end(front: Front, client: NewClient) -> None:
    front.always("directory", answer(200, b"[" * 3_000_000))
    no = attempt(client(front))
    assert no.kind == "server"
    assert "larger than 262144 bytes" in no.message


@pytest.mark.parametrize(
    ("step", "body"),
    [
        ("order", b"null"),
        ("order", b'{"status": "pending"}'),
        ("authorization", b'{"status": 1}'),
        ("poll", b"\xff\xfe"),
        ("finalize", b'{"status": "ready", "identifiers": [], "authorizations": "none", "finalize": ""}'),
        ("directory", b'{"newNonce": "https://x", "newOrder": 5}'),
    ],
)
def test_garbage_at_any_step(front: Front, client: NewClient, step: str, body: bytes) -> None:
    def spoil(reply: Reply) -> None:
        if reply.status < 300:
            reply.body = body

    front.always(step, changed(spoil))
    no = attempt(client(front))
    assert no.kind == "server"
    assert "what came is not an" in no.message


def test_a_directory_that_leads_elsewhere_than_https(front: Front, client: NewClient) -> None:
    document = {"newNonce": "http://x/n", "newAccount": "ftp://x/a", "newOrder": "https://x/o"}
    front.always("directory", answer(200, json.dumps(document).encode()))
    no = attempt(client(front))
    assert '"http://x/n" is no https:// URL' in no.message


def test_a_ca_that_hangs_up_for_good(front: Front, client: NewClient) -> None:
    front.always("finalize", dropped_after)
    no = attempt(client(front))
    assert no.kind == "network"
    assert f"the CA at localhost port {front.port} hung up" in no.message


def test_a_ca_that_takes_no_nonce(front: Front, client: NewClient) -> None:
    front.always("account", problem("badNonce", "not this one", 400, replay_nonce="bm9uY2U"))
    no = attempt(client(front))
    assert no.kind == "server"
    assert "refused 200 nonces in a row" in no.message


def test_a_ca_that_hangs(front: Front, client: NewClient) -> None:
    front.always("finalize", front.hang)
    began = time.monotonic()
    no = attempt(client(front), seconds=2.0)
    assert no.kind == "deadline"
    assert no.message.startswith("there was no certificate after 2 s: it was still asking the CA for the certificate")
    assert "gone on with by the next attempt" in no.message
    assert time.monotonic() - began < 8


def test_an_authorization_that_is_never_decided(front: Front, client: NewClient) -> None:
    front.always("authorization", edited(lambda document: document.update(status="pending")))
    no = attempt(client(front), seconds=2.0)
    assert no.kind == "deadline"
    assert f"waiting until the CA has looked at {NAME}" in no.message

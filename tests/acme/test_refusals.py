"""What a person reads when the CA says no: to the account, to the names, to what it found on port 80, or for now."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.acme.conftest import BLOCKED, PROFILES, NewClient
from tests.acme.harness import NAME, Client, attempt, refused, run
from tests.support import pebble
from tests.support.certificates import Authority
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, answer, edited, problem

HTML = b"<html><head><title>Hotel WiFi</title></head><body>Log\x1b[31min please</body></html>"
EAB_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")


# --- the CA asks to wait ---


def test_a_limit_in_seconds(front: Front, client: NewClient) -> None:
    words = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s"
    front.always("order", problem("rateLimited", words, 429, retry_after=7200))
    no = attempt(client(front))
    assert (no.kind, no.retry_after) == ("rate_limited", 7200)
    assert (
        f'limit was reached while FLM was ordering a certificate for {NAME}; it said: "{words}" (rateLimited)'
        in no.message
    )
    assert "come again in 2 h" in no.message
    assert front.count("order", 429) == 1


def test_a_limit_as_a_date(front: Front, client: NewClient) -> None:
    """It counts from the CA's own clock, which need not be ours."""
    theirs = time.time() + 1_000_000
    now, later = formatdate(theirs, usegmt=True), formatdate(theirs + 1800, usegmt=True)
    front.always("order", problem("rateLimited", "slow down", 429, retry_after=later, date=now))
    no = attempt(client(front))
    assert no.kind == "rate_limited"
    assert abs(no.retry_after - 1800) <= 1
    assert "come again in 30 min" in no.message


def test_a_429_that_is_no_problem_document(front: Front, client: NewClient) -> None:
    front.always("directory", answer(429, b"<html>", retry_after="60"))
    no = attempt(client(front))
    assert (no.kind, no.retry_after) == ("rate_limited", 60)


def test_a_busy_ca(front: Front, client: NewClient) -> None:
    front.always("order", problem("serverInternal", "Service busy; retry later.", 503, retry_after=30))
    no = attempt(client(front))
    assert (no.kind, no.retry_after) == ("server", 30)
    assert front.count("order", 503) == 1  # it has said when to come again


# --- the account ---


def test_an_address_that_is_none(ca: Ca, client: NewClient) -> None:
    no = attempt(client(ca), email="not an address")
    assert no.kind == "rejected"
    assert "(invalidContact)" in no.message
    assert "set acme.email to an address that the CA takes, or to nothing" in no.message


def test_terms_that_are_not_agreed_to(ca: Ca, client: NewClient) -> None:
    one = client(ca)
    no = attempt(one, accept_terms=False)
    assert "agreeing" not in dict(one.steps)["account"]
    assert no.kind == "rejected"
    assert 'read "data:text/plain,Do%20what%20thou%20wilt" and, if you agree, set acme.accept_terms' in no.message


def test_terms_that_have_changed(front: Front, client: NewClient) -> None:
    reaction = problem(
        "userActionRequired",
        "Terms of service have changed",
        instance="https://ca.example/agree/7",
        link='<https://ca.example/terms/2>;rel="terms-of-service"',
    )
    front.always("order", reaction)
    no = attempt(client(front))
    assert no.kind == "rejected"
    assert 'terms of service ("https://ca.example/terms/2") changed' in no.message
    assert 'it said: "Terms of service have changed" (userActionRequired)' in no.message
    assert 'open "https://ca.example/agree/7"' in no.message


def test_an_account_that_was_closed(front: Front, client: NewClient) -> None:
    front.always("account", problem("unauthorized", "An account with this public key exists but is deactivated"))
    one = client(front)
    no = attempt(one)
    assert no.kind == "rejected"
    assert f"move {one.folder / 'account.json'} away" in no.message


@pytest.fixture(scope="module")
def eab_ca(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pebble.running(tmp_path_factory.mktemp("eab") / "pebble", eab={"kid-1": EAB_KEY}) as running:
        yield running


def test_a_ca_for_customers_only(eab_ca: Ca, client: NewClient) -> None:
    no = attempt(client(eab_ca))
    assert no.kind == "rejected"
    assert "this CA makes accounts only for its customers" in no.message
    assert "acme.eab_kid" in no.message
    assert "acme.eab_file" in no.message


def test_a_customer(eab_ca: Ca, client: NewClient, tmp_path: Path) -> None:
    (tmp_path / "hmac").write_text(f"{EAB_KEY}==\n")

    async def scenario() -> None:
        async with client(eab_ca) as one:
            await one.issue(eab_kid="kid-1", eab_key_file=str(tmp_path / "hmac"))
            assert EAB_KEY not in (one.folder / "account.json").read_text()

    run(scenario())


@pytest.mark.parametrize(
    ("kid", "content", "kind", "words"),
    [
        ("kid-2", EAB_KEY, "rejected", "see that acme.eab_kid and acme.eab_file are what the CA gave"),
        ("kid-1", EAB_KEY[:-8] + "AAAAAAAA", "rejected", "see that acme.eab_kid and acme.eab_file are what the CA"),
        ("kid-1", "hunter2!", "local", "does not hold a base64url key"),
        ("kid-1", "c2hvcnQ", "local", "does not hold a base64url key"),
        ("kid-1", None, "local", "could not be read: No such file"),
        ("", EAB_KEY, "local", "set both acme.eab_kid and acme.eab_file"),
    ],
)
def test_a_binding_that_does_not_fit(
    eab_ca: Ca, client: NewClient, tmp_path: Path, kid: str, content: str | None, kind: str, words: str
) -> None:
    file = tmp_path / "hmac"
    if content is not None:
        file.write_text(content)
    no = attempt(client(eab_ca), eab_kid=kid, eab_key_file=str(file))
    assert no.kind == kind
    assert words in no.message
    assert content is None or content not in no.message


# --- the names ---


def test_a_name_that_the_ca_does_not_take(ca: Ca, client: NewClient) -> None:
    no = attempt(client(ca), BLOCKED)
    assert no.kind == "rejected"
    assert "(rejectedIdentifier)" in no.message
    assert "see that acme.domain has only names that are yours" in no.message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("*.flm.example", "dns-01"),
        ("192.0.2.7", "is an IP address"),
        ("[2001:db8::7]", "is an IP address"),
        ("llm", "is a name of a local network only"),
        ("llm.local", "is a name of a local network only"),
        ("https://flm.example", "is no DNS name"),
        ("bücher.example", "xn--"),
    ],
)
def test_a_name_that_no_ca_would_take(tmp_path: Path, name: str, words: str) -> None:
    no = attempt(Client(tmp_path, "https://nobody.invalid/dir", Path()), name, ca_bundle="")
    assert no.kind == "rejected"
    assert f'"{name}"' in no.message
    assert words in no.message


def test_a_profile_that_there_is_not(ca: Ca, client: NewClient) -> None:
    no = attempt(client(ca), profile="forever")
    assert no.kind == "rejected"
    assert 'this CA has no profile "forever"; set acme.profile to one of ' in no.message
    assert all(f'"{name}"' in no.message for name in PROFILES)


def test_several_reasons_at_once(front: Front, client: NewClient) -> None:
    parts = [
        {"type": "urn:ietf:params:acme:error:caa", "detail": "no", "identifier": {"type": "dns", "value": "a.example"}},
        {"type": "urn:ietf:params:acme:error:malformed", "detail": "what"},
    ]
    front.always("order", problem("compound", "two things", subproblems=parts))
    no = attempt(client(front))
    assert '"two things" (compound); of a.example: "no" (caa); "what" (malformed)' in no.message


# --- validation ---


def test_a_name_without_an_address(ca: Ca, client: NewClient) -> None:
    name = "nowhere.flm.example"
    ca.set_dns("set-servfail", host=name)
    no = attempt(client(ca), NAME, name)
    assert no.kind == "validation"
    assert f"the CA could not see that you control {name}; it said of {name}: " in no.message


def test_a_port_that_is_shut(ca: Ca, tmp_path: Path) -> None:
    no = attempt(Client(tmp_path / "acme", ca.directory, ca.ca_file))  # its port 80 is another one
    assert no.kind == "validation"
    assert f"could not see that you control {NAME}" in no.message
    assert "connection refused" in no.message
    assert f"the CA calls port 80 of {NAME} from the internet" in no.message
    assert "firewall" in no.message


def test_another_server_on_the_port(ca: Ca, client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client(ca)
    monkeypatch.setattr(one, "_publish", lambda token, _answer: one.site.tokens.update({token: "welcome to nginx"}))
    no = attempt(one)
    assert no.kind == "validation"
    assert "welcome to nginx" in no.message
    assert f"something else answered on port 80 of {NAME}" in no.message


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("dns", f"see that {NAME} has an A or AAAA record"),
        ("caa", 'add a record CAA 0 issue "pebble.letsencrypt.org"'),
        ("connection", f"the CA calls port 80 of {NAME} from the internet"),
        ("unauthorized", f"something else answered on port 80 of {NAME}"),
        ("dnssec", f"the DNSSEC of {NAME} is broken"),
        ("tls", f"port 80 of {NAME} sent the CA on to HTTPS, which failed"),
    ],
)
def test_what_a_ca_says_of_a_name(front: Front, client: NewClient, name: str, advice: str) -> None:
    said = {"type": f"urn:ietf:params:acme:error:{name}", "detail": "as \x1b[2Jfound"}
    challenges = [{"type": "http-01", "url": "", "status": "invalid", "error": said}]
    front.always("authorization", edited(lambda document: document.update(status="invalid", challenges=challenges)))
    no = attempt(client(front))
    assert no.kind == "validation"
    assert f'it said of {NAME}: "as [2Jfound" ({name})' in no.message
    assert advice in no.message


def test_a_ca_without_http_01(front: Front, client: NewClient) -> None:
    dns = {"type": "dns-01", "url": "", "status": "pending", "token": "x"}
    front.always("authorization", edited(lambda document: document.update(challenges=[dns])))
    no = attempt(client(front))
    assert no.kind == "rejected"
    assert f"the CA has no http-01 challenge for {NAME}, the only kind that FLM answers" in no.message
    assert '"dns-01"' in no.message


def test_a_finalization_that_is_refused(front: Front, client: NewClient) -> None:
    front.always("finalize", problem("caa", "CAA record for flm.example prevents issuance"))
    no = attempt(client(front))
    assert no.kind == "rejected"
    assert 'it said: "CAA record for flm.example prevents issuance" (caa)' in no.message


# --- the certificate ---


def test_a_chain_that_does_not_fit_the_key(front: Front, client: NewClient, tmp_path: Path) -> None:
    other = Authority(tmp_path / "authority", "another CA").issue(f"DNS:{NAME}").read_text()
    chain = other.partition("-----BEGIN PRIVATE KEY")[0].encode()
    front.script("certificate", answer(200, chain, content_type="application/pem-certificate-chain"))

    async def scenario() -> None:
        async with client(front) as one:
            no = await refused(one.issue())
            assert no.kind == "server"
            assert "the CA sent a certificate that is not used" in no.message
            assert "the private key is not that of the first certificate" in no.message
            assert await one.issue()  # the order is still good, and the right one is fetched
            assert front.count("order", 201) == 1

    run(scenario())


def test_a_chain_that_is_none(front: Front, client: NewClient) -> None:
    front.always("certificate", answer(200, HTML))
    no = attempt(client(front))
    assert no.kind == "server"
    assert "the CA sent a certificate that is not used" in no.message


# --- this machine ---


def test_a_folder_that_is_a_file(ca: Ca, client: NewClient, tmp_path: Path) -> None:
    (tmp_path / "acme").write_text("")
    no = attempt(client(ca))
    assert no.kind == "local"
    assert str(tmp_path / "acme") in no.message


def test_a_plain_port_that_cannot_publish(ca: Ca, client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client(ca)

    def broken(_token: str, _answer: str) -> None:
        raise RuntimeError("the site is gone")

    monkeypatch.setattr(one, "_publish", broken)
    no = attempt(one)
    assert no.kind == "local"
    assert "the proxy could not publish the answer to a challenge: RuntimeError" in no.message


def test_whoever_stops_waiting_leaves_no_child(front: Front, client: NewClient, children: list[int]) -> None:
    front.always("finalize", front.hang)

    async def scenario() -> None:
        async with client(front) as one:
            waiting = asyncio.create_task(one.issue())
            await asyncio.to_thread(front.wait_for, "finalize")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert one.tokens == {}
            with pytest.raises(ProcessLookupError):
                os.kill(children[0], 0)

    run(scenario())

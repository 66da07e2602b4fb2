"""The pure parts of what is said about a CA: names, quotes, waiting times, and how a certificate is called there."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from flm.tls import names, network, renewal
from flm.tls.deadline import Deadline
from flm.tls.refusal import (
    Problem,
    ProblemError,
    Refused,
    duration,
    of_problem,
    of_validation,
    quoted,
)
from flm.tls.words import KINDS


@given(st.text())
@example("\x1b[2J\u202e\u2028\x00")
@example("x" * 10_000)
def test_a_quote_is_one_printable_line(text: str) -> None:
    shown = quoted(text)
    assert shown.isprintable()
    assert len(shown) <= 403


@given(st.builds(Problem, *[st.none() | st.text()] * 4), st.integers(400, 599), st.text())
def test_any_problem_has_words(problem: Problem, status: int, name: str) -> None:
    error = ProblemError(problem, status, 0.0, {})
    for refused in (
        of_problem(error, "ordering", name=quoted(name)),
        of_validation([("a.example", problem)] * 9, "ca"),
    ):
        assert refused.message.isprintable()
        assert refused.kind in KINDS
        assert len(refused.message) < 6_000


@pytest.mark.parametrize("name", ["a{b}.example", "{0.__class__}.example", "{issuer}"])
def test_a_name_is_never_a_format(name: str) -> None:
    problem = Problem(type="urn:ietf:params:acme:error:dns")
    assert name in of_validation([(name, problem)], "ca").message


@given(st.text())
@example("a" * 64 + ".example")
@example(".".join(["a" * 63] * 4) + ".example")
@example("fe80::1%eth0")
def test_any_text_is_a_name_or_refused(text: str) -> None:
    if "." in text and len(text) <= 253:
        with contextlib.suppress(Refused):
            names.check([text])
        return
    with pytest.raises(Refused) as caught:
        names.check([text])
    assert caught.value.kind == "rejected"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name", ["llm.example.com", "a-b.c.example", "xn--bcher-kva.example", "1.example", "x.internal"]
)
def test_good_names(name: str) -> None:
    names.check([name, "other.example"])


def test_no_name_and_too_many() -> None:
    with pytest.raises(Refused, match=r"set acme\.domain"):
        names.check([])
    with pytest.raises(Refused, match="100 is the most"):
        names.check([f"n{number}.example" for number in range(101)])


@given(st.text(), st.text())
@example("9" * 500, "")
@example("Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT")
def test_any_retry_after_is_a_bounded_time(text: str, date: str) -> None:
    seconds = network._retry_after(text, date)
    assert seconds >= 0
    assert Refused("server", "x", seconds).retry_after <= 31 * 86_400


def test_a_retry_after_without_a_date_counts_from_our_clock() -> None:
    assert 50 < network._retry_after(formatdate(time.time() + 60, usegmt=True), "") <= 60


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (119, "119 s"), (3600, "60 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_deadline_says_what_was_being_done() -> None:
    now = 0.0
    deadline = Deadline(90, lambda: now)
    deadline.doing = "waiting for the CA"
    assert deadline.left() == 90
    now = 90.0
    with pytest.raises(Refused, match="there was no certificate after 90 s: it was still waiting for the CA") as caught:
        deadline.sleep(1)
    assert caught.value.kind == "deadline"


def _certificate(serial: int, issuer_key: bytes | None) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    now = datetime.now(UTC)
    builder = builder.serial_number(serial).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    if issuer_key is not None:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer_key, None, None), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_certificate_is_called_as_the_rfc_says() -> None:
    """The example of RFC 9773 §4.1: the serial number's sign octet counts."""
    issuer = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    assert renewal.identity(_certificate(0x87654321, issuer)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    assert renewal.identity(_certificate(0x07, issuer)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.Bw"


@pytest.mark.parametrize("pem", ["", "garbage", _certificate(5, None)])
def test_one_that_cannot_be_called_has_no_name(pem: str) -> None:
    assert renewal.identity(pem) is None

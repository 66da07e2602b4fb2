"""When a CA wants a certificate renewed: ACME renewal information, RFC 9773.

Knows how a certificate is named to the CA and how its answer reads; what to make of it is decided elsewhere
(`schedule`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from josepy.json_util import encode_b64jose

from flm.tls import directory as directories
from flm.tls.network import Network
from flm.tls.refusal import ProblemError, of_problem
from flm.tls.words import Ask

DEFAULT_RETRY_SECONDS: Final = 21_600.0  # RFC 9773 §4.3.3: six hours where the CA says nothing

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _Window(msgspec.Struct, frozen=True):
    start: _Moment
    end: _Moment


class _Info(msgspec.Struct, frozen=True, rename="camel"):
    suggested_window: _Window


def window(ask: Ask, network: Network) -> tuple[float, float, float] | None:
    """Start and end of the window in which `ask.replaces` should be renewed (Unix seconds), and the seconds until it
    may be asked for again; None if the CA has no such thing for it.

    Raises Refused.
    """
    directory, _ = directories.fetch(network, ask.directory)
    name = identity(ask.replaces)
    if not directory.renewal_info or name is None:
        return None
    try:
        answer = network.get(f"{directory.renewal_info.rstrip('/')}/{name}")
    except ProblemError as error:
        if error.status == 404:
            return None
        raise of_problem(error, "asking for a renewal window", advice="FLM renews by the certificate's dates") from None
    found = answer.read(_Info, "a renewal window").suggested_window
    return found.start.timestamp(), found.end.timestamp(), answer.retry_after() or DEFAULT_RETRY_SECONDS


def identity(pem: str) -> str | None:
    """How the CA calls the leaf of `pem` (RFC 9773 §4.1); None if there is none, or one that names no issuer's key."""
    leaf = _leaf(pem)
    if leaf is None:
        return None
    try:
        issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (x509.ExtensionNotFound, ValueError):
        return None
    if issuer is None:
        return None
    serial = leaf.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)  # as DER writes an integer
    return f"{encode_b64jose(issuer)}.{encode_b64jose(octets)}"


def fingerprint(pem: str) -> str:
    """SHA-256 of the leaf's DER, in hex; empty if there is none."""
    leaf = _leaf(pem)
    return leaf.fingerprint(hashes.SHA256()).hex() if leaf is not None else ""


def _leaf(pem: str) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificates(pem.encode())[0] if pem else None
    except ValueError:
        return None

"""One private key with the chain of certificates that belongs to it: read from PEM, validated, described.

Strategy: what is read is taken apart completely or refused, nothing is skipped, and what comes out is written anew in
one form: the key as PKCS#8, then the chain, leaf first. So two pairs are equal when they are the same, and what was
validated is what is served. An error never repeats a byte of the input, since that is where the key is.

Pure: bytes and a time in. Knows no file, no clock, and nothing of who issued a certificate.
"""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flm.errors import CommandCode, CommandError

MAX_PEM_BYTES: Final = 65_536  # a key and a chain of ten large RSA certificates are a third of it
MAX_CERTIFICATES: Final = 10  # of a chain; OpenSSL's clients stop at 100, public CAs send two or three
MIN_RSA_BITS: Final = 2048  # the CA/Browser Forum's Baseline Requirements, 6.1.5
_CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})  # idem; P-521 for private authorities
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})  # no client of today takes a signature of these
_ISSUER_CHARACTERS: Final = 200  # what a list shows

_PRIVATE_KEYS: Final = frozenset({b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY"})
_ENCRYPTED_KEY: Final = b"ENCRYPTED PRIVATE KEY"
_BEGIN: Final = b"-----BEGIN "
_DASHES: Final = b"-----"
_LONGEST_LABEL: Final = 64

# What the library raises for a certificate that is none; warnings where somebody has made them errors.
_UNREADABLE: Final = (
    ValueError, TypeError, UnsupportedAlgorithm, Warning,
    x509.UnsupportedGeneralNameType, x509.DuplicateExtension, x509.InvalidVersion,
)  # fmt: skip

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class Pair(msgspec.Struct, frozen=True):
    """A private key and its certificates, which fit together. Times are Unix seconds, `not_after` inclusive.

    `key_pem`: PKCS#8. `chain_pem`: the leaf, then what vouches for it, in order. Of the leaf: `domains` (DNS names and
    IP addresses of the subject alternative name), `issuer` for people, `serial` in hex, `fingerprint` (SHA-256 of its
    DER, in hex). Made by `read`.
    """

    key_pem: bytes
    chain_pem: bytes
    domains: tuple[str, ...]
    issuer: str
    not_before: float
    not_after: float
    serial: str
    fingerprint: str

    @property
    def pem(self) -> bytes:
        """Key, then chain: what a file of this pair holds, and `read` reads."""
        return self.key_pem + self.chain_pem

    def __repr__(self) -> str:
        """Without the key."""
        return f"Pair({', '.join(self.domains)}; {self.issuer}; until {moment(self.not_after)}; {self.fingerprint})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """msgspec's own would show the key."""
        return [("fingerprint", self.fingerprint)]


def read(pem: bytes) -> Pair:
    """The pair in `pem`: one private key and one chain, leaf first, and nothing else. Where the key stands is free.

    Raises PROXY_CERT_FAILED if anything is missing, unreadable, encrypted, too much, or does not fit together.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise _failed(f"it is larger than {MAX_PEM_BYTES} bytes, which no key with its certificates is")
    keys, chain = _loaded(pem)
    if not keys:
        raise _failed("it holds no private key")
    if len(keys) > 1:
        raise _failed(f"it holds {len(keys)} private keys, and it cannot be told which is meant")
    if not chain:
        raise _failed("it holds no certificate")
    if _public_bytes(keys[0].public_key()) != _public_bytes(_public_key(chain[0])):
        raise _failed("the private key is not that of the first certificate; key and certificate were mixed up")
    for number, (each, issuer) in enumerate(itertools.pairwise(chain), 1):
        _check_issued(each, issuer, number)
    return _described(keys[0], chain)


def check(pair: Pair, now: float, names: Sequence[str] = ()) -> None:
    """Whether `pair` may be served at `now` for all of `names`. Raises PROXY_CERT_FAILED, saying why not."""
    if now < pair.not_before:
        raise _failed(
            f"it is valid only from {moment(pair.not_before)} on, and the clock here says {moment(now)}; "
            "is that clock right?"
        )
    if now > pair.not_after:
        raise _failed(f"it expired at {moment(pair.not_after)}, and the clock here says {moment(now)}")
    missing = [name for name in names if not covers(pair, name)]
    if missing:
        raise _failed(f"it is not for {', '.join(missing)}, but for {', '.join(pair.domains) or 'no name at all'}")
    chain = x509.load_pem_x509_certificates(pair.chain_pem)
    for certificate in chain:
        _check_strength(certificate)
    _check_purpose(chain[0])


def covers(pair: Pair, name: str) -> bool:
    """Whether the leaf is for `name`, a DNS name or an IP address. A wildcard stands for one whole label (RFC 6125
    §6.4.3), and for no IP address."""
    address = _address(name)
    if address is not None:
        return any(_address(domain) == address for domain in pair.domains)
    wanted = name.lower().removesuffix(".")
    label, _, parent = wanted.partition(".")
    return bool(wanted) and (wanted in pair.domains or (bool(label and parent) and f"*.{parent}" in pair.domains))


def moment(seconds: float) -> str:
    """A Unix time for people, as RFC 3339. One that no calendar has stays a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s after 1970"


# --- taking PEM apart ---


def _loaded(pem: bytes) -> tuple[list[PrivateKeyTypes], list[x509.Certificate]]:
    keys: list[PrivateKeyTypes] = []
    chain: list[x509.Certificate] = []
    for number, (label, block) in enumerate(_blocks(pem), 1):
        if label == _ENCRYPTED_KEY or (label in _PRIVATE_KEYS and b"ENCRYPTED" in block):
            raise _failed("its private key is encrypted with a passphrase; FLM reads only keys that are not")
        if label in _PRIVATE_KEYS:
            keys.append(_key(block))
        elif label == b"CERTIFICATE":
            chain.append(_certificate(block))
        else:
            raise _failed(f"block number {number} of it is neither a private key nor a certificate")
        if len(chain) > MAX_CERTIFICATES:
            raise _failed(f"it holds more than {MAX_CERTIFICATES} certificates, which no chain has")
    return keys, chain


def _blocks(pem: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(label, block) of every PEM block; only white space may stand around them, as in RFC 8555 §9.1."""
    position, end = 0, len(pem.rstrip())
    while position < end:
        rest = pem[position:end]
        position += len(rest) - len(rest.lstrip())
        label_end = pem.find(_DASHES, position + len(_BEGIN), position + len(_BEGIN) + _LONGEST_LABEL)
        if not pem.startswith(_BEGIN, position) or label_end < 0:
            raise _failed(f"at byte {position} of it stands something that is no PEM block (-----BEGIN …-----)")
        label = pem[position + len(_BEGIN) : label_end]
        last = b"-----END " + label + _DASHES
        block_end = pem.find(last, label_end)
        if block_end < 0:
            raise _failed(f"the PEM block at byte {position} of it has no end: the file was cut off")
        block_end += len(last)
        yield label, pem[position:block_end] + b"\n"
        position = block_end


def _key(block: bytes) -> PrivateKeyTypes:
    try:
        key = serialization.load_pem_private_key(block, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose words might repeat some of it
        raise _failed("its private key is damaged, or of an unknown kind") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise _failed("its private key is of a kind that TLS servers do not use; EC, RSA and Ed25519 can be used")
    return key


def _certificate(block: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(block)
        _ = certificate.extensions, certificate.subject, certificate.issuer  # decoded late, and damaged maybe
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number
    except _UNREADABLE:
        raise _failed("one of its certificates is damaged") from None
    if certificate.serial_number <= 0:
        raise _failed("one of its certificates has a serial number that is not positive, which RFC 5280 forbids")
    return certificate


def _public_key(certificate: x509.Certificate) -> PublicKeyTypes:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _failed("one of its certificates has a public key that is damaged, or of an unknown kind") from None


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


# --- what fits together ---


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, number: int) -> None:
    _check_digest(certificate)  # the library would not verify it
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise _failed(
            f"certificate number {number + 1} of it has not issued number {number}; the chain goes from the server's "
            "own certificate to its authority's"
        ) from None
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise _failed(f"certificate number {number + 1} of it is none of an authority, and so may vouch for nothing")


def _check_strength(certificate: x509.Certificate) -> None:
    key = _public_key(certificate)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise _failed(f"an RSA key of it has {key.key_size} bits, and clients want {MIN_RSA_BITS} at least")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise _failed(f"a key of it is on the curve {key.curve.name}; clients know P-256, P-384 and P-521")
    if certificate.issuer != certificate.subject:  # a root is believed for itself, not for its signature
        _check_digest(certificate)


def _check_digest(certificate: x509.Certificate) -> None:
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise _failed("a certificate of it is signed in a way that is not known here") from None
    if digest is not None and digest.name in _WEAK_HASHES:
        raise _failed(f"a certificate of it is signed with {digest.name}, which no client believes any more")


def _check_purpose(leaf: x509.Certificate) -> None:
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    allowed = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usage is not None and not allowed & set(usage):
        raise _failed("it is not for servers: its extended key usage lacks serverAuth")


def _described(key: PrivateKeyTypes, chain: Sequence[x509.Certificate]) -> Pair:
    leaf = chain[0]
    serial = leaf.serial_number
    return Pair(
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        chain_pem=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain),
        domains=_domains(leaf),
        issuer=_readable(leaf.issuer),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        serial=serial.to_bytes((serial.bit_length() + 7) // 8 or 1).hex(),
        fingerprint=hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest(),
    )


def _domains(leaf: x509.Certificate) -> tuple[str, ...]:
    names = _extension(leaf, x509.SubjectAlternativeName)
    if names is None:
        return ()
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return tuple(dict.fromkeys([*hosts, *map(str, names.get_values_for_type(x509.IPAddress))]))


def _readable(name: x509.Name) -> str:
    """`Let's Encrypt E7`: the organisation unless the common name has it already, and the common name."""
    words: list[str] = []
    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        for attribute in name.get_attributes_for_oid(oid)[:1]:
            text = str(attribute.value)
            if not words or text not in words[0]:
                words.insert(0, text)
    return (" ".join(words) or name.rfc4514_string())[:_ISSUER_CHARACTERS]


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _failed(why: str) -> CommandError:
    return CommandError(CommandCode.PROXY_CERT_FAILED, f"the certificate with its key cannot be used: {why}")

"""Keys and certificates for the tests of certificates, with anything that can be wrong about them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

DAY = 86_400.0
NOW = datetime(2030, 1, 1, tzinfo=UTC).timestamp()  # of tests that need no real clock
CURVE = ec.SECP256R1()


def pem_of(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Issued:
    """A certificate, its key, and who vouches for it but for the root. `issue` makes the next one down."""

    key: CertificateIssuerPrivateKeyTypes
    certificate: x509.Certificate
    above: list[x509.Certificate] = field(default_factory=list)

    @property
    def is_root(self) -> bool:
        return self.certificate.issuer == self.certificate.subject

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return pem_of(self.key)

    @property
    def chain(self) -> bytes:
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in [self.certificate, *self.above])

    def issue(self, name: str, names: tuple[str, ...] = (), **options: object) -> Issued:
        """Signed by this one. Options as of `make`."""
        return make(name, names, by=self, **options)  # type: ignore[arg-type]


def make(
    name: str,
    names: tuple[str, ...] = (),
    *,
    by: Issued | None = None,
    ca: bool = False,
    key: CertificateIssuerPrivateKeyTypes | None = None,
    begins: float = NOW - DAY,
    ends: float = NOW + 90 * DAY,
    digest: hashes.HashAlgorithm | None = hashes.SHA256(),  # noqa: B008 - has no state
    usage: tuple[x509.ObjectIdentifier, ...] = (),
    constraints: tuple[x509.NameConstraints, bool] | None = None,
) -> Issued:
    """A certificate for `names`, signed by `by`, or by itself. `constraints`: and whether they are critical."""
    key = key or ec.generate_private_key(CURVE)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(by.certificate.subject if by else subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(begins, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(alternative, names))), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if constraints:
        builder = builder.add_extension(constraints[0], critical=constraints[1])
    certificate = builder.sign(by.key if by else key, digest)
    above = [] if by is None or by.is_root else [by.certificate, *by.above]
    return Issued(key, certificate, above)


def authority(name: str = "Test Root") -> Issued:
    return make(name, ca=True, begins=NOW - 365 * DAY, ends=NOW + 3650 * DAY)

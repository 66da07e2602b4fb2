"""The local root: an authority of this machine alone, which signs the certificate of the mode `dev-selfsigned`.

Strategy: whoever trusts the root trusts it for names and addresses that belong to nobody on the internet, and for this
host's own name: that is written into it (critical name constraints, RFC 5280 §4.2.1.10), so that its key, if stolen,
vouches for no site. The root is made once, under a lock, and never replaced unless a person says so (`replace`): a new
one would have to be trusted anew on every device. What it signs lives thirty days, and is made anew, with a new key,
long before, or when a new address or another clock wants it; nobody has to notice.

Knows no worker and no server; does not ask the clock. Blocking, so on an event loop it runs in a thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flm.disk.private import write_atomically
from flm.errors import CommandCode, CommandError
from flm.tls.files import locked, read_pair, read_private
from flm.tls.interfaces import PRIVATE_NETWORKS, host_name, is_host_name
from flm.tls.pair import Pair, check, moment, read

ROOT_FILE: Final = "root.pem"
LEAF_FILE: Final = "local.pem"
PUBLIC_FILE: Final = "local-root.crt"  # the ending that update-ca-certificates wants

_DAY: Final = 86_400.0
ROOT_SECONDS: Final = 3650 * _DAY
# Browsers refuse more than 398 days of public authorities, Apple's more than 825 of any. Nothing is gained by coming
# near: issuing costs nothing. A month, so that what was signed for an address of last week's network soon ends.
LEAF_SECONDS: Final = 30 * _DAY
SLACK_SECONDS: Final = _DAY  # a certificate is valid from so much earlier: a client's clock may be slow
ROOT_WARNING_SECONDS: Final = 90 * _DAY
# The roots' own beginning. A clock that says less is wrong (a board without a battery says 1970), and a root that was
# made by it would be expired when it is set right.
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
# RFC 6761, RFC 6762 (mDNS), ICANN's reservation of 2024, RFC 8375; and `lan`, which routers hand out, and which ICANN
# counts among the names that collide too much to be delegated.
LOCAL_DOMAINS: Final = ("localhost", "local", "internal", "home.arpa", "lan")
_ORGANISATION: Final = "FLM"
_NAME_CHARACTERS: Final = 64  # of a common name, RFC 5280's ub-common-name
_HOST_CHARACTERS: Final = 30
_REPLACE: Final = (
    "`flm certs replace` makes a new one and keeps this file under another name; every device that trusted the old "
    "root has to trust the new one"
)

log = logging.getLogger("flm.tls")


class Replaced(msgspec.Struct, frozen=True):
    """A new root. `former`: the file with the one before and its key; `former_public`: with its certificate alone, if
    it could be read. None where there was none."""

    root: Pair
    former: Path | None
    former_public: Path | None


class LocalAuthority:
    """The local root in the folder `certs`, and what it signs: `root.pem`, `local.pem` (each a key with its
    certificate, 0600), and `local-root.crt`, the root's certificate alone, for those who are to trust it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def public_file(self) -> Path:
        """The root's certificate without its key. There after `root`."""
        return self._folder / PUBLIC_FILE

    def root(self, now: float) -> Pair:
        """The root, made first if there is none.

        Raises PROXY_CERT_FAILED if what is there is damaged, expired, or no root of FLM's, or if the clock cannot be
        right; IO_ERROR if the files cannot be used.
        """
        with locked(self._folder):
            return self._root(now)

    def leaf(self, names: Sequence[str], now: float) -> Pair:
        """The certificate to serve for `names`: the one that is there while it is the root's, is for all of them and
        has more than a third of its life left, else a new one.

        Names that the root may not sign are left out, and that is logged: with one of them in it, clients would refuse
        the certificate for every name. Raises as `root`, and PROXY_CERT_FAILED if no name is left.
        """
        with locked(self._folder):
            root = self._root(now)
            certificate = x509.load_pem_x509_certificate(root.chain_pem)
            allowed = [name for name in dict.fromkeys(names) if _may_sign(certificate, name)]
            if not allowed:
                raise _failed(f"the local root may sign none of {', '.join(names) or 'no names'}")
            kept = self._kept_leaf()
            if kept is not None and _still_good(kept, root, certificate, allowed, now):
                return kept
            self._say_left_out([name for name in names if name not in allowed])
            if now > root.not_after - ROOT_WARNING_SECONDS:
                log.warning("the local root expires at %s; %s", moment(root.not_after), _REPLACE)
            made = _issue(root, certificate, allowed, now)
            write_atomically(self._folder / LEAF_FILE, made.pem)
            log.info("a new certificate of the local root for %s, until %s", ", ".join(allowed), moment(made.not_after))
            return made

    def replace(self, now: float) -> Replaced:
        """Make a new root in the place of the one there, whatever that is, and keep that under another name.

        Raises IO_ERROR, and PROXY_CERT_FAILED if the clock cannot be right.
        """
        _check_clock(now)
        with locked(self._folder):
            former = self._move_away()
            public = former.with_suffix(".crt") if former else None
            try:
                old = read_pair(former) if former else None
            except CommandError:
                old = None
            if old is not None and public is not None:
                write_atomically(public, old.chain_pem)
            return Replaced(self._root(now), former, public if old else None)

    def _move_away(self) -> Path | None:
        path = self._folder / ROOT_FILE
        if not os.path.lexists(path):
            return None
        former = path.with_name(f"root.replaced-{secrets.token_hex(4)}.pem")
        try:
            os.rename(path, former)
        except OSError as error:
            raise CommandError(CommandCode.IO_ERROR, f"{path} cannot be moved: {error.strerror or error}") from None
        return former

    def public_pem(self) -> bytes:
        """The root's certificate, without its key, whatever its dates. Raises PROXY_CERT_FAILED if there is no root,
        or one that cannot be used; IO_ERROR."""
        with locked(self._folder):
            found = self._read_root()
            if found is None:
                raise _failed("there is no local root yet; `flm certs export` makes one")
            return found.chain_pem

    def _root(self, now: float) -> Pair:
        """The caller holds the lock."""
        found = self._read_root()
        if found is None:
            _check_clock(now)
            found = _make_root(now)
            write_atomically(self._folder / ROOT_FILE, found.pem)
            log.info("made a local root, %s, until %s", found.issuer, moment(found.not_after))
        elif now > found.not_after:
            self._refuse(
                f"the local root expired at {moment(found.not_after)}; the clock here says {moment(now)} (is it right?)"
            )
        elif now < found.not_before:
            self._refuse(
                f"the local root is valid from {moment(found.not_before)} on, and the clock here says {moment(now)}; "
                "set the clock right"
            )
        if read_private(self.public_file) != found.chain_pem:
            write_atomically(self.public_file, found.chain_pem)
        return found

    def _read_root(self) -> Pair | None:
        try:
            found = read_pair(self._folder / ROOT_FILE)
        except CommandError as error:
            if error.code is not CommandCode.PROXY_CERT_FAILED:
                raise
            self._refuse(f"the local root is damaged: {error.message}; put a copy of it back, if there is one")
        if found is not None and (why := not_ours(found)):
            self._refuse(f"{self._folder / ROOT_FILE} is no local root that FLM made: {why}")
        return found

    def _refuse(self, why: str) -> NoReturn:
        raise _failed(f"{why}; it was left as it is ({self._folder / ROOT_FILE}). {_REPLACE}")

    def _kept_leaf(self) -> Pair | None:
        try:
            return read_pair(self._folder / LEAF_FILE)
        except CommandError as error:
            if error.code is not CommandCode.PROXY_CERT_FAILED:
                raise
            log.warning("%s; it is made anew", error.message)
            return None

    def _say_left_out(self, names: Sequence[str]) -> None:
        if names:
            log.warning(
                "the certificate of the local root is not for %s: the root vouches only for local names and private "
                "networks, and for the name this machine had when the root was made", ", ".join(names),
            )  # fmt: skip


# --- the root ---


def _check_clock(now: float) -> None:
    if now < EARLIEST:
        raise _failed(f"no local root is made, since the clock here says {moment(now)}, which cannot be; set it right")


def _make_root(now: float) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    host = host_name()
    name = " ".join(filter(None, [_ORGANISATION, "local root", host[:_HOST_CHARACTERS], secrets.token_hex(4)]))
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _begun(key.public_key(), _name(name), _name(name), EARLIEST, now + ROOT_SECONDS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_constraints(host), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _paired(key, certificate)


def _constraints(host: str) -> x509.NameConstraints:
    """Local domains and private networks, and this host's own name. A name of one label, such as `dev`, may be a
    domain of the internet too, so nothing below it is allowed."""
    domains = [*LOCAL_DOMAINS]
    excluded = None
    if host and not _below(host, LOCAL_DOMAINS):
        domains.append(host)
        if "." not in host:
            excluded = [x509.DNSName(f".{host}")]
    networks = [x509.IPAddress(network) for network in PRIVATE_NETWORKS]
    return x509.NameConstraints([*map(x509.DNSName, domains), *networks], excluded)


def not_ours(pair: Pair) -> str:
    """Why a pair is no root of FLM's: what such a root may sign would be bounded. Empty if it is one."""
    certificate = x509.load_pem_x509_certificate(pair.chain_pem)
    try:
        certificate.verify_directly_issued_by(certificate)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except (ValueError, TypeError, InvalidSignature):
        return "it is not signed by itself"
    except x509.ExtensionNotFound:
        return "it is no authority's, or it may vouch for any site"
    if not basic.value.ca or not constraints.critical or not constraints.value.permitted_subtrees:
        return "it is no authority's, or it may vouch for any site"
    return ""


def _may_sign(root: x509.Certificate, name: str) -> bool:
    """By the root's own name constraints."""
    constraints = root.extensions.get_extension_for_class(x509.NameConstraints).value
    permitted, excluded = constraints.permitted_subtrees or [], constraints.excluded_subtrees or []
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        wanted = name.lower()
        return is_host_name(name) and _below(wanted, _domains(permitted)) and not _below(wanted, _domains(excluded))
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False  # a certificate has no place for it
    ranges = [str(each.value) for each in permitted if isinstance(each, x509.IPAddress)]
    networks = map(ipaddress.ip_network, ranges)
    return any(address.version == network.version and address in network for network in networks)


def _domains(names: Sequence[x509.GeneralName]) -> list[str]:
    return [each.value for each in names if isinstance(each, x509.DNSName)]


def _below(name: str, domains: Sequence[str]) -> bool:
    """Whether `name` is one of `domains` or below one; one that begins with a dot means only what is below."""
    return any(name == domain or name.endswith(f".{domain.removeprefix('.')}") for domain in domains)


# --- what it signs ---


def _still_good(kept: Pair, root: Pair, certificate: x509.Certificate, names: Sequence[str], now: float) -> bool:
    leaf = x509.load_pem_x509_certificate(kept.chain_pem)
    with contextlib.suppress(CommandError, ValueError, TypeError, InvalidSignature):
        check(kept, now, names)
        leaf.verify_directly_issued_by(certificate)
        young = now < kept.not_after - (kept.not_after - kept.not_before) / 3
        return young or kept.not_after >= root.not_after  # a new one would not live longer
    return False


def _issue(root: Pair, authority: x509.Certificate, names: Sequence[str], now: float) -> Pair:
    signer = serialization.load_pem_private_key(root.key_pem, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise _failed("the key of the local root is none that FLM makes")
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    begins, ends = max(now - SLACK_SECONDS, root.not_before), min(now + LEAF_SECONDS, root.not_after)
    subject = _name(f"{_ORGANISATION} on {host_name()[:_HOST_CHARACTERS] or 'this machine'}")
    certificate = (
        _begun(key.public_key(), subject, authority.subject, begins, ends)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _paired(key, certificate)


def _begun(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, begins: float, ends: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(begins), UTC))
        .not_valid_after(datetime.fromtimestamp(int(ends), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.lower())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:_NAME_CHARACTERS]),
        ]
    )


def _paired(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Pair:
    """Read again as it will be read: what cannot be used is never written."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return read(pem + certificate.public_bytes(serialization.Encoding.PEM))


def _failed(why: str) -> CommandError:
    return CommandError(CommandCode.PROXY_CERT_FAILED, why)

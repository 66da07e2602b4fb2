"""What is served is one key with its own chain, valid now and for these names; all else is refused, without the key."""

from __future__ import annotations

import re
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from flm.errors import CommandCode, CommandError
from flm.tls import pair as pairs
from flm.tls.pair import MAX_CERTIFICATES, MAX_PEM_BYTES, check, covers, moment, read
from tests.tls.issuing import DAY, NOW, Issued, authority

ROOT = authority()
INTERMEDIATE = ROOT.issue("Test Intermediate", ca=True)
LEAF = INTERMEDIATE.issue("leaf", ("example.com", "*.example.net", "192.0.2.1", "2001:db8::1"))
WHOLE = LEAF.key_pem + LEAF.chain
OTHER = ROOT.issue("other", ("other.example",))
RSA_KEY = rsa.generate_private_key(65_537, 2048)


def refusal(pem: bytes) -> str:
    with pytest.raises(CommandError) as refused:
        read(pem)
    assert refused.value.code is CommandCode.PROXY_CERT_FAILED
    assert refused.value.__cause__ is None
    assert not leaks(refused.value.message, pem)
    return refused.value.message


def leaks(message: str, pem: bytes) -> bool:
    """Whether ten characters in a row of the base64 in `pem` stand in the message."""
    lines = [line for line in pem.split() if re.fullmatch(rb"[A-Za-z0-9+/=]{20,}", line)]
    return any(line[at : at + 10].decode() in message for line in lines for at in range(len(line) - 9))


def refused_or_read(pem: bytes) -> str | None:
    """The words of the refusal; None if it was read, and then it is LEAF's and can be checked."""
    try:
        pair = read(pem)
        assert pair.key_pem == LEAF.key_pem
        check(pair, pair.not_before)
    except CommandError as error:
        if error.code is not CommandCode.PROXY_CERT_FAILED:
            raise
        return error.message
    return None


def check_refusal(issued: Issued, now: float = NOW, names: tuple[str, ...] = ()) -> str:
    with pytest.raises(CommandError) as refused:
        check(read(issued.key_pem + issued.chain), now, names)
    assert refused.value.code is CommandCode.PROXY_CERT_FAILED
    return refused.value.message


class TestRead:
    def test_the_facts(self) -> None:
        pair = read(WHOLE)
        assert pair.domains == ("example.com", "*.example.net", "192.0.2.1", "2001:db8::1")
        assert (pair.not_before, pair.not_after) == (NOW - DAY, NOW + 90 * DAY)
        assert pair.issuer == "Test Intermediate"
        assert int(pair.serial, 16) == LEAF.certificate.serial_number
        assert pair.fingerprint == LEAF.certificate.fingerprint(hashes.SHA256()).hex()
        assert pair.chain_pem == LEAF.chain
        assert len(x509.load_pem_x509_certificates(pair.chain_pem)) == 2

    @pytest.mark.parametrize(
        "pem",
        [
            LEAF.key_pem + LEAF.chain,
            LEAF.chain + LEAF.key_pem,
            b"\n\n" + LEAF.chain + b"\r\n" + LEAF.key_pem + b" \n",
            (LEAF.key_pem + LEAF.chain).replace(b"\n", b"\r\n"),
            LEAF.key_pem.rstrip() + LEAF.chain.rstrip(),
            LEAF.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
            + LEAF.chain,
        ],
    )
    def test_one_form_comes_out_of_many(self, pem: bytes) -> None:
        assert read(pem) == read(WHOLE)
        assert read(pem).pem == WHOLE

    @pytest.mark.parametrize(
        "key", [RSA_KEY, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
    )
    def test_kinds_of_keys(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
        leaf = ROOT.issue("leaf", ("example.com",), key=key)
        pair = read(leaf.key_pem + leaf.chain)
        assert read(pair.pem) == pair
        check(pair, NOW, ["example.com"])

    def test_openssl_takes_what_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "pair.pem").write_bytes(read(WHOLE).pem)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "pair.pem")

    @pytest.mark.parametrize(
        ("pem", "words"),
        [
            (b"", "holds no private key"),
            (LEAF.chain, "holds no private key"),
            (LEAF.key_pem, "holds no certificate"),
            (LEAF.key_pem + LEAF.key_pem + LEAF.chain, "holds 2 private keys"),
            (OTHER.key_pem + LEAF.chain, "not that of the first certificate"),
            (LEAF.key_pem + INTERMEDIATE.pem + LEAF.pem, "not that of the first certificate"),
            (LEAF.key_pem + LEAF.pem + OTHER.pem, "certificate number 2 of it has not issued number 1"),
            (LEAF.key_pem + LEAF.chain + OTHER.pem, "certificate number 3 of it has not issued number 2"),
            (LEAF.key_pem + LEAF.pem + ROOT.pem + INTERMEDIATE.pem, "number 2 of it has not issued number 1"),
            (LEAF.key_pem + LEAF.pem + LEAF.pem, "number 2 of it has not issued number 1"),
            (WHOLE + b"# a note\n", "something that is no PEM block"),
            (WHOLE + b"\0", "something that is no PEM block"),
            (b"\xef\xbb\xbf" + WHOLE, "at byte 0 of it stands something"),
            (WHOLE[:-30], "has no end: the file was cut off"),
            (LEAF.key_pem[:-30] + LEAF.chain, "has no end"),
            (WHOLE + b"-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----", "neither a private key nor"),
            (WHOLE + b"-----BEGIN " + b"X" * 100, "something that is no PEM block"),
            (WHOLE + b" " * MAX_PEM_BYTES, "larger than"),
            (LEAF.key_pem + LEAF.pem * (MAX_CERTIFICATES + 1), "more than 10 certificates"),
            (WHOLE.replace(b"MIG", b"MIH"), "private key is damaged"),
            (LEAF.key_pem + b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "is damaged"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, pem: bytes, words: str) -> None:
        assert words in refusal(pem)

    @pytest.mark.parametrize(
        "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
    )
    def test_an_encrypted_key(self, form: serialization.PrivateFormat) -> None:
        encrypted = LEAF.key.private_bytes(
            serialization.Encoding.PEM,
            form,
            serialization.BestAvailableEncryption(b"secret"),
        )
        assert "encrypted with a passphrase" in refusal(encrypted + LEAF.chain)

    def test_a_key_that_no_server_uses(self) -> None:
        key = dsa.generate_private_key(1024)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        assert "of a kind that TLS servers do not use" in refusal(pem + LEAF.chain)

    @pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
    @pytest.mark.parametrize("first", [0x80, 0xF0])
    def test_a_serial_number_that_is_not_positive(self, first: int) -> None:
        der = bytearray(LEAF.certificate.public_bytes(serialization.Encoding.DER))
        size = (LEAF.certificate.serial_number.bit_length() + 8) // 8
        at = der.index(LEAF.certificate.serial_number.to_bytes(size))
        der[at : at + size] = bytes([first]) + bytes(size - 1)
        assert "not positive" in refusal(LEAF.key_pem + ssl.DER_cert_to_PEM_cert(bytes(der)).encode())

    def test_a_chain_by_what_is_no_authority(self) -> None:
        leaf = ROOT.issue("not an authority", ("a.example",)).issue("leaf", ("b.example",))
        assert "number 2 of it is none of an authority" in refusal(leaf.key_pem + leaf.chain)

    def test_no_name_and_no_common_name(self) -> None:
        assert read(ROOT.key_pem + ROOT.pem).domains == ()
        assert pairs._readable(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "SE")])) == "C=SE"

    @pytest.mark.parametrize(
        ("organisation", "common", "readable"),
        [
            ("Let's Encrypt", "E7", "Let's Encrypt E7"),
            ("Example", "Example Root", "Example Root"),
            ("Example", "", "Example"),
            ("", "R11", "R11"),
            ("", "R" * 64, "R" * 64),
        ],
    )
    def test_an_issuer_for_people(self, organisation: str, common: str, readable: str) -> None:
        parts = [(NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, common)]
        name = x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])
        assert pairs._readable(name) == readable

    def test_no_representation_shows_the_key(self) -> None:
        pair = read(WHOLE)
        for text in (repr(pair), str(pair), f"{pair!r}", str(pair.__rich_repr__()), str(msgspec.ValidationError(pair))):
            assert not leaks(text, pair.key_pem)
            assert "PRIVATE" not in text
        assert "example.com" in repr(pair)

    @given(st.data())
    def test_a_damaged_pair_is_refused_or_another_form_of_the_same(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(WHOLE) - 1))
        piece = data.draw(st.binary(max_size=3))
        pem = WHOLE[:at] + piece + WHOLE[at + data.draw(st.integers(0, 3)) :]
        refused = refused_or_read(pem)
        assert refused is None or not leaks(refused, WHOLE)

    @given(st.data())
    def test_a_certificate_damaged_below_its_armour(self, data: st.DataObject) -> None:
        der = bytearray(LEAF.certificate.public_bytes(serialization.Encoding.DER))
        for _ in range(data.draw(st.integers(1, 4))):
            der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
        pem = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
        refused = refused_or_read(LEAF.key_pem + pem)
        assert refused is None or not leaks(refused, LEAF.key_pem + pem)

    @given(st.binary(max_size=300) | st.lists(st.sampled_from([
        b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"-----BEGIN PRIVATE KEY-----", b"AAAA", b"\n",
        b"-----END PRIVATE KEY-----", b"-----BEGIN ", b"-----", b"Proc-Type: 4,ENCRYPTED", b"-----END -----",
    ]), max_size=12).map(b"".join))  # fmt: skip
    @example(b"-----BEGIN -----\n-----END -----")
    def test_any_bytes_are_refused(self, pem: bytes) -> None:
        with pytest.raises(CommandError) as refused:
            read(pem)
        assert refused.value.code is CommandCode.PROXY_CERT_FAILED


class TestCheck:
    def test_a_good_one_up_to_its_last_second(self) -> None:
        pair = read(WHOLE)
        for now in (pair.not_before, NOW, pair.not_after):
            check(pair, now, ["example.com", "a.example.net", "192.0.2.1"])

    def test_dates(self) -> None:
        assert "expired at 2030-04-01T00:00:00Z" in check_refusal(LEAF, NOW + 90 * DAY + 1)
        assert "valid only from 2029-12-31T00:00:00Z on" in check_refusal(LEAF, NOW - DAY - 1)

    def test_names(self) -> None:
        words = check_refusal(LEAF, names=("example.com", "www.example.com", "192.0.2.2"))
        assert "it is not for www.example.com, 192.0.2.2, but for example.com, *.example.net" in words
        assert "no name at all" in check_refusal(ROOT, names=("example.com",))

    @pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
    @pytest.mark.parametrize(
        ("key", "words"),
        [
            (rsa.generate_private_key(65_537, 1024), "RSA key of it has 1024 bits"),
            (ec.generate_private_key(ec.SECP256K1()), "curve secp256k1"),
        ],
    )
    def test_weak_keys(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, words: str) -> None:
        assert words in check_refusal(ROOT.issue("leaf", ("example.com",), key=key))

    def test_a_weak_key_further_up(self) -> None:
        weak = ROOT.issue("weak", ca=True, key=rsa.generate_private_key(65_537, 1024))
        assert "1024 bits" in check_refusal(weak.issue("leaf", ("example.com",)))

    @pytest.mark.parametrize("depth", [1, 2])
    def test_a_signature_that_nobody_believes(self, tmp_path: Path, depth: int) -> None:
        """Made by openssl, since the library refuses to."""
        signer = [ROOT, INTERMEDIATE][depth - 1]
        for name, content in (("ca.key", signer.key_pem), ("ca.pem", signer.pem), ("leaf.key", LEAF.key_pem)):
            (tmp_path / name).write_bytes(content)
        for command in (
            "req -new -key leaf.key -subj /CN=leaf -out leaf.csr",
            "x509 -req -sha1 -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem",
        ):
            subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True, timeout=30)
        above = signer.pem if depth == 2 else b""
        with pytest.raises(CommandError, match="signed with sha1"):
            check(read(LEAF.key_pem + (tmp_path / "leaf.pem").read_bytes() + above), datetime.now(UTC).timestamp())

    def test_a_purpose(self) -> None:
        client = ROOT.issue("leaf", ("example.com",), usage=(ExtendedKeyUsageOID.CLIENT_AUTH,))
        assert "lacks serverAuth" in check_refusal(client)
        both = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
        server = ROOT.issue("leaf", ("example.com",), usage=both)
        check(read(server.key_pem + server.chain), NOW)


class TestCovers:
    @pytest.mark.parametrize(
        ("name", "covered"),
        [
            ("example.com", True),
            ("EXAMPLE.com", True),
            ("example.com.", True),
            ("www.example.com", False),
            ("a.example.net", True),
            ("A.Example.Net.", True),
            ("example.net", False),
            ("a.b.example.net", False),
            (".example.net", False),
            ("*.example.net", True),
            ("192.0.2.1", True),
            ("192.0.2.2", False),
            ("2001:db8::1", True),
            ("2001:0DB8:0:0::1", True),
            ("2001:db8::2", False),
            ("", False),
            (".", False),
        ],
    )
    def test_names(self, name: str, covered: bool) -> None:
        assert covers(read(WHOLE), name) is covered

    def test_a_wildcard_is_for_no_address(self) -> None:
        leaf = ROOT.issue("leaf", ("*.0.2.1",))
        assert not covers(read(leaf.key_pem + leaf.chain), "192.0.2.1")

    @given(st.text(max_size=30))
    def test_any_name_has_an_answer(self, name: str) -> None:
        assert covers(read(WHOLE), name) in (True, False)


def test_moments() -> None:
    assert moment(0) == "1970-01-01T00:00:00Z"
    assert moment(253_402_300_799) == "9999-12-31T23:59:59Z"
    assert moment(1e18) == "1000000000000000000 s after 1970"

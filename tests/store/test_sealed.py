"""What is sealed comes back byte for byte, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from flm.errors import CommandCode, CommandError
from flm.store import sealed
from flm.store.sealed import HEAD_BYTES, Secret, check_size, read_head, seal, unseal

PASSPHRASE = Secret("passphrase", b"correct horse battery staple")
CHUNK = 1024


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LOG_N", 10)  # a millisecond instead of half a second
    monkeypatch.setattr(sealed, "CHUNK_BYTES", CHUNK)


def sealing(content: bytes, secret: Secret = PASSPHRASE) -> bytes:
    file = io.BytesIO()
    seal(file, [content[:7], content[7:]], len(content), secret)
    return file.getvalue()


def opening(data: bytes, secret: Secret = PASSPHRASE) -> bytes:
    file = io.BytesIO(data)
    head = read_head(file, "F")
    check_size(head, len(data), "F")
    return b"".join(unseal(file, head, secret, "F"))


def refusal(data: bytes, secret: Secret = PASSPHRASE) -> str:
    with pytest.raises(CommandError) as caught:
        opening(data, secret)
    assert caught.value.code is CommandCode.BACKUP_INVALID
    assert caught.value.exit_code == 1
    assert "Nothing was changed" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("length", [1, 8, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 17])
@pytest.mark.parametrize("secret", [PASSPHRASE, Secret("key file", bytes(range(64)))], ids=["passphrase", "key"])
def test_it_comes_back(length: int, secret: Secret) -> None:
    content = os.urandom(length)
    data = sealing(content, secret)
    assert opening(data, secret) == content
    assert content[:8] not in data or length < 8


def test_the_format_is_the_documented_one() -> None:
    """Read by hand, from the documentation alone: a later FLM must not change it silently."""
    content = os.urandom(2 * CHUNK + 5)
    data = sealing(content)
    magic, version, kind, log_n, r, p, chunk, salt, length, mac = struct.unpack(">12sHBBBBI16sQ32s", data[:78])
    assert (magic, version, kind, r, p, length) == (b"\x89FLMBAK\r\n\x1a\n\x00", 1, 1, 8, 1, len(content))
    keys = hashlib.scrypt(PASSPHRASE.value, salt=salt, n=1 << log_n, r=r, p=p, dklen=64)
    assert hmac.digest(keys[32:], data[:46], "sha256") == mac
    found, rest, number = b"", data[78:], 0
    while rest:
        piece, rest = rest[: chunk + 16], rest[chunk + 16 :]
        nonce = number.to_bytes(11, "big") + bytes([not rest])
        found += ChaCha20Poly1305(keys[:32]).decrypt(nonce, piece, data[:78])
        number += 1
    assert found == content


def test_the_shipped_parameters_are_strong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = sealing(b"content")
    assert data[15:18] == bytes([17, 8, 1])
    assert data[78:] != sealing(b"content")[78:]  # a fresh salt each time


def test_every_cut_is_seen() -> None:
    data = sealing(os.urandom(3 * CHUNK))
    for length in range(len(data)):
        said = refusal(data[:length])
        assert ("is empty" if length == 0 else "cut short") in said


def test_a_cut_is_seen_also_where_the_size_is_not_known() -> None:
    """At a chunk's border too, where the last chunk that is there is genuine."""
    data = sealing(os.urandom(3 * CHUNK))
    for length in range(HEAD_BYTES, len(data), CHUNK + 16):
        file = io.BytesIO(data[:length])
        with pytest.raises(CommandError, match="cut short"):
            list(unseal(file, read_head(file, "F"), PASSPHRASE, "F"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_changed_byte_is_seen(data: st.DataObject) -> None:
    whole = sealing(bytes(2 * CHUNK + 100))
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    refusal(bytes(flipped))


def test_chunks_cannot_change_places_nor_come_from_another_file() -> None:
    content = os.urandom(3 * CHUNK)
    data = sealing(content)
    size = CHUNK + 16
    first, second, third = (data[78 + n * size : 78 + (n + 1) * size] for n in range(3))
    assert "damaged" in refusal(data[:78] + second + first + third)
    assert "damaged" in refusal(data[:78] + first + first + third)
    other = sealing(content)
    assert "damaged" in refusal(data[:78] + other[78:])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SQLite format 3\x00" + bytes(100), "no backup of FLM's"),
        (b"PK\x03\x04", "no backup of FLM's"),
        (sealed.MAGIC + b"\x00\x02" + bytes(60), "newer FLM"),
        (sealed.MAGIC + b"\x00\x02", "newer FLM"),
        (sealed.MAGIC.replace(b"\r\n", b"\n") + bytes(100), "no backup of FLM's"),
        (sealed.MAGIC[:5], "cut short"),
    ],
)
def test_it_says_what_else_a_file_is(data: bytes, why: str) -> None:
    assert why in refusal(data)


def test_a_head_cannot_ask_for_all_memory() -> None:
    data = bytearray(sealing(b"content"))
    for at, value in ((15, 31), (16, 255), (17, 200)):
        bad = data.copy()
        bad[at] = value
        assert "head is damaged" in refusal(bytes(bad))


def test_a_wrong_secret_is_told_from_damage() -> None:
    data = sealing(os.urandom(CHUNK))
    assert "not the passphrase it was made with" in refusal(data, Secret("passphrase", b"incorrect"))
    assert "sealed with a passphrase, not with a key file" in refusal(data, Secret("key file", PASSPHRASE.value))
    assert "too many" in refusal(data + b"x")


def test_a_secret_is_not_printed() -> None:
    assert "horse" not in repr(PASSPHRASE)

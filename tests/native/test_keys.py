"""The text of a key, and how its secret is hashed: against Python's own CRC-32 and HMAC."""

from __future__ import annotations

import hashlib
import hmac
import re
import string
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm import _native
from tests.native.conftest import PEPPER

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEY = re.compile(_native.KEY_PATTERN)


def checksum(text: str) -> str:
    rest, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = BASE62[digit] + digits
    return digits


def test_a_hundred_thousand_keys_are_distinct_and_match_the_pattern() -> None:
    made = [_native.generate_key() for _ in range(100_000)]
    assert all(KEY.fullmatch(key) and key[4:16] == key_id for key, key_id in made)
    assert len({key_id for _, key_id in made}) == len({key[17:60] for key, _ in made}) == len(made)


def test_a_secret_has_256_bits() -> None:
    assert 62**43 >= 2**256
    assert {key[17 + at] for key, _ in (_native.generate_key() for _ in range(2000)) for at in (0, 42)} == set(BASE62)


def test_the_checksum_is_crc32_in_base62() -> None:
    key, key_id = _native.generate_key()
    assert key[60:] == checksum(key[:60])
    assert _native.key_id(key.encode()) == key_id


def test_every_change_of_one_character_is_caught() -> None:
    key, _ = _native.generate_key()
    wrong = [key[:at] + c + key[at + 1 :] for at in range(66) for c in BASE62 + "_- é" if c != key[at]]
    assert len(wrong) > 4000
    assert not [text for text in wrong if _native.key_id(text.encode()) is not None]


def test_every_swap_of_neighbours_is_caught() -> None:
    key, _ = _native.generate_key()
    wrong = [key[:at] + key[at + 1] + key[at] + key[at + 2 :] for at in range(65) if key[at] != key[at + 1]]
    assert not [text for text in wrong if _native.key_id(text.encode()) is not None]


@given(st.binary(max_size=200) | st.from_regex(KEY, fullmatch=True).map(str.encode))
@example(b"")
@example(b"flm_" + b"0" * 12 + b"_" + b"0" * 49)
@example(b"flm_" + b"\xff" * 62)
def test_an_id_is_told_only_of_what_has_the_form_and_the_checksum(presented: bytes) -> None:
    text = presented.decode("latin-1")
    right = KEY.fullmatch(text) is not None and checksum(text[:60]) == text[60:]
    assert _native.key_id(presented) == (text[4:16] if right else None)


@given(st.text(BASE62, min_size=12, max_size=12), st.text(BASE62, min_size=43, max_size=43))
def test_a_key_made_elsewhere_by_the_same_rule_is_read(key_id: str, secret: str) -> None:
    text = f"flm_{key_id}_{secret}"
    assert _native.key_id((text + checksum(text)).encode()) == key_id


@given(st.binary(min_size=32, max_size=200), st.binary(min_size=16, max_size=16))
def test_the_digest_is_hmac_of_salt_and_secret(pepper: bytes, salt: bytes) -> None:
    key, _ = _native.generate_key()
    expected = hmac.new(pepper, salt + key[17:60].encode(), hashlib.sha256).digest()
    assert _native.hash_secret(pepper, salt, key) == expected


def test_a_malformed_argument_is_a_value_error_that_shows_nothing_of_it() -> None:
    key, _ = _native.generate_key()
    bad_key = key[:-1] + ("0" if key[-1] != "0" else "1")
    salt = b"0123456789abcdef"
    for arguments in (
        (b"short" * 6, salt, key),
        (PEPPER, salt[:15], key),
        (PEPPER, salt + b"x", key),
        (PEPPER, salt, bad_key),
    ):
        with pytest.raises(ValueError, match=r"pepper must|salt has|key is malformed") as caught:
            _native.hash_secret(*arguments)
        assert not re.search(rf"{key[4:16]}|{key[17:30]}|short|0123", str(caught.value))


def test_a_key_of_the_wrong_type_is_not_shown() -> None:
    key, _ = _native.generate_key()
    with pytest.raises(TypeError) as caught:
        _native.key_id(key)  # type: ignore[arg-type]
    assert key[:8] not in str(caught.value)

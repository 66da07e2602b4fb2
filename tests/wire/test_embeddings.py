"""Vectors travel as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import base64
import json
import struct

import msgspec
import pytest

from flm.errors import RequestError
from flm.wire.embeddings import answer, base64_vector, input_kind, is_vector

Raw = msgspec.Raw


def test_base64_is_little_endian_float32() -> None:
    packed = json.loads(bytes(base64_vector(Raw(b"[1, -2.5, 0.1, 3e38]"))))
    assert base64.b64decode(packed) == struct.pack("<4f", 1, -2.5, 0.1, 3e38)
    assert json.loads(bytes(base64_vector(Raw(b"[1, -2.5]")))) == "AACAPwAAIMA="


@pytest.mark.parametrize("vector", [b'"x"', b"{}", b'["x"]', b"[null]", b"1"])
def test_what_is_no_vector(vector: bytes) -> None:
    assert not is_vector(Raw(vector))
    with pytest.raises(msgspec.DecodeError):
        base64_vector(Raw(vector))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", "texts"),
        ("", "texts"),
        ((b'"a"', b'"b"'), "texts"),
        ((b"1", b"23"), "tokens"),
        ((b"[1]", b"[2,3]"), "tokens"),
    ],
)
def test_input(value: str | tuple[bytes, ...], kind: str) -> None:
    assert input_kind(value if isinstance(value, str) else [Raw(item) for item in value]) == kind


@pytest.mark.parametrize("value", [(), (b"null",), (b'"a"', b"1"), (b"{}",), (b"-1",), (b"true",)])
def test_input_that_is_none(value: tuple[bytes, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        input_kind([Raw(item) for item in value])
    assert caught.value.param == "input"


def test_the_answer_copies_the_vectors() -> None:
    body = answer([Raw(b"[1, 2.50]"), Raw(b'"AA=="')], "m", 3)
    assert body == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1, 2.50]},'
        b'{"object":"embedding","index":1,"embedding":"AA=="}],"model":"m",'
        b'"usage":{"prompt_tokens":3,"total_tokens":3}}'
    )

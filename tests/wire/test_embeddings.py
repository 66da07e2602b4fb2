"""Vectors travel as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import base64
import json
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import RequestError
from flm.wire.embeddings import (
    answer,
    array_vector,
    base64_vector,
    check_dimensions,
    embedded,
    is_vector,
    vector_size,
)
from flm.wire.inputs import Inputs

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


@pytest.mark.parametrize("value", ["", [], ["[]"], ["[1]", "[ ]"], ["1", '"a"'], ["null"]])
def test_nothing_to_embed(value: str | list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        embedded(value if isinstance(value, str) else [Raw(item.encode()) for item in value])
    assert (caught.value.status, caught.value.param) == (400, "input")


def test_an_empty_text_among_others_is_the_engines_affair() -> None:
    assert embedded([Raw(b'"a"'), Raw(b'""')]) == Inputs("texts", 2)


VECTORS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20)


@given(VECTORS)
def test_base64_and_back(vector: list[float]) -> None:
    packed = base64_vector(Raw(json.dumps(vector).encode()))
    assert json.loads(bytes(array_vector(packed))) == vector
    assert vector_size(packed) == vector_size(array_vector(packed)) == len(vector)


@pytest.mark.parametrize("packed", ['"x"', '"AAA"', "1", '"é"', '"AAAAAAA="'])
def test_what_is_no_base64(packed: str) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        array_vector(Raw(packed.encode()))


def test_a_size_that_was_not_asked_for() -> None:
    vectors = [Raw(b"[1, 2]"), base64_vector(Raw(b"[1, 2]"))]
    check_dimensions(2, vectors)
    with pytest.raises(RequestError) as caught:
        check_dimensions(3, vectors)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "dimensions")
    assert "have 2" in caught.value.message


def test_the_answer_copies_the_vectors() -> None:
    body = answer([Raw(b"[1, 2.50]"), Raw(b'"AA=="')], "m", 3)
    assert body == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1, 2.50]},'
        b'{"object":"embedding","index":1,"embedding":"AA=="}],"model":"m",'
        b'"usage":{"prompt_tokens":3,"total_tokens":3}}'
    )

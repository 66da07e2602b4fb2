"""Embeddings on the wire: what a request must look like, and the answer as OpenAI's clients read it.

Vectors travel as JSON arrays or as base64 of little-endian float32, as the caller asked (`encoding_format`).
Knows no engine: it is handed vectors, and never parses what it may copy.
"""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from flm.errors import ErrorKind, RequestError
from flm.wire.chat import BRACKET, QUOTE, first_byte, invalid
from flm.wire.inputs import Inputs, inputs

Raw = msgspec.Raw


class EmbeddingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an embedding request; null counts as absent, but for `input`."""

    input: str | tuple[Raw, ...]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=1_048_576)] | None = None
    user: str | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _Item(msgspec.Struct, frozen=True):
    object: str
    index: int
    embedding: Raw


class _Answer(msgspec.Struct, frozen=True):
    object: str
    data: list[_Item]
    model: str
    usage: Usage


_FLOAT_BYTES: Final = 4
_floats = msgspec.json.Decoder(list[float])
_text = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder()


def embedded(value: str | Sequence[Raw]) -> Inputs:
    """What is to be embedded. Raises INVALID_REQUEST (param `input`) for nothing at all, or another shape."""
    found = inputs(value, "input")
    if not value or (not isinstance(value, str) and any(bytes(item)[1:-1].strip() == b"" for item in _arrays(value))):
        raise invalid("`input` is empty", "input")
    return found


def _arrays(value: Sequence[Raw]) -> Sequence[Raw]:
    return [item for item in value if first_byte(item) == BRACKET]


def base64_vector(vector: Raw | bytes) -> Raw:
    """A JSON array of numbers as a JSON string of base64. Raises msgspec.DecodeError if it is none."""
    packed = array.array("f", _floats.decode(vector))
    if sys.byteorder == "big":
        packed.byteswap()
    return Raw(b'"' + base64.b64encode(packed.tobytes()) + b'"')


def array_vector(packed: Raw | bytes) -> Raw:
    """A JSON string of base64 as a JSON array of numbers. Raises ValueError or msgspec.DecodeError if it is none."""
    found = array.array("f", base64.b64decode(_text.decode(packed), validate=True))
    if sys.byteorder == "big":
        found.byteswap()
    return Raw(_encoder.encode(found.tolist()))


def vector_size(vector: Raw | bytes) -> int:
    """How many numbers a vector has, in either format. Raises ValueError or msgspec.DecodeError if it is none."""
    if first_byte(Raw(vector)) == QUOTE:
        return len(base64.b64decode(_text.decode(vector), validate=True)) // _FLOAT_BYTES
    return len(_floats.decode(vector))


def check_dimensions(wanted: int, vectors: Sequence[Raw]) -> None:
    """Raises UNSUPPORTED_PARAMETER if a vector does not have the size asked for, ValueError if it is none."""
    other = next((size for size in map(vector_size, vectors) if size != wanted), None)
    if other is not None:
        message = f"the engine took no notice of `dimensions` {wanted}: this model's embeddings have {other}"
        raise RequestError(ErrorKind.UNSUPPORTED_PARAMETER, message, param="dimensions")


def is_vector(vector: Raw) -> bool:
    try:
        _floats.decode(vector)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def answer(vectors: Sequence[Raw], model: str, prompt_tokens: int) -> bytes:
    """The JSON body; each vector is already JSON: an array, or a base64 string."""
    items = [_Item("embedding", index, vector) for index, vector in enumerate(vectors)]
    return _encoder.encode(_Answer("list", items, model, Usage(prompt_tokens, prompt_tokens)))

"""Embeddings on the wire: what a request must look like, and the answer as OpenAI's clients read it.

Vectors travel as JSON arrays or as base64 of little-endian float32, as the caller asked (`encoding_format`).
Knows no engine: it is handed vectors, and never parses what it may copy.
"""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from flm.wire.chat import BRACKET, QUOTE, first_byte, invalid

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


_floats = msgspec.json.Decoder(list[float])
_encoder = msgspec.json.Encoder()


def input_kind(value: str | Sequence[Raw]) -> Literal["texts", "tokens"]:
    """Whether texts or token ids are to be embedded. Raises INVALID_REQUEST (param `input`) for anything else."""
    if isinstance(value, str):
        return "texts"
    if not value:
        raise invalid("`input` is an empty array", "input")
    firsts = {first_byte(item) for item in value}
    if firsts == {QUOTE}:
        return "texts"
    if firsts == {BRACKET} or firsts <= _DIGITS:
        return "tokens"
    raise invalid("`input` must be a string, an array of strings or token ids", "input")


_DIGITS = frozenset(b"0123456789")


def base64_vector(vector: Raw | bytes) -> Raw:
    """A JSON array of numbers as a JSON string of base64. Raises msgspec.DecodeError if it is none."""
    packed = array.array("f", _floats.decode(vector))
    if sys.byteorder == "big":
        packed.byteswap()
    return Raw(b'"' + base64.b64encode(packed.tobytes()) + b'"')


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

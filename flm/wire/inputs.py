"""The four shapes in which the API takes text for a model: a string, strings, token ids, and arrays of token ids.

`prompt` of a completion and `input` of an embedding are the same in this. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from flm.wire.chat import BRACKET, QUOTE, first_byte, invalid

Raw = msgspec.Raw
_DIGITS: Final = frozenset(b"0123456789")


class Inputs(msgspec.Struct, frozen=True):
    """What was given: texts or token ids, and how many of them are to be answered."""

    kind: Literal["texts", "tokens"]
    count: int


def inputs(value: str | Sequence[Raw], param: str) -> Inputs:
    """What `value`, the field `param`, holds. Raises INVALID_REQUEST for an empty array and any other shape."""
    if isinstance(value, str):
        return Inputs("texts", 1)
    if not value:
        raise invalid(f"`{param}` is an empty array", param)
    firsts = {first_byte(item) for item in value}
    if firsts == {QUOTE}:
        return Inputs("texts", len(value))
    if firsts == {BRACKET}:
        return Inputs("tokens", len(value))
    if firsts <= _DIGITS:
        return Inputs("tokens", 1)
    raise invalid(f"`{param}` must be a string, an array of strings or token ids", param)

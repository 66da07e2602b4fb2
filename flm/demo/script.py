"""What the demo engine says: pure functions of the request, so that a load test can compute the exact answer itself.

`reply(model, prompt, max_tokens)` is the whole contract of a plain answer. A word with its leading blank is one token
and one streamed piece. The answer repeats the first ECHO_WORDS words of the last user message and adds TAIL_WORDS
words that depend on every character of model and message, so that answers which got mixed up are seen.

Knows no dialect, no clock and no randomness.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

ECHO_WORDS = 32
TAIL_WORDS = 12
EMBEDDING_SIZE = 16
# The engine's own context window in tokens (words), as its model lists report it.
CONTEXT_LENGTH = 4096

_WORDS = (
    "amber birch cedar delta ember fjord grove heron iris jade kelp larch maple north ocean pearl "
    "quartz river slate tundra umber vale willow xenon yarrow zephyr café 東京 naïve Straße 🦊 µ"
)
VOCABULARY = tuple(_WORDS.split())


class Reply(msgspec.Struct, frozen=True):
    """One answer: the pieces in the order they are streamed, and why it ended (`stop` or `length`)."""

    pieces: tuple[str, ...]
    finish: str

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def word(seed: int, number: int) -> str:
    """The word at place `number` of the endless text of `seed`: one step of a linear congruence per place."""
    return VOCABULARY[(seed + number * 2654435761 >> 7) % len(VOCABULARY)]


def seed_of(model: str, prompt: str) -> int:
    return zlib.crc32(f"{model}\0{prompt}".encode("utf-8", "surrogatepass"))


def words(model: str, prompt: str, count: int | None = None) -> list[str]:
    """All words of the answer: exactly `count` of them where given, else echo and tail."""
    echo = prompt.split()[:ECHO_WORDS]
    text = [model, "heard:", *echo]
    total = len(text) + TAIL_WORDS if count is None else count
    seed = seed_of(model, prompt)
    text.extend(word(seed, number) for number in range(total - len(text)))
    return text[:total]


def pieces_of(text: Sequence[str]) -> tuple[str, ...]:
    return tuple(part if number == 0 else " " + part for number, part in enumerate(text))


def reply(
    model: str,
    prompt: str,
    max_tokens: int | None = None,
    *,
    count: int | None = None,
    stop: Sequence[str] = (),
) -> Reply:
    """The answer to `prompt` (the text of the last user message) by `model` (the engine's own name of it).

    `max_tokens` cuts it to that many words with finish `length`; `stop` ends it before the earliest of these texts
    with finish `stop`; `count` is the directive `words`.
    """
    said = words(model, prompt, count)
    finish = "stop"
    if max_tokens is not None and 0 <= max_tokens < len(said):
        said, finish = said[:max_tokens], "length"
    pieces = pieces_of(said)
    return _stopped(pieces, finish, stop) if any(stop) else Reply(pieces, finish)


def _stopped(pieces: tuple[str, ...], finish: str, stop: Sequence[str]) -> Reply:
    text = "".join(pieces)
    places = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    if not places:
        return Reply(pieces, finish)
    kept, room = [], min(places)
    for piece in pieces:
        if room <= 0:
            break
        kept.append(piece[:room])
        room -= len(piece)
    return Reply(tuple(kept), "stop")


def reasoning(model: str, prompt: str, count: int) -> tuple[str, ...]:
    """`count` words of thinking, another text than the answer's tail."""
    seed = seed_of(model, prompt + "\0think")
    return pieces_of([word(seed, number) for number in range(count)])


def example(schema: Mapping[str, Any], prompt: str) -> Any:
    """A value that fits a JSON schema, as far as type, enum, const, properties and items go; the rest is ignored.

    A string is the last word of the prompt, so that a test knows the arguments of a tool call.
    """
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example(part, prompt) for name, part in properties.items() if isinstance(part, Mapping)}
    if kind == "array":
        items = schema.get("items")
        return [example(items, prompt)] if isinstance(items, Mapping) else []
    plain: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "null": None}
    return plain[kind] if kind in plain else (prompt.split() or ["demo"])[-1]


def embedding(text: str, size: int = EMBEDDING_SIZE) -> list[float]:
    """A unit vector that depends on every character of `text`; each number is exact in 32 bits."""
    numbers: list[int] = []
    block = 0
    while len(numbers) < size:
        digest = hashlib.sha256(f"{block}\0{text}".encode("utf-8", "surrogatepass")).digest()
        numbers.extend(value - 127.5 for value in digest)  # type: ignore[misc] # halves: never a zero vector
        block += 1
    vector = numbers[:size]
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return list(struct.unpack(f"<{size}f", struct.pack(f"<{size}f", *(value / length for value in vector))))


def prompt_tokens(texts: Sequence[str]) -> int:
    """What the usage says of the messages: their words, 1 at least."""
    return max(1, sum(len(text.split()) for text in texts))


def quoted(text: str) -> str:
    """A directive value that may stand in one item (`body=`)."""
    return quote(text, safe="")

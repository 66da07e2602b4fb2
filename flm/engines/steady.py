"""What must be the same in every chunk of a stream, or come once in it, whatever the engine does.

One `id` and one `created` throughout: a server may stamp each chunk with the time it was written. And each choice's
`role` once: Ollama's own OpenAI layer (0.34 too) repeats it in each delta. A chunk that is in order costs two
comparisons and one search.

Knows the format, but no engine.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.wire.chat import LETTER_N, MALFORMED, first_byte

Raw = msgspec.Raw
UnsetType = msgspec.UnsetType

MAX_CHOICES: Final = 128  # of one stream whose roles are kept count of; the API's own bound of `n`

_encode = msgspec.json.Encoder().encode
_choices = msgspec.json.Decoder(list[dict[str, Raw]])
_fields = msgspec.json.Decoder(dict[str, Raw])
_EMPTY = (b'""', b"0", b"null")


class Constants:
    """The fields of a stream that never change: as they stand in the engine's first chunk that has them."""

    __slots__ = ("_created", "_id")

    def __init__(self) -> None:
        self._id: bytes | None = None
        self._created: bytes | None = None

    def differing(self, id: Raw | UnsetType, created: Raw | UnsetType) -> dict[str, Raw] | None:  # noqa: A002 - the fields' names
        """Those fields of a chunk that must be another; None if it is in order. What is not there stays away."""
        wrong = {}
        if not isinstance(id, UnsetType) and (here := bytes(id)) != self._id:
            if self._id is None:
                self._id = here if here not in _EMPTY else None
            else:
                wrong["id"] = Raw(self._id)
        if not isinstance(created, UnsetType) and (here := bytes(created)) != self._created:
            if self._created is None:
                self._created = here if here not in _EMPTY else None
            else:
                wrong["created"] = Raw(self._created)
        return wrong or None


class Roles:
    """Takes the role out of every delta but a choice's first."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: set[bytes] = set()

    def mended(self, data: bytes, choices: Raw) -> Raw | None:
        """`choices` of the chunk `data` with each role once; None if they are so already.

        A quote inside a JSON string has a backslash before it, so the bytes looked for are a key wherever they stand.
        """
        if b'"role"' not in data:
            return None
        try:
            found = _choices.decode(choices)
            repeated = [self._without_role(choice) for choice in found]
        except MALFORMED:
            return None  # it will be judged by those who read it
        return Raw(_encode(found)) if any(repeated) else None

    def _without_role(self, choice: dict[str, Raw]) -> bool:
        delta = choice.get("delta")
        if delta is None or first_byte(delta) == LETTER_N:
            return False
        said = _fields.decode(delta)
        index = bytes(choice.get("index", b"0"))
        if "role" not in said:
            return False
        if index not in self._begun:
            if len(self._begun) < MAX_CHOICES:
                self._begun.add(index)
            return False
        del said["role"]
        choice["delta"] = Raw(_encode(said))
        return True

"""Which models and engines a key may use, where not all of them: patterns and ids, and whether they match.

A pattern of models is text in which `*` stands for any characters, also none and also `/`; nothing else is special. It
is held against the model's id, `flm://{engine}/{model}`, and against its plain name, both as GET /v1/models lists them
and with capitals as they are written there. A name that leads to a model by another way (an alias, a name without its
tag) opens only what it leads to.

Does not know which models and engines there are, nor whose key it is.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.errors import ErrorKind, RequestError

ANYTHING: Final = "*"


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of `text` is as `pattern` says. In time proportional to their lengths' product at most."""
    first, *middle = pattern.split(ANYTHING)
    if not middle:
        return pattern == text
    last = middle.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:  # the leftmost place leaves most room for the others
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


class Restriction(msgspec.Struct, frozen=True):
    """What a key is restricted to. No `models`: all; no `engines`: all. If both are given, both must allow it."""

    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()

    def allows_engine(self, engine_id: str) -> bool:
        return not self.engines or engine_id in self.engines

    def allows_model(self, model_id: str, name: str) -> bool:
        """`model_id`: `flm://…` of a model on an engine that is allowed; `name`: the engine's own name for it."""
        return not self.models or any(matches(each, model_id) or matches(each, name) for each in self.models)


# For a key that is marked as restricted while nothing says to what. No engine's id and no model's is empty.
NOTHING: Final = Restriction(models=("",), engines=("",))


def denied(what: str, *, param: str | None = None) -> RequestError:
    """The refusal of a request for `what`."""
    message = f"this API key may not use {what}; `flm api-keys list` shows what it is restricted to"
    return RequestError(ErrorKind.PERMISSION_DENIED, message, param=param)

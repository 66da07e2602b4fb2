"""What a key may do: the names of scopes, and the bits that stand for them in the keyring.

`inference` is the four translated routes together, each of which also has a scope of its own. What a bit opens is said
by the route table; here they are only names. A name that this FLM does not know grants nothing.

Knows no key and no route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

MODELS: Final = 1 << 0
CHAT: Final = 1 << 1
COMPLETIONS: Final = 1 << 2
EMBEDDINGS: Final = 1 << 3
PASSTHROUGH: Final = 1 << 4
METRICS: Final = 1 << 5
TIMING: Final = 1 << 6
INFERENCE: Final = MODELS | CHAT | COMPLETIONS | EMBEDDINGS

# Not a scope: the snapshot has a restriction of this key, and whoever does not find one there lets nothing pass.
RESTRICTED: Final = 1 << 31

SCOPES: Final[Mapping[str, int]] = {
    "inference": INFERENCE,
    "models": MODELS,
    "chat": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "passthrough": PASSTHROUGH,
    "metrics": METRICS,
    "timing": TIMING,
}
DEFAULT_SCOPES: Final = ("inference", "passthrough")  # what a key may do unless told otherwise


def bits(names: Iterable[str]) -> int:
    """The bits of all scopes that are known among `names`."""
    found = 0
    for name in names:
        found |= SCOPES.get(name, 0)
    return found


def name_of(bit: int) -> str:
    """The name of one scope's bit, for an error."""
    return next(name for name, value in SCOPES.items() if value == bit)

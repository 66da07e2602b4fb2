"""What FLM keeps of what an engine says of itself: bounded where it enters, so that no engine is a burden to others.

Everything an engine says goes through here, whatever its kind: into shared memory, the database and every worker.
Knows no engine and asks none; the dialects may hand over anything that has the right types. What cannot be kept is
left out and said in plain words, without repeating it.

Strategy: a number out of range is not known; a text that is too long or not printable is left out, and with it what it
names; then models are kept in their order while they fit into MAX_LIST_BYTES together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from flm.snapshot import Model

MAX_NUMBER: Final = 1 << 53  # what every reader of JSON holds; from 2^64 a snapshot would not
MAX_NAME_CHARS: Final = 512  # of a model's names and capabilities
MAX_VERSION_CHARS: Final = 128
MAX_DETAIL_CHARS: Final = 1_000
MAX_NAMES: Final = 64  # further names of one model, and as many capabilities
MAX_LIST_BYTES: Final = 1 << 20  # one engine's models as they are published; all engines share the snapshot

_encoder = msgspec.msgpack.Encoder()


def bounded_models(models: Iterable[Model]) -> tuple[tuple[Model, ...], tuple[str, ...]]:
    """The models as they can be kept, in their order, and what was left out, in words for the log."""
    kept: list[Model] = []
    unnamed = beyond = names = size = 0
    for model in models:
        if not _is_name(model.name):
            unnamed += 1
            continue
        fitting = _bounded(model)
        names += len(model.capabilities) - len(fitting.capabilities) + len(model.other_names) - len(fitting.other_names)
        size += len(_encoder.encode(fitting))
        if size > MAX_LIST_BYTES:
            beyond += 1
        else:
            kept.append(fitting)
    said = (
        (unnamed, f"models left out whose name is longer than {MAX_NAME_CHARS} characters or not printable"),
        (
            names,
            f"capabilities and further names left out: more than {MAX_NAMES} of one model, too long or unprintable",
        ),
        (beyond, f"models left out: the list is longer than {MAX_LIST_BYTES} bytes"),
    )
    return tuple(kept), tuple(f"{count} {what}" for count, what in said if count)


def bounded_version(version: str | None) -> str | None:
    """A version; None for what cannot be one."""
    return version if version and len(version) <= MAX_VERSION_CHARS and version.isprintable() else None


def bounded_detail(detail: str | None) -> str | None:
    """A text for people, cut, with `?` for what cannot be printed."""
    if detail is None:
        return None
    return "".join(sign if sign.isprintable() else "?" for sign in detail[:MAX_DETAIL_CHARS])


def _bounded(model: Model) -> Model:
    return msgspec.structs.replace(
        model,
        context_length=_number(model.context_length),
        trained_context_length=_number(model.trained_context_length),
        created=_number(model.created) or 0,
        capabilities=_names(model.capabilities),
        other_names=_names(model.other_names),
    )


def _number(number: int | None) -> int | None:
    return number if number is not None and 0 <= number <= MAX_NUMBER else None


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names[:MAX_NAMES] if _is_name(name))


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()

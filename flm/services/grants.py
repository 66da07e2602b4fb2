"""What a person may ask of a new key: labels, scopes, patterns of models, ids of engines. Refused with USAGE.

A label is a note for people: it need not be unique, since a key's id is its name, and a key and its replacement share
one. Engines and models need not be known yet: a key may be made before its engine is added. Whoever makes it is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from flm.errors import CommandCode, CommandError
from flm.policy.restrictions import Restriction, matches
from flm.policy.routing import model_id
from flm.policy.scopes import DEFAULT_SCOPES, SCOPES
from flm.snapshot import Engine

LONGEST_LABEL: Final = 64  # a line of a list
MOST_PATTERNS: Final = 64  # each request of such a key may be held against all of them
LONGEST_PATTERN: Final = 512  # model names with their folders
LONGEST_ENGINE: Final = 128
_NEVER_IN_IDS: Final = frozenset("/*, ")
_SHOWN: Final = 80
_LISTED: Final = 12  # names that a warning lists
# A key, or so much of one that its secret has begun: a whole one is longer than a label.
_key: Final = re.compile(r"flm_[0-9A-Za-z]{12}_[0-9A-Za-z]{4}")


def refuse_key(text: str, what: str) -> None:
    """Raises USAGE if `what` holds a key: it would be kept, and shown."""
    if _key.search(text):
        raise _usage(f"{what} holds an API key, which would be shown in lists; choose another one, and revoke the key")


def checked_label(label: str) -> str:
    """1 to LONGEST_LABEL printable characters without blanks around them, and no key among them."""
    label = label.strip()
    refuse_key(label, "the label")
    if not 1 <= len(label) <= LONGEST_LABEL or not label.isprintable():
        raise _usage(f"a label has 1 to {LONGEST_LABEL} printable characters, not {label[:_SHOWN]!r}")
    return label


def checked_scopes(scopes: Sequence[str], models: Sequence[str]) -> tuple[str, ...]:
    """Known names, each once; the default ones if none are given. Pass-through cannot be restricted to models."""
    if not scopes:
        return tuple(scope for scope in DEFAULT_SCOPES if not (models and scope == "passthrough"))
    for scope in scopes:
        if scope not in SCOPES:
            raise _usage(f"there is no scope {scope[:_SHOWN]!r}; scopes are {', '.join(SCOPES)}")
    if models and "passthrough" in scopes:
        raise _usage(
            "a key that is restricted to models cannot have the scope passthrough: FLM does not read which model is "
            "asked there; restrict it to engines, or make two keys"
        )
    return tuple(dict.fromkeys(scopes))


def checked_models(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns as `flm.policy.restrictions` reads them."""
    return _checked(patterns, "a pattern of models", LONGEST_PATTERN)


def checked_engines(engines: Sequence[str]) -> tuple[str, ...]:
    """Ids of engines."""
    for engine in engines:
        if set(engine) & _NEVER_IN_IDS:
            raise _usage(
                f"{engine[:_SHOWN]!r} is no engine's id; `flm engines list` shows them; for several repeat the option"
            )
    return _checked(engines, "an engine's id", LONGEST_ENGINE)


def open_nothing(models: Sequence[str], engines: Sequence[str], known: Sequence[Engine]) -> tuple[str, ...]:
    """What to say of patterns of `models` and ids of `engines` that fit nothing of what is `known` now."""
    ids = [engine.id for engine in known]
    there = [(engine.id, model_id(engine.id, model.name), model.name) for engine in known for model in engine.models]
    told = [
        f"there is no engine {engine!r} now ({_named('engines', ids)}); the key can use nothing of it until there is; "
        "`flm engines list` shows the ids"
        for engine in engines
        if engine not in ids
    ]
    lonely = [
        pattern
        for pattern in models
        if not any(matches(pattern, full) or matches(pattern, name) for _, full, name in there)
    ]
    served = _named("models", [full for _, full, _ in there])
    told += [
        f"no model that is served now is like {pattern[:_SHOWN]!r} ({served}); the key can use none by it until there "
        "is; `flm models list` shows them"
        for pattern in lonely
    ]
    both = Restriction(tuple(models), tuple(engines))
    if (
        not told
        and there
        and not any(both.allows_engine(of) and both.allows_model(full, name) for of, full, name in there)
    ):
        told.append(
            f"no model that is served now is both like --model and of --engine ({served}), and both must allow it"
        )
    return tuple(told)


def _named(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"there are no {what}"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there are {', '.join(names[:_LISTED])}{more}"


def _checked(texts: Sequence[str], what: str, longest: int) -> tuple[str, ...]:
    for text in texts:
        refuse_key(text, what)
        if not 1 <= len(text) <= longest or not text.isprintable() or text != text.strip():
            raise _usage(
                f"{what} has 1 to {longest} printable characters, none of them a blank at an end, not {text[:_SHOWN]!r}"
            )
    if len(texts) > MOST_PATTERNS:
        raise _usage(f"a key takes {MOST_PATTERNS} restrictions of a kind at most, not {len(texts)}")
    return tuple(dict.fromkeys(texts))


def _usage(message: str) -> CommandError:
    return CommandError(CommandCode.USAGE, message)

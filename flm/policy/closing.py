"""Which routes of an engine the pass-through keeps closed, and how an operator opens one.

What a closed route would do (delete a model, run code) is said by each engine's dialect; the setting
`passthrough.open_routes` takes routes out of that list again. Both are compared with the path as the engine will read
it: decoded, without regard to case and to a slash at the end, HEAD as GET. A closed route counts at every depth,
because servers can be mounted below a prefix that they also strip themselves; an opened one only where it was written.

Does not know engines. Time and files do not matter: the same arguments give the same answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from flm.errors import ErrorKind, RequestError
from flm.policy.paths import decoded

_BELOW: Final = "/*"
_ANY: Final = "*"
_MAX_SUGGESTED: Final = 120  # characters of a path that are worth writing into a setting
_SETTING: Final = "passthrough.open_routes"


class ClosedRule(Protocol):
    """One closed route."""

    @property
    def path(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def why(self) -> str: ...


R = TypeVar("R", bound=ClosedRule)


class Opening(msgspec.Struct, frozen=True):
    """One entry of the setting: `engine` and `method` may be `*`, `path` may end in `/*`."""

    engine: str
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.engine}:{self.method} {self.path}"

    def covers(self, engine: str, method: str, path: str) -> bool:
        """`path` as `folded` gives it."""
        return self.engine in (_ANY, engine) and _same_method(self.method, method) and _matches(self.path, path)


def parse_openings(text: str) -> tuple[Opening, ...]:
    """The entries of the setting, `engine_id:METHOD /path` with commas between; config.py has checked its form."""
    entries = (entry.strip() for entry in text.split(","))
    return tuple(_opening(entry) for entry in entries if entry)


def _opening(entry: str) -> Opening:
    engine, _, route = entry.partition(":")
    method, _, path = route.strip().partition(" ")
    return Opening(engine.strip(), method, path.strip())


def check_open(rules: Iterable[ClosedRule], openings: Sequence[Opening], engine: str, method: str, path: str) -> None:
    """`path` is normalised, and follows the engine's base. Raises RequestError ROUTE_DISABLED for a closed route."""
    reading = folded(path)
    rule = closing_rule(rules, method, reading)
    if rule is None or any(opening.covers(engine, method, reading) for opening in openings):
        return
    shown = decoded(path)
    suggested = shown if _writable(shown) else rule.path
    whole = ", ".join(map(str, [*openings, Opening(engine, method.upper(), suggested)]))
    kept = " (what is open already, and this)" if openings else ""
    message = (
        f"{method.upper()} {suggested} of engine {engine!r} is closed, because it {rule.why}; to open it{kept}: "
        f"flm config set {_SETTING} '{whole}'"
    )
    raise RequestError(ErrorKind.ROUTE_DISABLED, message)


def _writable(path: str) -> bool:
    plain = path.isascii() and path.isprintable() and not set(" ,'`\"") & set(path)
    return plain and len(path) <= _MAX_SUGGESTED


def closing_rule(rules: Iterable[R], method: str, reading: str) -> R | None:
    """The rule that closes the route; `reading` as `folded` gives it."""
    for rule in rules:
        if _same_method(rule.method, method) and _anywhere(rule.path, reading):
            return rule
    return None


def folded(path: str) -> str:
    """A normalised path as the most forgiving server would compare it."""
    text = unicodedata.normalize("NFKC", decoded(path)).casefold()
    return "/" + text.strip("/")


def _same_method(wanted: str, method: str) -> bool:
    method = method.upper()
    return wanted in (_ANY, method) or (wanted == "GET" and method == "HEAD")


def _matches(pattern: str, path: str) -> bool:
    pattern = pattern.casefold()
    if pattern.endswith(_BELOW):
        base = pattern.removesuffix(_BELOW)
        return path == (base or "/") or path.startswith(base + "/")
    return path == "/" + pattern.strip("/")


def _anywhere(pattern: str, path: str) -> bool:
    at = 0
    while at >= 0:
        if _matches(pattern, path[at:]):
            return True
        at = path.find("/", at + 1)
    return False

"""Who is who: from addresses to check to the list of engines, under names that stay.

Pure: does not ask anybody (see `detect`), and keeps nothing: what was found before is an argument.

Strategy: registered engines come first, an address that has a name is not looked at under another one. Of what was
seen, in the order of the dialects, an address goes to the first kind that recognised it; one that was recognised before
is remembered for some more checks, unless nothing listens there any more and one of its kind has just appeared
elsewhere: then it has moved, and takes its name along; a kind that runs nowhere and is installed is listed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec

from flm.engines.base import Dialect, Verdict
from flm.upstream.health import INSTALLED, Observation, State, Thresholds, advance
from flm.wire.http1 import parse_address

RECOGNISED: Final = frozenset({Verdict.RECOGNISED, Verdict.BUSY})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_States = Mapping[tuple[str, str, str], State]


class Registered(msgspec.Struct, frozen=True):
    """An engine that somebody named; `credential` is FLM's bearer token for it, `ca` as in `snapshot.Engine`."""

    id: str
    kind: str
    url: str
    credential: str | None = None
    ca: str | None = None

    def __repr__(self) -> str:  # the default would print the credential
        return f"Registered(id={self.id!r}, kind={self.kind!r}, url={self.url!r})"


class Detected(msgspec.Struct, frozen=True):
    """One engine after a check. `source`: `detected` or `registered`."""

    id: str
    kind: str
    url: str
    source: str
    state: State


class Candidate(msgspec.Struct, frozen=True):
    """One address to check as one kind. `installed`: that kind's program is on the machine the address belongs to."""

    dialect: Dialect
    url: str
    installed: bool
    registered: Registered | None = None

    @property
    def place(self) -> str:
        return place_of(self.url)


def candidates_of(
    dialects: Sequence[Dialect],
    usual: Iterable[tuple[Dialect, str]],
    registered: Iterable[Registered],
    installed: frozenset[str],
) -> list[Candidate]:
    """Registered engines first: an address that has a name is not looked at under another one."""
    by_kind = {dialect.kind: dialect for dialect in dialects}
    candidates = []
    named = set()
    for engine in registered:
        named.add(place_of(engine.url))
        if engine.kind in by_kind:
            here = engine.kind in installed and place_of(engine.url).startswith("loopback:")
            candidates.append(Candidate(by_kind[engine.kind], engine.url, here, engine))
    for dialect, url in usual:
        if place_of(url) not in named:
            candidates.append(Candidate(dialect, url, dialect.kind in installed))
    return candidates


def place_of(url: str) -> str:
    """One name for one listening socket, whatever the loopback address is called. A bad URL is its own place."""
    try:
        address = parse_address(url)
    except ValueError:
        return url
    host = "loopback" if address.host in _LOOPBACK else address.host
    return f"{host}:{address.port}{address.base_path}"


def judge(
    seen: Sequence[tuple[Candidate, Observation]], previous: Sequence[Detected], thresholds: Thresholds, now: float
) -> list[Detected]:
    """From what was seen to what is believed."""
    before = {(engine.kind, place_of(engine.url), engine.source): engine.state for engine in previous}
    own = {(each.id, each.kind, each.url): each.state for each in previous if each.source == "registered"}
    found: list[Detected] = []
    claimed: set[str] = set()
    for candidate, observation in seen:
        engine = candidate.registered
        if engine is not None:
            # By its name: two may be registered at one place, such as one with TLS and one without.
            state = advance(own.get((engine.id, engine.kind, engine.url)), observation, thresholds, now)
            found.append(Detected(engine.id, engine.kind, engine.url, "registered", state))
        elif observation.verdict in RECOGNISED and candidate.place not in claimed:
            claimed.add(candidate.place)
            found.append(_detected(candidate, observation, before, thresholds, now))
    free = [(candidate, observation) for candidate, observation in seen if candidate.place not in claimed]
    moves: dict[str, str] = {}
    for kind, group in _by_kind(free):
        rest = [_detected(candidate, observation, before, thresholds, now) for candidate, observation in group.values()]
        ailing = [engine for engine in rest if _remembered(engine, before, thresholds)]
        gone = [engine for engine in ailing if not group[place_of(engine.url)][1].listening]
        moves |= {
            place_of(to.url): place_of(here.url) for here, to in zip(gone, _new(kind, found, before), strict=False)
        }
        ailing = [engine for engine in ailing if place_of(engine.url) not in moves.values()]
        found += ailing
        if not ailing and not any(engine.kind == kind and engine.source == "detected" for engine in found):
            found += [engine for engine in rest if engine.state.status == INSTALLED][:1]
    return _named(found, previous, moves)


def _new(kind: str, found: Iterable[Detected], before: _States) -> list[Detected]:
    """Those of this kind that were found where none of it was known."""
    return [
        engine
        for engine in found
        if engine.kind == kind and not engine.id and (kind, place_of(engine.url), "detected") not in before
    ]


def _by_kind(
    seen: Iterable[tuple[Candidate, Observation]],
) -> list[tuple[str, dict[str, tuple[Candidate, Observation]]]]:
    """Kind to place to the first check of that place."""
    groups: dict[str, dict[str, tuple[Candidate, Observation]]] = {}
    for candidate, observation in seen:
        if candidate.registered is None:
            groups.setdefault(candidate.dialect.kind, {}).setdefault(candidate.place, (candidate, observation))
    return list(groups.items())


def _detected(
    candidate: Candidate, observation: Observation, before: _States, thresholds: Thresholds, now: float
) -> Detected:
    """Not yet named."""
    kind = candidate.dialect.kind
    state = advance(before.get((kind, candidate.place, "detected")), observation, thresholds, now)
    return Detected("", kind, candidate.url, "detected", state)


def _remembered(engine: Detected, before: _States, thresholds: Thresholds) -> bool:
    """An engine that was recognised once and is not now: listed for some more checks, so that its failure is seen."""
    earlier = before.get((engine.kind, place_of(engine.url), "detected"))
    if earlier is None or INSTALLED in (earlier.status, engine.state.status):
        return False
    return engine.state.failures <= 2 * thresholds.failures


def _named(found: Iterable[Detected], previous: Iterable[Detected], moves: Mapping[str, str]) -> list[Detected]:
    """Detected engines are called by their kind, further ones `kind-2`, `kind-3` by port; a name once given stays,
    also with one that moved (`moves`: to which place, from where)."""
    earlier = {(engine.kind, place_of(engine.url)): engine.id for engine in previous if engine.source == "detected"}
    named = [engine for engine in found if engine.id]
    taken = {engine.id for engine in named}
    nameless = []
    for engine in sorted((engine for engine in found if not engine.id), key=_port_order):
        place = place_of(engine.url)
        name = earlier.get((engine.kind, moves.get(place, place)))
        if name is None or name in taken:
            nameless.append(engine)
        else:
            taken.add(name)
            named.append(msgspec.structs.replace(engine, id=name))
    for engine in nameless:
        name = next(name for name in _names(engine.kind) if name not in taken)
        taken.add(name)
        named.append(msgspec.structs.replace(engine, id=name))
    return sorted(named, key=lambda engine: engine.id)


def _port_order(engine: Detected) -> tuple[str, int, str]:
    try:
        return engine.kind, parse_address(engine.url).port, engine.url
    except ValueError:
        return engine.kind, 0, engine.url


def _names(kind: str) -> Iterator[str]:
    yield kind
    for number in count(2):
        yield f"{kind}-{number}"

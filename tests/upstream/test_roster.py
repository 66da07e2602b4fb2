"""Names that stay, as a pure function of what was seen: also with an engine that moves."""

from __future__ import annotations

import pytest

from flm.engines.base import DialectDefaults, Verdict
from flm.upstream.health import Observation, Thresholds
from flm.upstream.roster import Candidate, Detected, Registered, judge

A, B, C = "http://127.0.0.1:8080", "http://127.0.0.1:9931", "http://127.0.0.1:9999"
GOOD = Observation(Verdict.RECOGNISED, latency_ms=5)
REFUSED = Observation(Verdict.SILENT, detail="refused", listening=False)
SILENT = Observation(Verdict.SILENT, detail="late")
FOREIGN = Observation(Verdict.FOREIGN, detail="a web server", latency_ms=5)


class Kind(DialectDefaults):
    kind = "k"


class Other(DialectDefaults):
    kind = "o"


def look(previous: list[Detected], *kinds: DialectDefaults, **seen: Observation) -> list[Detected]:
    urls = {"a": A, "b": B, "c": C}
    checks = [
        (Candidate(kind, urls[name], False), observation)  # type: ignore[arg-type]
        for kind in kinds or (Kind(),)
        for name, observation in seen.items()
    ]
    return judge(checks, previous, Thresholds(), 1.0)


def names(found: list[Detected]) -> dict[str, str]:
    return {each.id: each.url for each in found}


def test_one_that_moves_keeps_its_name_and_is_listed_once() -> None:
    before = look([], a=GOOD, b=REFUSED)
    assert names(before) == {"k": A}
    after = look(before, a=REFUSED, b=GOOD)
    assert names(after) == {"k": B}
    assert names(look(after, a=REFUSED, b=REFUSED)) == {"k": B}, "now this is the place where it is remembered"


def test_one_that_moves_a_check_after_it_ended() -> None:
    ended = look(look([], a=GOOD, b=REFUSED), a=REFUSED, b=REFUSED)
    assert names(ended) == {"k": A}
    assert names(look(ended, a=REFUSED, b=GOOD)) == {"k": B}


def test_one_that_only_hangs_has_not_moved() -> None:
    before = look([], a=GOOD, b=REFUSED)
    for seen in (SILENT, FOREIGN):
        assert names(look(before, a=seen, b=GOOD)) == {"k": A, "k-2": B}


def test_a_second_one_takes_no_name() -> None:
    before = look([], a=GOOD, b=REFUSED, c=REFUSED)
    both = look(before, a=GOOD, b=GOOD, c=REFUSED)
    assert names(both) == {"k": A, "k-2": B}
    assert names(look(both, a=REFUSED, b=GOOD, c=REFUSED)) == {"k": A, "k-2": B}, "b was there before"
    assert names(look(both, a=REFUSED, b=GOOD, c=GOOD)) == {"k": C, "k-2": B}


def test_two_that_move_at_once() -> None:
    both = look([], a=GOOD, b=GOOD, c=REFUSED)
    assert names(look(both, a=REFUSED, b=REFUSED, c=GOOD)) == {"k": C, "k-2": B}


def test_another_kind_is_no_move() -> None:
    before = look([], Kind(), a=GOOD, b=REFUSED)
    found = judge(
        [
            (Candidate(Kind(), A, False), REFUSED),  # type: ignore[arg-type]
            (Candidate(Other(), B, False), GOOD),  # type: ignore[arg-type]
        ],
        before,
        Thresholds(),
        2.0,
    )
    assert names(found) == {"k": A, "o": B}


@pytest.mark.parametrize("last", ["plain", "secret"])
def test_two_that_are_registered_at_one_place_have_a_health_each(last: str) -> None:
    """Such as the same port with TLS and without, of which one alone can be right."""
    urls = {"plain": "http://127.0.0.1:9082", "secret": "https://localhost:9082"}
    seen = {"plain": GOOD, "secret": Observation(Verdict.SILENT, detail="no TLS there")}
    checks = [
        (Candidate(Kind(), urls[name], False, Registered(name, "k", urls[name])), seen[name])  # type: ignore[arg-type]
        for name in urls
    ]
    found: list[Detected] = []
    for _ in range(4):
        found = judge(checks, found, Thresholds(), 1.0)
        found.sort(key=lambda each: each.id == last)
    states = {each.id: each.state for each in found}
    assert (states["plain"].status, states["plain"].failures) == ("RunningHealthy", 0)
    assert (states["secret"].status, states["secret"].failures) == ("ErrorNetwork", 4)

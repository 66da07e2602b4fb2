"""The table of engine states, row by row. Nothing here waits: time, thresholds and what was seen are arguments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.base import Verdict
from flm.snapshot import SERVING, STATUSES
from flm.upstream.health import (
    DEGRADED,
    HEALTHY,
    INSTALLED,
    UNREACHABLE,
    WRONG,
    Observation,
    State,
    Thresholds,
    advance,
)

GOOD = Observation(Verdict.RECOGNISED, "1.0", latency_ms=20)
SLOW = Observation(Verdict.RECOGNISED, "1.0", latency_ms=1500)
BUSY = Observation(Verdict.BUSY, "1.0", "503: loading", 20)
SILENT = Observation(Verdict.SILENT, detail="timed out")
REFUSED = Observation(Verdict.SILENT, detail="refused", listening=False)
FOREIGN = Observation(Verdict.FOREIGN, detail="200, but not its JSON", latency_ms=5)
PRESENT_SILENT = Observation(Verdict.SILENT, detail="timed out", installed=True)
PRESENT_REFUSED = Observation(Verdict.SILENT, detail="refused", listening=False, installed=True)
PRESENT_FOREIGN = Observation(Verdict.FOREIGN, detail="a web server", latency_ms=5, installed=True)


def after(*seen: Observation, thresholds: Thresholds = Thresholds()) -> list[str]:  # noqa: B008 - frozen
    """The status after each check of a row, from nothing."""
    state: State | None = None
    statuses = []
    for moment, observation in enumerate(seen):
        state = advance(state, observation, thresholds, float(moment))
        statuses.append(state.status)
    return statuses


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (GOOD, HEALTHY),
        (SLOW, DEGRADED),
        (BUSY, DEGRADED),
        (FOREIGN, WRONG),
        (SILENT, UNREACHABLE),
        (REFUSED, UNREACHABLE),
        (PRESENT_SILENT, INSTALLED),
        (PRESENT_REFUSED, INSTALLED),
        (PRESENT_FOREIGN, INSTALLED),
    ],
)
def test_the_first_check(first: Observation, status: str) -> None:
    assert after(first) == [status]


@pytest.mark.parametrize(
    ("row", "statuses"),
    [
        # three failures in a row take a running engine away, two do not
        ([GOOD, SILENT, SILENT, SILENT], [HEALTHY, HEALTHY, HEALTHY, UNREACHABLE]),
        ([GOOD, SILENT, SILENT, GOOD, SILENT, SILENT], [HEALTHY] * 6),
        ([SLOW, REFUSED, REFUSED, REFUSED], [DEGRADED, DEGRADED, DEGRADED, UNREACHABLE]),
        # degraded becomes healthy after three good checks in a row
        ([SLOW, GOOD, GOOD, GOOD], [DEGRADED, DEGRADED, DEGRADED, HEALTHY]),
        ([SLOW, GOOD, GOOD, SLOW, GOOD, GOOD, GOOD], [DEGRADED] * 6 + [HEALTHY]),
        ([BUSY, GOOD, GOOD, SILENT, GOOD, GOOD, GOOD], [DEGRADED] * 6 + [HEALTHY]),
        ([GOOD, SLOW, GOOD], [HEALTHY, DEGRADED, DEGRADED]),
        # a wrong shape is seen at once, and so is its end
        ([GOOD, FOREIGN], [HEALTHY, WRONG]),
        ([GOOD, PRESENT_FOREIGN], [HEALTHY, WRONG]),
        ([FOREIGN, GOOD], [WRONG, HEALTHY]),
        ([FOREIGN, SLOW], [WRONG, DEGRADED]),
        ([FOREIGN, SILENT, SILENT], [WRONG, WRONG, UNREACHABLE]),
        # an error ends with one good check: a restarted engine serves at once
        ([SILENT, SILENT, SILENT, GOOD], [UNREACHABLE] * 3 + [HEALTHY]),
        # an error becomes InstalledOnly when the process is gone, and not while it only hangs
        ([GOOD] + [PRESENT_REFUSED] * 4, [HEALTHY] * 3 + [UNREACHABLE, INSTALLED]),
        ([GOOD] + [PRESENT_SILENT] * 5, [HEALTHY] * 3 + [UNREACHABLE] * 3),
        ([FOREIGN, PRESENT_REFUSED], [WRONG, INSTALLED]),
        ([FOREIGN, PRESENT_SILENT], [WRONG, WRONG]),
        # a program that is started, or removed
        ([PRESENT_REFUSED, PRESENT_REFUSED, GOOD], [INSTALLED, INSTALLED, HEALTHY]),
        ([PRESENT_REFUSED, PRESENT_FOREIGN, PRESENT_REFUSED], [INSTALLED] * 3),
        ([PRESENT_REFUSED, REFUSED], [INSTALLED, UNREACHABLE]),
    ],
)
def test_a_row_of_checks(row: list[Observation], statuses: list[str]) -> None:
    assert after(*row) == statuses


def test_thresholds_are_arguments() -> None:
    quick = Thresholds(failures=1, recoveries=1, degraded_latency_ms=10)
    assert after(GOOD, SILENT, thresholds=quick) == [DEGRADED, UNREACHABLE]
    fast = Observation(Verdict.RECOGNISED, latency_ms=9.9)
    assert after(SLOW, fast, thresholds=quick) == [DEGRADED, HEALTHY]


def test_a_state_says_when_and_why() -> None:
    healthy = advance(None, GOOD, Thresholds(), 7.0)
    assert healthy == State(HEALTHY, 7.0, "1.0", 20, None)
    assert healthy.serving
    ailing = advance(healthy, SILENT, Thresholds(), 8.0)
    assert (ailing.checked_at, ailing.version, ailing.last_error, ailing.failures) == (8.0, "1.0", "timed out", 1)
    slow = advance(healthy, SLOW, Thresholds(), 9.0)
    assert slow.last_error is not None
    assert "1500 ms" in slow.last_error
    assert advance(slow, BUSY, Thresholds(), 10.0).last_error == "503: loading"
    gone = advance(healthy, FOREIGN, Thresholds(), 11.0)
    assert (gone.last_error, gone.serving) == ("200, but not its JSON", False)


ANY = st.sampled_from([GOOD, SLOW, BUSY, SILENT, REFUSED, FOREIGN, PRESENT_SILENT, PRESENT_REFUSED, PRESENT_FOREIGN])


@given(st.lists(ANY, min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 5))
def test_whatever_happens_the_rules_hold(row: list[Observation], failures: int, recoveries: int) -> None:
    thresholds = Thresholds(failures=failures, recoveries=recoveries)
    statuses = after(*row, thresholds=thresholds)
    assert set(statuses) <= set(STATUSES)
    for index, (seen, status) in enumerate(zip(row, statuses, strict=True)):
        if seen.verdict in (Verdict.RECOGNISED, Verdict.BUSY):
            assert status in SERVING  # what answers serves
        if all(earlier.verdict is Verdict.SILENT for earlier in row[max(0, index + 1 - failures) : index + 1]):
            assert status not in SERVING or index + 1 < failures  # what is silent long enough does not
        if status == INSTALLED:
            assert seen.installed
        if status == HEALTHY and index and statuses[index - 1] == DEGRADED:
            assert all(earlier == GOOD for earlier in row[max(0, index + 1 - recoveries) : index + 1])

"""How often something may be done at a CA in a while: whatever clocks say, never more, and never barred for longer."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from flm.tls.allowance import DAMAGED_FILES, FAILED_REHEARSALS, FAILED_VALIDATIONS, Instant, Limit, rebased, wait

HOUR = 3600.0
T = 1_795_000_000.0
LIMIT = Limit(5, HOUR)

steps = st.lists(st.one_of(st.floats(0, 2 * HOUR), st.sampled_from([0.0, 1.0, 719.0, 720.0, HOUR])), max_size=60)
shifts = st.floats(-1e9, 1e9)
any_float = st.floats(allow_nan=True, allow_infinity=True)
instants = st.builds(Instant, any_float, st.sampled_from(["", "one", "two"]), any_float)


def at(seconds: float, shift: float = 0.0, boot: str = "one") -> Instant:
    """True time is `seconds`; the wall clock is `shift` beside it."""
    return Instant(T + seconds + shift, boot, seconds)


def test_the_limits_are_those_of_public_cas_and_less() -> None:
    assert Limit(5, HOUR) == FAILED_VALIDATIONS
    assert Limit(60, HOUR) == FAILED_REHEARSALS
    assert Limit(2, 7 * 24 * HOUR) == DAMAGED_FILES


def test_in_words() -> None:
    uses = [at(minutes * 60) for minutes in (0, 10, 20, 30, 40)]
    assert wait(uses[:4], LIMIT, at(41 * 60)) == 0
    assert wait(uses, LIMIT, at(41 * 60)) == 19 * 60
    assert wait(uses, LIMIT, at(60 * 60)) == 0
    assert wait([*uses, at(60 * 60)], LIMIT, at(60 * 60)) == 10 * 60


@given(gaps=steps, walls=st.lists(shifts, min_size=61, max_size=61))
def test_no_more_than_allowed_in_any_while_and_none_is_barred_for_longer(gaps: list[float], walls: list[float]) -> None:
    """Within one run of the machine, under a wall clock that is set before each look."""
    now, uses, used = 0.0, list[Instant](), list[float]()
    for gap, wall in zip(gaps, walls, strict=False):
        now += gap
        left = wait(uses, LIMIT, at(now, wall))
        assert 0 <= left <= HOUR
        if left == 0:
            uses = [*(rebased(use, at(now, wall)) for use in uses), at(now, wall)]
            used.append(now)
    for first, sixth in zip(used, used[LIMIT.most :], strict=False):
        assert sixth - first >= HOUR - 1e-3  # of seconds as large as these walls a float keeps a thousandth


def test_after_a_restart_of_the_machine_the_wall_clock_counts() -> None:
    uses = [at(0)] * 5
    later = Instant(T + 1200, "two", 30.0)
    assert wait(uses, LIMIT, later) == HOUR - 1200
    again = [rebased(use, later) for use in uses]
    assert wait(again, LIMIT, Instant(T + 1200 + 9e6, "two", 630.0)) == HOUR - 1800  # set ahead: the seconds count


def test_what_a_clock_puts_into_the_future_was_just_now() -> None:
    uses = [at(0, shift=9e6)] * 5
    later = Instant(T + 60, "two", 5.0)
    assert wait(uses, LIMIT, later) == HOUR
    settled = [rebased(use, later) for use in uses]
    assert settled == [later] * 5
    assert wait(settled, LIMIT, Instant(T + 660, "two", 605.0)) == HOUR - 600
    assert wait(settled, LIMIT, Instant(T + 660, "three", 1.0)) == HOUR - 600


def test_without_a_run_to_name_the_wall_clock_is_all_there_is() -> None:
    uses = [Instant(T)] * 5
    assert wait(uses, LIMIT, Instant(T + 600)) == HOUR - 600
    assert wait(uses, LIMIT, Instant(T - 600)) == HOUR


@given(uses=st.lists(instants, max_size=8), now=st.builds(Instant, st.floats(-1e10, 1e10), st.just("one")))
def test_whatever_stands_there_bars_for_no_longer(uses: list[Instant], now: Instant) -> None:
    left = wait(uses, LIMIT, now)
    assert 0 <= left <= HOUR
    assert math.isfinite(left)

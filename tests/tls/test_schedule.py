"""When certificates are renewed and failures repeated: for every lifetime, window, clock and number of failures."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm.tls.schedule import BACKOFF, LONGEST_BACKOFF_SECONDS, apart, backoff, due, lived_briefly, next_check
from flm.tls.words import KINDS

BORN = 1_795_000_000.0
DAY = 86_400.0
LIFETIMES = [300.0, 600.0, 6 * DAY, 90 * DAY, 398 * DAY]

floats = st.floats(allow_nan=True, allow_infinity=True)
chances = st.floats(0, 1)
births = st.floats(0, 4e9)
lifetimes = st.one_of(st.sampled_from(LIFETIMES), st.floats(1, 400 * DAY))


class TestDue:
    @pytest.mark.parametrize("lifetime", LIFETIMES)
    def test_a_third_is_left_or_a_little_more(self, lifetime: float) -> None:
        end = BORN + lifetime
        assert due(BORN, end, None, 0.0) == pytest.approx(end - lifetime / 3)
        assert due(BORN, end, None, 1.0) == pytest.approx(end - lifetime / 3 - 0.05 * lifetime)
        assert due(BORN, end, None, 0.5) == pytest.approx(end - lifetime / 3 - 0.025 * lifetime)

    def test_in_words(self) -> None:
        assert due(BORN, BORN + 90 * DAY, None, 0.0) == pytest.approx(BORN + 60 * DAY)
        assert due(BORN, BORN + 6 * DAY, None, 0.0) == pytest.approx(BORN + 4 * DAY)
        assert due(BORN, BORN + 300, None, 0.0) == pytest.approx(BORN + 200)

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    @pytest.mark.parametrize(("start", "end"), [(0.0, 0.1), (0.2, 0.3), (0.5, 0.5), (0.8, 0.89)])
    def test_within_the_ca_s_window_where_chance_says(self, lifetime: float, start: float, end: float) -> None:
        window = (BORN + start * lifetime, BORN + end * lifetime)
        assert due(BORN, BORN + lifetime, window, 0.0) == pytest.approx(window[0])
        assert due(BORN, BORN + lifetime, window, 1.0) == pytest.approx(window[1])
        assert window[0] <= due(BORN, BORN + lifetime, window, 0.3) <= window[1]

    @pytest.mark.parametrize("past", [(-7200.0, -3600.0), (-10.0, 0.0), (-3600.0, -3600.0), (-DAY - 1, -DAY)])
    def test_a_window_in_the_past_says_now(self, past: tuple[float, float]) -> None:
        """How Boulder asks for the certificates it is about to revoke, also for one that is a minute old."""
        assert due(BORN, BORN + 90 * DAY, (BORN + past[0], BORN + past[1]), 0.7) == BORN

    @pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize(
        "window",
        [
            (BORN + 2 * DAY, BORN + DAY),  # ends before it starts
            (BORN + 91 * DAY, BORN + 92 * DAY),  # when the certificate is no longer valid
            (BORN + DAY, BORN + 90 * DAY + 1),  # until then
            (BORN + 3650 * DAY, BORN + 3651 * DAY),
            (0.0, 1.0),  # 1970: renewed at once, the next one would be too, without end
            (-1e18, 1e18),
            (BORN - 3 * DAY, BORN - 2 * DAY),
            (math.nan, BORN + DAY),
            (BORN + DAY, math.nan),
            (math.nan, math.nan),
            (-math.inf, BORN + DAY),
            (BORN, math.inf),
            (math.inf, math.inf),
        ],
    )
    def test_an_absurd_window_is_none(self, window: tuple[float, float], chance: float) -> None:
        assert due(BORN, BORN + 90 * DAY, window, chance) == due(BORN, BORN + 90 * DAY, None, chance)

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    def test_the_last_tenth_is_for_emergencies_whatever_the_ca_says(self, lifetime: float) -> None:
        window = (BORN + 0.95 * lifetime, BORN + 0.99 * lifetime)
        assert due(BORN, BORN + lifetime, window, 0.5) == pytest.approx(BORN + 0.9 * lifetime)

    @pytest.mark.parametrize(
        ("begin", "end"),
        [(math.nan, 1.0), (1.0, math.nan), (1.0, math.inf), (-math.inf, 1.0), (math.inf, math.inf)],
    )
    def test_dates_that_cannot_be(self, begin: float, end: float) -> None:
        with pytest.raises(ValueError, match="valid from a moment to another"):
            due(begin, end, None, 0.5)

    @pytest.mark.parametrize("window", [None, (BORN, BORN + 1)])
    @pytest.mark.parametrize("length", [0.0, -1.0, -90 * DAY])
    def test_one_that_was_never_valid_is_due_since_ever(
        self, length: float, window: tuple[float, float] | None
    ) -> None:
        assert due(BORN, BORN + length, window, 0.5) == BORN + length

    @given(births, lifetimes, st.none() | st.tuples(floats, floats), floats)
    @example(BORN, 300.0, (0.0, 0.0), 0.0)
    @example(BORN, 300.0, None, math.nan)
    @example(BORN, 300.0, (BORN, BORN + 299), math.inf)
    def test_never_before_the_certificate_nor_in_its_last_tenth(
        self, begin: float, lifetime: float, window: tuple[float, float] | None, chance: float
    ) -> None:
        moment = due(begin, begin + lifetime, window, chance)
        assert begin <= moment <= begin + 0.9 * lifetime + 1e-6 * (begin + lifetime)

    @given(births, lifetimes, st.floats(-0.2, 1.2), st.floats(-0.2, 1.2), chances)
    def test_a_window_that_makes_sense_is_kept_to(
        self, begin: float, lifetime: float, first: float, second: float, chance: float
    ) -> None:
        start, end = begin + min(first, second) * lifetime, begin + max(first, second) * lifetime
        moment = due(begin, begin + lifetime, (start, end), chance)
        if end > begin + lifetime or end < begin - DAY:
            assert moment == due(begin, begin + lifetime, None, chance)
        else:
            assert min(start, begin + 0.89 * lifetime) <= moment <= max(end, begin)

    @given(births, lifetimes, chances, chances)
    def test_more_chance_is_earlier_without_a_window_and_later_in_one(
        self, begin: float, lifetime: float, one: float, other: float
    ) -> None:
        less, more = sorted((one, other))
        end, window = begin + lifetime, (begin + 0.1 * lifetime, begin + 0.2 * lifetime)
        assert due(begin, end, None, less) >= due(begin, end, None, more)
        assert due(begin, end, window, less) <= due(begin, end, window, more)


class TestApart:
    """A CA, or a clock, by which each new certificate is due at once."""

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    def test_one_that_lived_briefly(self, lifetime: float) -> None:
        end = BORN + lifetime
        assert lived_briefly(BORN, BORN, end)
        assert lived_briefly(BORN - 0.049 * lifetime, BORN, end)
        assert not lived_briefly(BORN - 0.051 * lifetime, BORN, end)
        assert not lived_briefly(BORN - lifetime / 2, BORN, end)  # as is usual

    @pytest.mark.parametrize(
        ("lifetime", "waits"),
        [
            (90 * DAY, [0, 60, 240, 960, 3840, 15_360, 21_600, 21_600]),
            (6 * DAY, [0, 60, 240, 960, 3840, 15_360, 21_600, 21_600]),
            (3600.0, [0, 60, 180, 180]),
            (300.0, [0, 15, 15]),
            (-300.0, [0, 0]),
        ],
    )
    def test_the_next_ones_are_put_apart(self, lifetime: float, waits: list[float]) -> None:
        assert [apart(brief, BORN, BORN + lifetime) for brief in range(len(waits))] == waits

    @given(st.integers(), births, lifetimes)
    @example(10**400, BORN, 90 * DAY)
    def test_never_so_far_that_one_would_end(self, brief: int, begin: float, lifetime: float) -> None:
        assert 0 <= apart(brief, begin, begin + lifetime) <= 0.05 * lifetime + 1e-6 * (begin + lifetime)

    def test_a_ca_that_always_says_now_is_asked_a_few_times_a_day(self) -> None:
        moment, brief, asked = 0.0, 0, 0
        while moment < DAY:
            brief, asked = brief + 1, asked + 1
            moment += apart(brief, 0.0, 90 * DAY)
        assert asked <= 10


class TestNextCheck:
    @pytest.mark.parametrize(
        ("until", "seconds"),
        [(0, 5), (-1, 5), (-1e12, 5), (4.9, 5), (5.5, 5.5), (599, 599), (600, 600), (601, 600), (1e12, 600)],
    )  # fmt: skip
    def test_the_time_until_then_between_five_seconds_and_ten_minutes(self, until: float, seconds: float) -> None:
        assert next_check(BORN, BORN + until) == seconds

    @given(floats, floats)
    @example(math.inf, math.inf)
    @example(math.nan, 0.0)
    def test_within_bounds_whatever_the_clock_says(self, now: float, then: float) -> None:
        assert 5 <= next_check(now, then) <= 600

    @pytest.mark.parametrize("lifetime", LIFETIMES)
    @pytest.mark.parametrize("jump", [0.0, 3600.0, -3600.0, 40 * DAY, -40 * DAY, -BORN])
    def test_looks_come_to_the_moment_whenever_the_clock_is_set(self, lifetime: float, jump: float) -> None:
        """A clock that jumps once, is put right an hour of looks later, and is believed at each look."""
        moment = due(BORN, BORN + lifetime, None, 0.5)
        now, passed, looks = BORN, 0.0, 0
        while now < moment or looks == 0:
            wrong = jump if 3600 <= passed < 7200 else 0.0
            if passed and now + wrong >= moment:
                break  # renewed early by the wrong clock: that does no harm
            wait = next_check(now + wrong, moment)
            now, passed, looks = now + wait, passed + wait, looks + 1
        assert now <= moment + 600
        assert looks <= lifetime / 5


class TestBackoff:
    @pytest.mark.parametrize(
        ("kind", "waits"),
        [
            ("network", [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]),
            ("server", [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]),
            ("deadline", [30, 60, 120]),
            ("tls", [60, 120, 240]),
            ("local", [60, 120, 240]),
            ("validation", [900, 1800, 3600, 3600]),
            ("rejected", [900, 1800, 3600, 7200, 14_400, 21_600, 21_600]),
            ("rate_limited", [900, 1800, 3600, 7200, 14_400, 21_600, 21_600]),
            ("unheard of", [60, 120, 240]),
        ],
    )
    def test_each_failure_doubles_the_wait_up_to_a_bound(self, kind: str, waits: list[float]) -> None:
        assert [backoff(number, kind, 0.0, 0.0) for number in range(1, len(waits) + 1)] == waits
        assert [backoff(number, kind, 0.0, 1.0) for number in range(1, len(waits) + 1)] == [1.25 * w for w in waits]

    def test_every_kind_has_its_own(self) -> None:
        assert set(BACKOFF) == set(KINDS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_ca_s_wait_is_kept(self, kind: str) -> None:
        assert backoff(1, kind, 34 * 3600.0, 0.5) == 34 * 3600.0
        assert backoff(9, kind, 7 * DAY, 1.0) == 7 * DAY
        assert backoff(1, kind, 0.5, 0.0) == BACKOFF[kind][0]

    @pytest.mark.parametrize("absurd", [9 * DAY, 1e300, math.inf])
    def test_but_not_for_ever(self, absurd: float) -> None:
        assert backoff(1, "rate_limited", absurd, 0.5) == LONGEST_BACKOFF_SECONDS == 8 * DAY

    @given(st.integers(), st.sampled_from([*KINDS, ""]), floats, floats)
    @example(10**400, "network", math.nan, math.nan)
    @example(-(10**400), "network", -math.inf, 2.0)
    def test_within_bounds_whatever_is_asked(self, failures: int, kind: str, retry_after: float, chance: float) -> None:
        wait = backoff(failures, kind, retry_after, chance)
        assert BACKOFF.get(kind, (60.0, 0.0))[0] <= wait <= LONGEST_BACKOFF_SECONDS
        if retry_after <= LONGEST_BACKOFF_SECONDS:
            assert wait >= retry_after

    @given(st.integers(1, 40), st.sampled_from(KINDS), chances, st.floats(0, 9 * DAY))
    def test_no_failure_shortens_the_wait(self, failures: int, kind: str, chance: float, retry_after: float) -> None:
        assert backoff(failures + 1, kind, retry_after, chance) >= backoff(failures, kind, retry_after, chance)

    @given(st.lists(chances, min_size=40, max_size=40))
    def test_five_failed_validations_an_hour_at_most(self, luck: list[float]) -> None:
        """Two at a start, two seconds apart, and then as the wait allows."""
        moments = [0.0, 2.0]
        for failures, chance in enumerate(luck, 2):
            moments.append(moments[-1] + backoff(failures, "validation", 0.0, chance))
        for begin in moments:
            assert sum(begin <= moment < begin + 3600 for moment in moments) <= 5

    def test_a_five_minute_certificate_has_several_tries_before_it_ends(self) -> None:
        left = 300 / 3
        waits = [backoff(failures, "network", 0.0, 1.0) for failures in range(1, 4)]
        assert sum(waits[:2]) < left

"""Durations and moments as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import CommandCode, CommandError
from flm.services import lifetimes

NOW = 1_800_000_000.5  # 2027-01-15T08:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400), (" 1s ", 1), ("007d", 604_800)],
)
def test_durations(text: str, seconds: int) -> None:
    assert lifetimes.seconds(text, "x") == seconds
    assert lifetimes.moment(text, "x", NOW) == int(NOW) + seconds


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-15T08:00:01Z", 1_800_000_001),
        ("2027-01-15t08:00:01z", 1_800_000_001),
        ("2027-01-15 08:00:01Z", 1_800_000_001),
        ("2027-01-15T09:00:01.999+01:00", 1_800_000_001),
        ("2027-01-15T07:30:01-00:30", 1_800_000_001),
        ("2030-01-31T12:00:00Z", 1_896_091_200),
        ("9999-12-30T00:00:00Z", 253_402_128_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ],
)
def test_moments(text: str, moment: int) -> None:
    assert lifetimes.moment(text, "x", NOW) == moment


@pytest.mark.parametrize(
    "text",
    [
        "", "0s", "-1d", "+1d", "1", "d", "1y", "1.5h", "1h30m", "1 d", "1D", "٣d", "9999999999s", "999999999w",
        "never", "2027-01-15T08:00:00Z", "2020-01-01T00:00:00Z", "2030-01-31", "2030-01-31T12:00:00",
        "2030-01-31T12:00Z",
        "2030-02-30T12:00:00Z", "2030-01-31T25:00:00Z", "2030-01-31T12:00:60Z", "2030-01-31T12:00:00+99:00",
        "20300131T120000Z", "9999-12-31T23:59:60Z", "999999999d", "x" * 10_000,
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(CommandError) as refused:
        lifetimes.moment(text, "the expiry", NOW)
    assert refused.value.code is CommandCode.USAGE
    assert refused.value.message.startswith("the expiry must be ")
    assert len(refused.value.message) < 300


@given(st.text(max_size=30))
def test_any_text_is_a_moment_to_come_or_an_error(text: str) -> None:
    with contextlib.suppress(CommandError):
        assert lifetimes.moment(text, "x", NOW) > NOW

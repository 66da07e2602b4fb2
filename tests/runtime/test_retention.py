"""A clock that jumps ahead deletes nothing for a day; one that goes on, or back, is believed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flm.runtime import audit as trails
from flm.runtime.retention import DOUBT_SECONDS, BelievedTime
from tests.runtime.harness import run
from tests.runtime.test_audit import Bench, names

NOW = 1_800_000_000.0
DAY = 86_400.0
HOUR = 3600.0


def believing(monotonic: float = 1000.0) -> BelievedTime:
    believed = BelievedTime()
    assert believed.at(NOW, monotonic) == NOW
    return believed


def test_a_clock_that_goes_on_is_believed() -> None:
    believed = believing()
    for hours in range(1, 2000):
        assert believed.at(NOW + hours * HOUR, 1000 + hours * HOUR) == NOW + hours * HOUR


@pytest.mark.parametrize("step", [1.0, HOUR, DAY, -1.0, -DAY, -NOW])
def test_a_step_back_or_of_no_more_than_a_day_is_believed_at_once(step: float) -> None:
    assert believing().at(NOW + 60 + step, 1060) == NOW + 60 + step


@pytest.mark.parametrize("step", [DAY + 1, 40 * DAY, 4_294_967_296 - NOW])
def test_a_longer_one_is_believed_after_a_day(step: float) -> None:
    believed = believing()
    for hours in range(1, 25):
        assert believed.at(NOW + hours * HOUR + step, 1000 + hours * HOUR) == NOW + hours * HOUR
    assert believed.at(NOW + 25 * HOUR + step, 1000 + 25 * HOUR) == NOW + 25 * HOUR + step


def test_a_jump_that_is_taken_back_leaves_no_doubt_behind() -> None:
    believed = believing()
    assert believed.at(NOW + 40 * DAY, 1010) == NOW + 10
    assert believed.at(NOW + 20, 1020) == NOW + 20
    late = 1020 + DOUBT_SECONDS
    assert believed.at(NOW + late + 40 * DAY, late) == NOW + late - 1000


def test_of_several_jumps_the_least_is_believed_first() -> None:
    """A machine that sleeps each night is awake for a day only after some: time goes on all the same."""
    believed = believing()
    believed.at(NOW + 3 * DAY, 1001)
    believed.at(NOW + 2 * DAY, 1002)
    end = 1001 + DOUBT_SECONDS
    assert believed.at(NOW + 50 * DAY + end, end) == pytest.approx(NOW + 2 * DAY + end - 1002)


def test_a_jump_of_the_clock_deletes_no_row_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is believed: then the old ones go, and what was written ahead of its time stays."""
    wall, monotonic = [time.time()], [1e6]
    clocks = SimpleNamespace(time=lambda: wall[0], monotonic=lambda: monotonic[0])
    monkeypatch.setattr(trails, "time", clocks)
    monkeypatch.setattr("flm.proxy.audit.time", clocks)

    def passes(seconds: float, jump: float = 0) -> None:
        wall[0] += seconds + jump
        monotonic[0] += seconds

    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        bench.write(times=2)
        await trail.drain()
        passes(61, jump=60 * DAY)
        bench.write()
        await trail.drain()
        assert await bench.stored() == names(0, 1, 2)
        passes(61, jump=-60 * DAY)
        await trail.drain()
        passes(61, jump=60 * DAY)
        await trail.drain()
        assert await bench.stored() == names(0, 1, 2)
        passes(DOUBT_SECONDS)
        await trail.end()
        assert await bench.stored() == names(2)

    run(main)

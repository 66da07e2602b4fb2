"""What a folder has used of what CAs allow: kept over restarts, taken back where it was none, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flm.errors import CommandError
from flm.runtime.allowance import Allowance, CountedLooks, instant
from flm.store import allowances
from flm.store.database import open_security
from flm.store.folder import Folder, locate
from flm.tls.allowance import Instant, Limit
from flm.tls.refusal import Refused

LIMIT = Limit(5, 3600.0)
CA = "https://ca.example/dir"
NAME = "llm.example.com"


class Clocks:
    """`passed` is true; the wall clock is `off`, and the machine's run is `boot`, begun at `began`."""

    def __init__(self) -> None:
        self.passed, self.off, self.boot, self.began = 0.0, 0.0, "one", 0.0

    def __call__(self) -> Instant:
        return Instant(1.8e9 + self.passed + self.off, self.boot, self.passed - self.began)

    def restart(self) -> None:
        self.boot, self.began = self.boot + "+", self.passed


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return locate({"FLM_HOME": str(tmp_path)})


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def allowance(folder: Folder, clocks: Clocks) -> Callable[[], Allowance]:
    """As after each restart of FLM."""
    return lambda: Allowance(folder, "validation", LIMIT, clocks)


Make = Callable[[], Allowance]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def written(folder: Folder) -> list[allowances.Use]:
    async with await open_security(folder) as database:
        return await allowances.read_all(database, "validation")


def test_five_are_all_there_are_whatever_is_restarted(allowance: Make, clocks: Clocks) -> None:
    async def main() -> None:
        for _ in range(5):
            assert await allowance().wait(CA, [NAME]) == (0.0, NAME)
            assert await allowance().note(CA, NAME) == 0.0
            clocks.passed += 60
        for _ in range(20):
            assert await allowance().note(CA, NAME) == 3300.0
        assert await allowance().wait(CA, ["other.example", NAME]) == (3300.0, NAME)
        clocks.passed += 3300
        assert await allowance().note(CA, NAME) == 0.0
        assert await allowance().note(CA, NAME) == 60.0

    run(main())


def test_each_name_and_each_directory_has_its_own(allowance: Make) -> None:
    async def main() -> None:
        for _ in range(5):
            await allowance().note(CA, NAME.upper())
        assert await allowance().note(CA, NAME) > 0
        assert await allowance().note(CA, "other.example") == 0
        assert await allowance().note("https://ca.example/staging", NAME) == 0

    run(main())


@pytest.mark.parametrize("off", [-9e6, 9e6])
def test_a_clock_that_is_set_neither_opens_it_nor_keeps_it_shut(allowance: Make, clocks: Clocks, off: float) -> None:
    async def main() -> None:
        for _ in range(5):
            await allowance().note(CA, NAME)
        clocks.passed, clocks.off = 60, off
        assert (await allowance().wait(CA, [NAME]))[0] == pytest.approx(3540)
        clocks.restart()  # and the clock stays as it is
        assert (await allowance().wait(CA, [NAME]))[0] == pytest.approx(3540)
        clocks.passed += 3541
        assert (await allowance().wait(CA, [NAME]))[0] == 0

    run(main())


def test_a_clock_that_was_ahead_until_a_restart_bars_for_an_hour_from_then(allowance: Make, clocks: Clocks) -> None:
    async def main() -> None:
        clocks.off = 9e6
        for _ in range(5):
            await allowance().note(CA, NAME)
        clocks.off = 0.0
        for minutes in range(60):
            clocks.restart()
            assert (await allowance().wait(CA, [NAME]))[0] == pytest.approx(3600 - 60 * minutes)
            clocks.passed += 60
        assert (await allowance().wait(CA, [NAME]))[0] == 0

    run(main())


def test_what_went_well_is_none_and_what_failed_late_counts_from_then(allowance: Make, clocks: Clocks) -> None:
    async def main() -> None:
        for _ in range(20):
            looks = CountedLooks(allowance(), CA)
            await looks.look(NAME)
            await looks.spared(NAME)
            await looks.settle()
        for _ in range(5):
            looks = CountedLooks(allowance(), CA)
            await looks.look(NAME)
            clocks.passed += 30
            await looks.settle()
        with pytest.raises(Refused, match="have failed within an hour") as refused:
            await CountedLooks(allowance(), CA).look(NAME)
        assert (refused.value.kind, refused.value.retry_after) == ("rate_limited", 3600.0 - 120)

    run(main())


def test_a_use_whose_end_nobody_saw_counts(allowance: Make) -> None:
    async def main() -> None:
        for _ in range(5):
            await CountedLooks(allowance(), CA).look(NAME)  # and then it is killed
        with pytest.raises(Refused):
            await CountedLooks(allowance(), CA).look(NAME)

    run(main())


def test_what_is_kept_is_bounded(allowance: Make, clocks: Clocks, folder: Folder) -> None:
    async def main() -> None:
        for number in range(30):
            await allowance().note(CA, f"{number}.example" + "x" * 1000)
            clocks.passed += 600
        kept = await written(folder)
        assert len(kept) == 6
        assert max(len(use.name) for use in kept) == 253

    run(main())


def test_what_cannot_be_noted_is_no_use(allowance: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        (folder.root / "security.db").mkdir(parents=True)
        assert await allowance().wait(CA, [NAME]) == (0.0, NAME)
        with pytest.raises(CommandError):
            await CountedLooks(allowance(), CA).look(NAME)

    run(main())


def test_the_clocks_of_this_machine_go_forward() -> None:
    first, second = instant(), instant()
    assert first.boot == second.boot
    assert first.up <= second.up

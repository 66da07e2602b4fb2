"""When keys were last used: written in batches, never in the way of a change, never lost to a moment's trouble."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime import lastuse
from flm.runtime.lastuse import LastUses
from flm.services.security import SecurityService
from flm.store.database import open_security
from flm.store.folder import Folder, locate
from tests.runtime.harness import run


class Clock:
    now = 1_800_000_000.7

    def __call__(self) -> float:
        return self.now


async def shown(folder: Folder) -> list[str | None]:
    return [key.last_used_at for key in await SecurityService(folder).list_keys()]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return locate({"FLM_HOME": str(tmp_path / "home")})


def test_the_latest_use_is_written_and_is_no_change(folder: Folder) -> None:
    async def main() -> None:
        clock = Clock()
        keys = [await SecurityService(folder).create_key(label) for label in "abc"]
        uses = LastUses(folder, clock)
        async with await open_security(folder) as database:
            before = await database.generation()
            uses.note([keys[0].id, keys[1].id, "nobody"])
            clock.now += 10
            uses.note([keys[1].id])
            assert await shown(folder) == [None, None, None]
            await uses.write()
            assert await shown(folder) == ["2027-01-15T08:00:00Z", "2027-01-15T08:00:10Z", None]
            clock.now -= 100  # a step of the wall clock does not take a use back
            uses.note([keys[0].id])
            await uses.write()
            assert (await shown(folder))[0] == "2027-01-15T08:00:00Z"
            assert await database.generation() == before

    run(main)


def test_a_use_noted_while_the_clock_was_far_ahead_hides_no_later_one(folder: Folder) -> None:
    async def main() -> None:
        clock = Clock()
        key = await SecurityService(folder).create_key("a")
        uses = LastUses(folder, clock)
        for step in (60 * 86_400, -60 * 86_400):
            clock.now += step
            uses.note([key.id])
            await uses.write()
        assert await shown(folder) == ["2027-01-15T08:00:00Z"]

    run(main)


def test_nothing_to_write_opens_nothing(folder: Folder) -> None:
    run(LastUses(folder).write)
    assert not folder.root.exists()


def test_a_folder_that_was_taken_away_is_not_made_anew(folder: Folder) -> None:
    uses = LastUses(folder, Clock())
    uses.note(["x"])
    run(uses.write)
    assert not folder.root.exists()


def test_what_could_not_be_written_is_written_later_and_complained_of_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        clock = Clock()
        first, second = [await SecurityService(folder).create_key(label) for label in "ab"]
        uses = LastUses(folder, clock)
        uses.note([first.id])

        async def locked(_folder: Folder) -> None:
            uses.note([second.id])  # meanwhile
            raise CommandError(CommandCode.DB_ERROR, "the database is locked")

        with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
            broken.setattr(lastuse, "open_security", locked)
            await uses.write()
            clock.now += 5
            uses.note([first.id])
            await uses.write()
        assert caplog.text.count("is locked") == 1
        await uses.write()
        assert await shown(folder) == ["2027-01-15T08:00:05Z", "2027-01-15T08:00:05Z"]

    run(main)


def test_a_database_that_another_program_holds_does_not_hold_up_an_end(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        key = await SecurityService(folder).create_key("a")
        uses = LastUses(folder, Clock())
        uses.note([key.id])
        monkeypatch.setattr(lastuse, "LAST_SECONDS", 0.2)
        holder = sqlite3.connect(folder.security, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING):
            async with asyncio.timeout(9):  # SQLite itself would wait for ten
                ending = asyncio.create_task(uses.write_last())
                await asyncio.sleep(0.3)
                holder.execute("ROLLBACK")
                holder.close()
                await ending
        assert "could not be written in time" in caplog.text
        await uses.write()
        assert await shown(folder) == ["2027-01-15T08:00:00Z"]

    run(main)


def test_it_writes_on_by_itself(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        key = await SecurityService(folder).create_key("a")
        uses = LastUses(folder, Clock())
        monkeypatch.setattr(lastuse, "WRITE_SECONDS", 0.01)
        writing = asyncio.create_task(uses.write_on())
        uses.note([key.id])
        async with asyncio.timeout(20):
            while (await shown(folder))[0] is None:
                await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    run(main)

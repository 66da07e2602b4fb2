"""From the rings to `audit.db`: the supervisor stores the rows that its workers wrote, and deletes old ones.

Strategy: rows leave their ring only when they are stored, so a supervisor killed at any moment loses none; what it
stored twice takes one place. Rings of workers that died, and of a proxy that was killed, are emptied like all others. A
database that is damaged, or was taken away, is replaced by a new one. SQLite does not notice when somebody empties the
file it has open, writes something else into it, or removes its write-ahead log, and goes on storing rows where nobody
finds them: so both are looked at before each turn, and again before rows leave their ring. A database that cannot be
written just now (a full disk, a lock) is tried again at each turn, while the rings fill up and then count what they
drop. Nothing here ever keeps a request waiting, nor a stop for longer than LAST_SECONDS.

Knows rows and their database; knows no worker but by the cells in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from flm._native import NativeError, Rings
from flm.config import Settings
from flm.errors import CommandCode, CommandError
from flm.proxy.audit import decode
from flm.runtime.handle import AuditLine
from flm.runtime.loglines import timestamp
from flm.runtime.retention import BelievedTime
from flm.store import audit as table
from flm.store import audit_file
from flm.store.database import Database
from flm.store.folder import Folder

TURN_SECONDS: Final = 0.25  # a worker's ring holds seconds of rows
BATCH: Final = 4096  # rows in one transaction: some ten milliseconds
RETENTION_SECONDS: Final = 60.0  # between two looks for rows that are too old
LAST_SECONDS: Final = 5.0  # for the last rows at a stop; what is not stored by then is stored by the next start
_DAY_MS: Final = 86_400_000
_MAGIC: Final = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html#the_database_header

_Identity = tuple[int, int]  # of a file: its device and its number there

log = logging.getLogger("flm.supervisor")


class _LostError(CommandError):
    """Rows would be stored where nobody finds them."""


class AuditTrail:
    """The one writer of the audit log. `settings`: those in force; None while they are not known: then nothing is
    deleted. `cells`: of the workers that live."""

    def __init__(
        self, folder: Folder, rings: Rings, settings: Callable[[], Settings | None], cells: Callable[[], Iterable[int]]
    ) -> None:
        self._folder = folder
        self._rings = rings
        self._settings = settings
        self._cells = cells
        self._database: Database | None = None
        self._file: int | None = None  # open as long as the database: closing it would drop SQLite's locks on the file
        self._identity: _Identity | None = None
        self._log_identity: _Identity | None = None
        self._turn = asyncio.Lock()
        self._looked = -RETENTION_SECONDS
        self._believed = BelievedTime()
        self._since: int | None = None
        self._last_error: str | None = None
        self._dropped = rings.dropped()

    def line(self) -> AuditLine:
        """What `flm proxy status` says of the audit log."""
        since = timestamp(self._since / 1000) if self._since is not None else None
        return AuditLine(since, self._rings.dropped(), self._last_error)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            for cell in self._cells():
                with contextlib.suppress(NativeError):  # a full disk: the rows are counted meanwhile
                    self._rings.prepare(cell)
            await self.drain()
            await asyncio.sleep(TURN_SECONDS)

    async def drain(self) -> None:
        """Store every row that is in a ring now, and delete what has to go. Errors are remembered, not raised."""
        async with self._turn:
            try:
                database = await self._open()
                stored = sum([await self._empty(database, slot) for slot in self._rings.waiting()])
                settings = self._settings()
                if settings is not None:
                    await self._retain(database, settings, grown=stored > 0)
            except CommandError as error:
                await self._trouble(error)
            except Exception:  # a fault of FLM's own must not end the writing
                log.exception("writing the audit log failed")
            else:
                self._recovered()
            self._count()

    async def end(self) -> None:
        """Store what there is and close the database. Takes LAST_SECONDS, and a wait for a lock, at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.drain()
        await self._close()

    async def _open(self) -> Database:
        if self._database is not None and self._identity != await asyncio.to_thread(_identity, self._folder):
            log.warning("%s was moved or replaced by another program; a new one is begun", self._folder.audit)
            await self._close()
        await self._look()
        if self._database is None:
            self._database = await audit_file.open_for_writing(self._folder)
            with contextlib.suppress(OSError):  # moved just now: the identity says so
                self._file = os.open(self._folder.audit, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._identity = await asyncio.to_thread(_identity, self._folder)
            self._since = await table.oldest(self._database)  # a read: from here on the write-ahead log is there
            self._log_identity = await asyncio.to_thread(_identity, self._folder, "-wal")
        return self._database

    async def _look(self) -> None:
        """Raise CommandError if what is stored in the open database is not in the files at its name: _LostError if they
        have to be set aside."""
        if self._database is None:
            return
        path = self._folder.audit
        if await asyncio.to_thread(_identity, self._folder) != self._identity:
            raise CommandError(CommandCode.DB_ERROR, f"{path} was moved or replaced by another program")
        if self._file is not None and not await asyncio.to_thread(_begins_well, self._file):
            raise _LostError(CommandCode.DB_ERROR, f"{path} was emptied or overwritten by another program")
        if self._log_identity not in (None, await asyncio.to_thread(_identity, self._folder, "-wal")):
            raise _LostError(CommandCode.DB_ERROR, f"{path}-wal was removed or replaced by another program")

    async def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            await database.close()
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    async def _empty(self, database: Database, slot: int) -> int:
        """Store the rows of one ring; how many there were."""
        total = 0
        while True:
            taken, position, damaged = self._rings.take(slot, BATCH)
            rows = [row for row in map(_readable, taken) if row is not None]
            if rows:
                await table.add(database, rows)
                await self._look()
                self._since = self._since if self._since is not None else min(row[1] for row in rows)
            lost = len(taken) - len(rows) + damaged
            if lost:
                log.warning("%d rows of the audit log could not be read, and are lost", lost)
            self._rings.release(slot, position, lost)
            total += len(rows)
            if len(taken) < BATCH:
                return total

    async def _retain(self, database: Database, settings: Settings, *, grown: bool) -> None:
        """Delete what is too old, or too much; a chunk each turn, so that rows that come meanwhile do not wait long."""
        now, gone = time.monotonic(), 0
        believed = self._believed.at(time.time(), now)
        if now >= self._looked + RETENTION_SECONDS:
            gone = await table.expire(database, int(believed * 1000 - settings.audit_retention_days * _DAY_MS))
            self._looked = now if gone < table.CHUNK else -RETENTION_SECONDS
            grown = True
        if grown and not gone:
            gone = await table.shrink(database, settings.audit_max_bytes)
            if gone:
                self._looked = -RETENTION_SECONDS  # and again at the next turn
        if gone:
            self._since = await table.oldest(database)
            await database.give_back()

    async def _trouble(self, error: CommandError) -> None:
        if self._last_error != error.message:
            log.error("the audit log cannot be written now; its rows wait: %s", error.message)
        self._last_error = error.message
        if self._database is None or not (isinstance(error, _LostError) or audit_file.is_damage(error)):
            return
        await self._close()
        try:
            await audit_file.set_aside(self._folder, error.message)
        except CommandError as failure:
            log.error("%s", failure.message)

    def _count(self) -> None:
        before, self._dropped = self._dropped, self._rings.dropped()
        if self._dropped > before:
            many = self._dropped - before
            log.warning("%d rows of the audit log were dropped: they came faster than they were stored", many)

    def _recovered(self) -> None:
        if self._last_error is not None:
            log.info("the audit log is written again; %d rows were dropped so far", self._rings.dropped())
            self._last_error = None


def _readable(data: bytes) -> tuple[Any, ...] | None:
    """A row as the database takes it; None if it is none, such as after a power cut."""
    try:
        return msgspec.structs.astuple(decode(data))
    except msgspec.MsgspecError:
        return None


def _identity(folder: Folder, suffix: str = "") -> _Identity | None:
    try:
        found = os.lstat(f"{folder.audit}{suffix}")  # a link to the very file is none that readers would follow
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begins_well(descriptor: int) -> bool:
    """Whether an open file begins as every database of SQLite does."""
    try:
        return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC
    except OSError:
        return True  # what is wrong with it, SQLite says

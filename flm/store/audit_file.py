"""`audit.db`, from its name to an open database. It has a fate of its own, and shares no loss with the others.

Strategy: its writer, the supervisor, never refuses to go on. What stands at its name and cannot be used (damaged,
foreign, of a newer FLM, no file at all) is renamed, with a warning, and a new one begun. What may pass (a full disk, a
lock, a refusal of the system) is raised, and tried again by the caller. Its readers change nothing.

Knows no rows. The parts that block run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flm.disk.private import secure_file, sync
from flm.errors import CommandCode, CommandError
from flm.store import opening
from flm.store.audit import AUDIT
from flm.store.database import Database, open_by
from flm.store.folder import Folder
from flm.store.inspection import inspect

BUSY_MS: Final = 2000  # how long the writer waits for another program's transaction: rows wait, and so does a stop
LARGEST_INSPECTED: Final = 1 << 30  # a look through every page takes seconds at this size, in which rows wait
KEPT_ASIDE: Final = 3  # damaged files that are kept; on a dying disk there could be many
_LOOKS: Final = 3  # one that is just being made looks like a damaged one
_LOOK_AGAIN_SECONDS: Final = 0.05
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_MAY_PASS: Final = ("BUSY", "LOCKED", "IOERR", "CANTOPEN", "FULL", "READONLY", "NOMEM", "PERM", "INTERRUPT", "PROTOCOL")

log = logging.getLogger("flm.store")


async def open_for_writing(folder: Folder) -> Database:
    """The audit database, made if it is not there, set aside first if it cannot be used. Raises DB_ERROR, IO_ERROR."""
    database = await open_by(lambda: _open(folder.audit), folder.audit)
    await database.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
    return database


async def open_for_reading(folder: Folder) -> Database | None:
    """The audit database as it is; None if there is none. Raises DB_ERROR, IO_ERROR, MIGRATION_FAILED."""
    for attempt in range(1, _LOOKS + 1):
        try:
            if await asyncio.to_thread(_look, folder.audit) <= 0:
                return None
            break
        except CommandError as error:
            if attempt == _LOOKS:
                raise CommandError(error.code, f"{_reason(error)}; a proxy that writes to it sets it aside") from None
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    return await open_by(lambda: opening.open_to_read(folder.audit), folder.audit)


async def set_aside(folder: Folder, why: str) -> None:
    """Rename the database and what belongs to it, which nobody here has open. Raises IO_ERROR."""
    await asyncio.to_thread(_set_aside, folder.audit, why)


def is_damage(error: CommandError) -> bool:
    """Whether an error of an open database will come again with the same file."""
    return _is_damage(error.__cause__)


def _is_damage(cause: BaseException | None) -> bool:
    if isinstance(cause, UnicodeDecodeError):
        return True
    name = getattr(cause, "sqlite_errorname", "")
    return isinstance(cause, sqlite3.DatabaseError) and not name.removeprefix("SQLITE_").startswith(_MAY_PASS)


def _open(path: Path) -> sqlite3.Connection:
    try:
        _look(path)
    except CommandError as error:
        # What came from SQLite may pass; what was judged, here or in `secure_file`, will not.
        if isinstance(error.__context__, OSError) or (error.__context__ and not _is_damage(error.__context__)):
            raise
        _set_aside(path, _reason(error))
    return opening.open_by_itself(path, AUDIT)


def _look(path: Path) -> int:
    """The size of what stands there, -1 if nothing does. Raises CommandError if it cannot be used."""
    sizes = [secure_file(path.with_name(path.name + suffix)) for suffix in ("", *_COMPANIONS)]
    if 0 < sizes[0] <= LARGEST_INSPECTED:
        inspect(path, AUDIT)
    return sizes[0]


def _set_aside(path: Path, why: str) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")  # in the order of their names, and no two alike
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    try:
        for suffix in (*_COMPANIONS, ""):  # the database last: until then it is found, and set aside, again
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        sync(path.parent)
    except OSError as error:
        raise CommandError(CommandCode.IO_ERROR, f"{path} cannot be set aside: {error.strerror or error}") from None
    log.warning("a new audit log is begun: %s; the former one is kept as %s", why, aside)
    _forget_the_oldest(path)


def _forget_the_oldest(path: Path) -> None:
    names = sorted(found.name for found in path.parent.glob(f"{path.name}.damaged-*"))
    for name in [name for name in names if not name.endswith(_COMPANIONS)][:-KEPT_ASIDE]:
        for suffix in ("", *_COMPANIONS):
            with contextlib.suppress(OSError):  # one that was no file stays
                os.unlink(path.with_name(name + suffix))


def _reason(error: CommandError) -> str:
    """Without the advice that belongs to the other databases."""
    return error.message.partition(" It was left untouched")[0].partition(" and was left untouched")[0].rstrip(".,")

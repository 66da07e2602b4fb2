"""From a folder to an open SQLite connection: creates the databases once, migrates them, or refuses.

Strategy: the two databases are created together, under the folder's lock and beside a marker file. While the marker is
there, creation is unfinished and is resumed; without it, a database that is missing or empty while the other is there
is a loss and is refused (an empty security database would forget every revocation and allow-list). A replacement by a
restore that was cut off is undone first, and what killed commands left in clear is removed. Whatever the file is, it is
inspected before SQLite may write to it.

Knows no rows. Blocking: on an event loop it runs in a thread (see `database`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Final

from flm.disk.private import create_file, secure_file, secure_folder, sync
from flm.errors import CommandCode, CommandError
from flm.store.folder import Folder, locked
from flm.store.inspection import BUSY_SECONDS, inspect, uri
from flm.store.schema import SCHEMAS, Schema
from flm.store.swap import settle, unsettled
from flm.store.workspace import sweep

MARKER: Final = ".creating"

# Files that this process has open. They were inspected, and must not be again: closing a descriptor that SQLite does
# not know of drops the locks that its connections of the same process hold (POSIX locks belong to the process).
_open: Counter[tuple[int, int]] = Counter()
_opening = threading.RLock()


class _Connection(sqlite3.Connection):
    """A connection that is counted in `_open` until it is closed."""

    identity: tuple[int, int] | None = None

    def close(self) -> None:
        with _opening:
            super().close()
            if self.identity is not None:
                _open[self.identity] -= 1
                self.identity = None


def path_of(folder: Folder, schema: Schema) -> Path:
    return folder.config if schema.name == "config" else folder.security


def open_connection(folder: Folder, schema: Schema) -> sqlite3.Connection:
    """An open connection to a database that is whole, ours, private and up to date.

    Raises IO_ERROR, DB_ERROR or MIGRATION_FAILED, and then has changed nothing that was there.
    """
    path = path_of(folder, schema)
    with _opening:
        while True:
            _secure(folder)
            _prepare(folder, path, schema)
            with locked(folder.root, shared=True):  # nobody replaces the files between this look and SQLite's own lock
                if not unsettled(folder):
                    return _connect(path, schema)


def _prepare(folder: Folder, path: Path, schema: Schema) -> None:
    settle(folder)
    sweep(folder.root)
    if not _complete(folder):
        with locked(folder.root):
            _create(folder)
    if not _open[_identity(path)] and inspect(path, schema) < schema.version:
        with locked(folder.root):
            migrate(path, schema)


def open_by_itself(path: Path, schema: Schema) -> sqlite3.Connection:
    """An open connection to a database whose loss the others survive: made if it is missing or empty, brought up to
    date otherwise. What is there has been inspected. Raises DB_ERROR, IO_ERROR, MIGRATION_FAILED."""
    with _opening:
        secure_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(create_file(path))
        migrate(path, schema)
        return _connect(path, schema)


def open_to_read(path: Path) -> sqlite3.Connection:
    """An open connection that changes nothing, and needs no room on the disk, to a database that was inspected. Raises
    DB_ERROR."""
    with _opening:
        return _opened(path, "mode=ro")


def migrate(path: Path, schema: Schema) -> None:
    """Bring a database up to date, one transaction a step, after keeping a copy of what has data.

    Raises MIGRATION_FAILED; then the database is as it was after the last step that succeeded.
    """
    connection = _connect(path, schema)
    step = 0
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if 0 < version < schema.version:
            _keep_copy(connection, path, version)
        for step in range(version + 1, schema.version + 1):
            _apply(connection, schema, step)
    except sqlite3.Error as error:
        raise CommandError(
            CommandCode.MIGRATION_FAILED,
            f"step {step} of bringing {path} up to date failed and was undone: {error}; "
            "free disk space or end the program that holds the database, then try again",
        ) from None
    finally:
        connection.close()


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _secure(folder: Folder) -> None:
    secure_folder(folder.root)
    for path in (folder.config, folder.security):
        if path.parent != folder.root and not path.parent.is_dir():
            secure_folder(path.parent)
        for suffix in ("", "-wal", "-shm", "-journal"):
            secure_file(path.with_name(path.name + suffix))


def _complete(folder: Folder) -> bool:
    sizes = [secure_file(path_of(folder, schema)) for schema in SCHEMAS]
    return min(sizes) > 0 and not os.path.lexists(folder.root / MARKER)


def _create(folder: Folder) -> None:
    if _complete(folder):
        return  # another process did, while this one waited for the lock
    marker = folder.root / MARKER
    if not os.path.lexists(marker):
        _refuse_a_loss(folder)
        os.close(create_file(marker))
    for schema in SCHEMAS:
        path = path_of(folder, schema)
        with contextlib.suppress(FileExistsError):
            os.close(create_file(path))
        migrate(path, schema)
        sync(path.parent)
    os.unlink(marker)
    sync(folder.root)


def _refuse_a_loss(folder: Folder) -> None:
    """Raise DB_ERROR unless both databases are missing, or empty with no trace of former use beside them."""
    sizes = {path: secure_file(path) for path in (path_of(folder, schema) for schema in SCHEMAS)}
    lost = [str(path) for path, size in sizes.items() if size <= 0]
    traces = [str(path) for path, size in sizes.items() if size > 0]
    traces += [f"{path}-wal" for path in sizes if secure_file(Path(f"{path}-wal")) > 0]
    if 0 in sizes.values() and secure_file(folder.pepper) > 0:
        traces.append(str(folder.pepper))
    if traces:
        raise CommandError(
            CommandCode.DB_ERROR,
            f"{' and '.join(lost)}: missing or empty, while there still is {' and '.join(traces)}. Nothing was created "
            "in its place, for keys and their revocations would be forgotten; restore it from a copy, or move the rest "
            "away to begin anew",
        )


def _connect(path: Path, schema: Schema) -> sqlite3.Connection:
    settings = [
        "auto_vacuum = INCREMENTAL" if schema.shrinks else "",  # holds for a file that is still empty
        "journal_mode = WAL",
        f"synchronous = {schema.synchronous}",
        "secure_delete = ON",  # a credential that was removed is gone from the file
    ]
    return _opened(path, "mode=rw", *filter(None, settings))


def _opened(path: Path, mode: str, *settings: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            uri(path, mode),
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            factory=_Connection,
            check_same_thread=False,  # opened on one thread, then used on another only (see `database`)
        )
        try:
            connection.identity = _identity(path)
            _open[connection.identity] += 1
            for setting in (*settings, "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {setting}").fetchall()
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise CommandError(CommandCode.DB_ERROR, f"{path} cannot be opened: {error}{next_step(error)}") from None
    return connection


def next_step(error: sqlite3.Error) -> str:
    """SQLite calls it an I/O error when there is no room for the file of its shared memory, and says only that a file
    cannot be opened when that one cannot be made."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
        return "; see whether the disk is full (df), free space, and try again"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return (
            "; SQLite writes beside a database even where it only reads: see whether that folder is yours (ls -ld) and "
            "its file system may be written (mount)"
        )
    return ""


def _apply(connection: sqlite3.Connection, schema: Schema, step: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < step:
            for statement in schema.migrations[step - 1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {schema.application_id}")
            connection.execute(f"PRAGMA user_version = {step}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Write the database as it is to `<name>.before-v<next>`, whole or not at all."""
    copy = path.with_name(f"{path.name}.before-v{version + 1}")
    partial = copy.with_name(copy.name + ".partial")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    copy_pages(connection, partial)
    os.rename(partial, copy)
    sync(path.parent)


def copy_pages(connection: sqlite3.Connection, path: Path) -> None:
    """Write what a connection reads into a new file, which is a database of its own. Raises sqlite3.Error, IO_ERROR."""
    os.close(create_file(path))
    target = sqlite3.connect(uri(path, "mode=rw"), uri=True)
    try:
        connection.backup(target)
    finally:
        target.close()

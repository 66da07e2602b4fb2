"""A copy of the databases as they are at one moment, while others read and write them, and a look at such a copy.

Strategy: both databases are held still for as long as it takes to begin reading both; a copy is then made of what was
read, page by page (SQLite's backup interface), while writers go on. So an engine and its credential, which lie in
different databases, are both in a copy or both not.

Knows files, no key and no setting. Blocking.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flm.disk.private import read_file, secure_file, sync, write_new_file
from flm.errors import CommandCode, CommandError
from flm.store.audit import AUDIT
from flm.store.folder import Folder
from flm.store.inspection import inspect, uri
from flm.store.opening import copy_pages, migrate, open_by_itself, open_connection
from flm.store.pepper import PEPPER_BYTES, load_pepper
from flm.store.schema import CONFIG, SCHEMAS, SECURITY, Schema
from flm.store.swap import AUDIT_LOG

_COUNT_KEYS = "SELECT count(*) FROM api_keys"


def copy_to(folder: Folder, target: Path, *, with_audit: bool = False) -> None:
    """Write `config.db`, `security.db` and `pepper` into the private folder `target`, and the audit log if there is
    one and it is asked for. Raises DB_ERROR, IO_ERROR, MIGRATION_FAILED.
    """
    with contextlib.ExitStack() as stack:
        reading = [stack.enter_context(_opened(folder, schema)) for schema in SCHEMAS]
        try:
            with contextlib.ExitStack() as still:
                for schema in (CONFIG, SECURITY):  # the order in which everybody who writes both takes them
                    still.enter_context(_opened(folder, schema)).execute("BEGIN IMMEDIATE")
                for connection in reading:
                    connection.execute("BEGIN")
                    connection.execute("SELECT value FROM generation").fetchone()
            for schema, connection in zip(SCHEMAS, reading, strict=True):
                _copy(connection, target / f"{schema.name}.db")
            ((keys,),) = connection.execute(_COUNT_KEYS).fetchall()
            if with_audit and secure_file(folder.audit) > 0:
                _copy_audit(folder, target)
        except sqlite3.Error as error:
            raise CommandError(
                CommandCode.DB_ERROR,
                f"the databases in {folder.root} could not be copied: {error}; "
                "free disk space or end the program that holds them, and try again",
            ) from None
        write_new_file(target / "pepper", load_pepper(folder, create=keys == 0))


def _copy_audit(folder: Folder, target: Path) -> None:
    inspect(folder.audit, AUDIT)
    connection = open_by_itself(folder.audit, AUDIT)
    try:
        _copy(connection, target / AUDIT_LOG)
    finally:
        connection.close()


def verify(staged: Path) -> int:
    """Look at what `copy_to` wrote, maybe long ago, bring it up to date, and return how many keys it has.

    Raises DB_ERROR, MIGRATION_FAILED or IO_ERROR for anything that this FLM could not use.
    """
    for schema in (*SCHEMAS, AUDIT) if (staged / AUDIT_LOG).exists() else SCHEMAS:
        path = staged / f"{schema.name}.db"
        if secure_file(path) <= 0:
            raise CommandError(CommandCode.DB_ERROR, f"{path} is missing or empty, so nothing was replaced")
        if inspect(path, schema) < schema.version:
            migrate(path, schema)
            inspect(path, schema)
        _fold(path)
    keys = _keys(staged / "security.db")
    if keys and len(_pepper(staged)) != PEPPER_BYTES:
        raise CommandError(CommandCode.IO_ERROR, f"the pepper in {staged} is damaged or missing; nothing was replaced")
    for path in (*staged.rglob("*"), staged):
        sync(path)
    return keys


def usable(kept: Path) -> bool:
    """Whether a folder of former files could be restored again."""
    try:
        for schema in (*SCHEMAS, AUDIT) if (kept / AUDIT_LOG).exists() else SCHEMAS:
            path = kept / f"{schema.name}.db"
            if secure_file(path) <= 0 or secure_file(Path(f"{path}-wal")) >= 0:
                return False
            inspect(path, schema)
        return not _keys(kept / "security.db") or len(_pepper(kept)) == PEPPER_BYTES
    except (CommandError, sqlite3.Error, OSError):
        return False


@contextlib.contextmanager
def _opened(folder: Folder, schema: Schema) -> Iterator[sqlite3.Connection]:
    connection = open_connection(folder, schema)
    try:
        yield connection
    finally:
        connection.close()


def _copy(source: sqlite3.Connection, path: Path) -> None:
    copy_pages(source, path)
    _fold(path)


def _fold(path: Path) -> None:
    """Let a database be one file, with no log beside it."""
    connection = sqlite3.connect(uri(path, "mode=rw"), uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    finally:
        connection.close()


def _keys(path: Path) -> int:
    connection = sqlite3.connect(uri(path, "immutable=1"), uri=True)
    try:
        ((count,),) = connection.execute(_COUNT_KEYS).fetchall()
    finally:
        connection.close()
    return int(count)


def _pepper(folder: Path) -> bytes:
    return read_file(folder / "pepper", PEPPER_BYTES + 1) or b""

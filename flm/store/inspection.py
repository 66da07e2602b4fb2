"""Looks at a database file without changing a byte of it, and says whether FLM may use it.

Strategy: where no process has the file open (no write-ahead log beside it) it is read as immutable, which makes SQLite
create no file and take no lock; else read-only with SQLite's usual locks. A bad finding counts only if the file was
the same before and after: another process may have been checkpointing into it meanwhile.

Knows nothing of what is stored. Blocking.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from flm.errors import CommandCode, CommandError
from flm.store.schema import Schema

BUSY_SECONDS: Final = 10.0  # how long one statement waits for another process's transaction
_LOOKS: Final = 20  # a file that changes under each of them is changing all the time


def inspect(path: Path, schema: Schema) -> int:
    """The version of a database of FLM's that is whole and not newer than this FLM.

    Raises DB_ERROR for a damaged or a foreign file, MIGRATION_FAILED for one of a newer FLM.
    """
    for _ in range(_LOOKS - 1):
        before = _state(path)
        try:
            return _look(path, schema, immutable=before[1] <= 0 and before[2] < 0)
        except CommandError:
            if _state(path) == before:
                raise
    return _look(path, schema, immutable=False)


def uri(path: Path, parameters: str) -> str:
    """`path` as SQLite's file URI: the only form in which a missing file is never created."""
    return f"file:{quote(str(path))}?{parameters}"


def _state(path: Path) -> tuple[int, int, int]:
    """(change of the file in ns, size of its write-ahead log, size of its rollback journal); sizes -1: not there."""
    return os.stat(path).st_mtime_ns, _size(path, "-wal"), _size(path, "-journal")


def _size(path: Path, suffix: str) -> int:
    try:
        return os.stat(f"{path}{suffix}").st_size
    except FileNotFoundError:
        return -1


def _look(path: Path, schema: Schema, *, immutable: bool) -> int:
    try:
        connection = sqlite3.connect(
            uri(path, "immutable=1" if immutable else "mode=ro"), uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        connection.text_factory = lambda text: text.decode(errors="replace")  # damaged names are no UTF-8
        try:
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            if immutable and os.stat(path).st_size % page_bytes:
                raise _refused(path, "it is damaged (its end is cut off)")
            return _judge(connection, path, schema)
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise _refused(path, f"it cannot be read ({error})") from None
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the text of an error may be what is damaged
        raise _refused(path, f"it is damaged ({error})") from None


def _judge(connection: sqlite3.Connection, path: Path, schema: Schema) -> int:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != schema.application_id:
        raise _refused(path, f"it is not FLM's {schema.name} database")
    if version > schema.version:
        raise CommandError(
            CommandCode.MIGRATION_FAILED,
            f"{path} was written by a newer FLM (its version is {version}, this FLM knows {schema.version}) and was "
            "left untouched; upgrade FLM, or point FLM_HOME at another folder",
        )
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise _refused(path, "it is damaged (" + "; ".join(found)[:300] + ")")
    names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = schema.tables - names if version == schema.version else frozenset[str]()
    if version < 1 or missing:
        raise _refused(path, "it is damaged (it lacks " + (", ".join(sorted(missing)) or "its version") + ")")
    return int(version)


def _refused(path: Path, why: str) -> CommandError:
    return CommandError(
        CommandCode.DB_ERROR,
        f"{path} is not used: {why}. It was left untouched; restore it from a copy, or move it and the other databases "
        "of its folder away to begin anew (all keys and settings are then gone)",
    )

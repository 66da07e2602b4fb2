"""Puts other databases and another pepper in the place of those there are: all of them, or none.

Strategy: the files that are there are kept in a folder beside them, under second names (hard links), then a journal
says what is about to happen, then each file is replaced by a rename, then the journal goes. The journal's end is the
moment of change: as long as it is there, whoever opens the folder next (see `opening`) first puts the kept files back.
Nobody may have the databases open meanwhile: SQLite's own locks tell, and the folder's lock keeps newcomers out.

Knows which files belong together, not what is in them. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

import msgspec

from flm.disk.private import create_file, read_file, secure_file, secure_folder, sync_folder, write_new_file
from flm.errors import CommandCode, CommandError
from flm.store.folder import Folder, locked
from flm.store.inspection import BUSY_SECONDS, uri

JOURNAL: Final = ".restoring"
_JOURNAL_BYTES: Final = 65_536
_COPY_BYTES: Final = 1 << 20
_BESIDE: Final = ("-wal", "-journal", "-shm")
# What the primary result codes of a file that is no healthy database are: SQLITE_CORRUPT, SQLITE_NOTADB.
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_IN_USE: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_POLL_SECONDS: Final = 0.05


class _Journal(msgspec.Struct, frozen=True):
    """`kept`: the folder with the former files, by name; `staged`: the one with the new; `had`: what was there.
    `with_audit`: whether the audit log is replaced too; if not, it stays out of this."""

    kept: str
    staged: str
    had: tuple[str, ...]
    with_audit: bool


AUDIT_LOG: Final = "audit.db"


def members(folder: Folder) -> dict[str, Path]:
    """Everything that belongs together, by the name it has in a backup, and what may go with it: AUDIT_LOG."""
    return {
        "config.db": folder.config,
        "security.db": folder.security,
        "pepper": folder.pepper,
        AUDIT_LOG: folder.audit,
    }


def unsettled(folder: Folder) -> bool:
    """Whether a replacement was begun and not finished: then the files that are there are not to be used."""
    return os.path.lexists(folder.root / JOURNAL)


def settle(folder: Folder) -> None:
    """Undo a replacement that was cut off, if there is one. Raises IO_ERROR, DB_ERROR."""
    if unsettled(folder):
        with locked(folder.root):  # whoever is replacing them holds it
            if unsettled(folder):
                _undo(folder)


def replace(folder: Folder, staged: Path, kept: Path) -> bool:
    """Put the files in `staged` (some of `members`, by name) in place, and keep the former ones in `kept`.

    False if there were none, and then there is no `kept`. Both are folders in the data folder's root; `staged` is gone
    afterwards. Raises IO_ERROR or DB_ERROR, and then all is as it was.
    """
    with locked(folder.root):
        if unsettled(folder):
            _undo(folder)
        try:
            had = _keep(folder, kept, with_audit=(staged / AUDIT_LOG).exists())
            journal = _Journal(kept.name, staged.name, had, with_audit=(staged / AUDIT_LOG).exists())
            write_new_file(folder.root / JOURNAL, msgspec.json.encode(journal))
            _put_in_place(folder, staged)
            os.unlink(folder.root / JOURNAL)
        except BaseException:
            _undo(folder)
            shutil.rmtree(kept, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # it is done; a power cut before it is on disk brings back the old, whole
            sync_folder(folder.root)
        shutil.rmtree(staged, ignore_errors=True)
        if not had:
            kept.rmdir()
    return bool(had)


def _concerned(folder: Folder, *, with_audit: bool) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in members(folder).items() if with_audit or name != AUDIT_LOG]


def _put_in_place(folder: Folder, staged: Path) -> None:
    for name, path in members(folder).items():
        if (staged / name).exists():
            if not path.parent.is_dir():
                secure_folder(path.parent)
            for suffix in _BESIDE:  # of a database that was damaged, or the new one would be taken for its own
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}{suffix}")
            _place(staged / name, path)
            sync_folder(path.parent)


def _keep(folder: Folder, kept: Path, *, with_audit: bool) -> tuple[str, ...]:
    """Give every file that is there a second name in `kept`, databases closed and whole if they can be."""
    os.mkdir(kept, 0o700)
    had = []
    for name, path in _concerned(folder, with_audit=with_audit):
        if secure_file(path) < 0:
            continue
        if name.endswith(".db"):
            _close(path)
        for suffix in ("", *_BESIDE) if name.endswith(".db") else ("",):
            if secure_file(Path(f"{path}{suffix}")) >= 0:
                _place(Path(f"{path}{suffix}"), kept / f"{name}{suffix}")
                had.append(f"{name}{suffix}")
    sync_folder(kept)
    return tuple(had)


def _close(path: Path) -> None:
    """Fold a database's write-ahead log into it, which nobody else may have open. A damaged one stays as it is."""
    deadline = time.monotonic() + BUSY_SECONDS
    while (refused := _fold(path)) is not None:
        if refused in _DAMAGED:
            return
        if refused not in _IN_USE:
            raise CommandError(
                CommandCode.DB_ERROR, f"nothing was replaced: {path} cannot be closed; free disk space and try again"
            )
        if time.monotonic() > deadline:
            raise CommandError(
                CommandCode.DB_ERROR,
                f"nothing was replaced: another command has had {path} open for {BUSY_SECONDS:g} s; "
                "end it (lsof shows it) and try again",
            )
        time.sleep(_POLL_SECONDS)


def _fold(path: Path) -> int | None:
    """None if it is done, else SQLite's primary result code."""
    try:
        connection = sqlite3.connect(uri(path, "mode=rw"), uri=True, timeout=0, isolation_level=None)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            return None if mode == "delete" else sqlite3.SQLITE_BUSY
        finally:
            connection.close()
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _undo(folder: Folder) -> None:
    """Put everything back as the journal says; may be cut off and begun anew. The caller holds the lock."""
    written = read_file(folder.root / JOURNAL, _JOURNAL_BYTES)
    if written is None:
        return
    try:
        journal = msgspec.json.decode(written, type=_Journal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CommandError(
            CommandCode.IO_ERROR,
            f"{folder.root / JOURNAL} is damaged; it says how to undo a restore that was cut off. Put the files of the "
            f"newest before-restore-… folder in {folder.root} back in place, then remove it",
        ) from None
    kept = folder.root / Path(journal.kept).name
    for name, path in _concerned(folder, with_audit=journal.with_audit):
        for suffix in ("", *_BESIDE) if name.endswith(".db") else ("",):
            target = Path(f"{path}{suffix}")
            if f"{name}{suffix}" in journal.had:
                _place(kept / f"{name}{suffix}", target)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
        if path.parent.is_dir():
            sync_folder(path.parent)
    os.unlink(folder.root / JOURNAL)
    sync_folder(folder.root)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(folder.root / Path(journal.staged).name, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    """Let `target` be the file `source` too, at once: a second name, or on another file system a copy."""
    waiting = target.with_name(f".{target.name}.placing")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(waiting)
    try:
        os.link(source, waiting, follow_symlinks=False)
    except OSError:
        with open(create_file(waiting), "wb") as copy, open(source, "rb") as original:
            shutil.copyfileobj(original, copy, _COPY_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    os.replace(waiting, target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(waiting)  # a rename onto another name of the same file does nothing

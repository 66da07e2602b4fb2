"""Puts other databases, another pepper and other certificates in the place of those there are: all of them, or none.

Strategy: the files that are there are kept in a folder beside them, under second names (hard links), then a journal
says what is about to happen, then each file is replaced by a rename, then the journal goes. The journal's end is the
moment of change: as long as it is there, whoever opens the folder next (see `opening`) first puts the kept files back.
Nobody may have the databases open meanwhile: SQLite's own locks tell, and the folder's lock keeps newcomers out; the
lock of the folder of certificates keeps out who makes some.

Databases and pepper belong together and change together. A file of the folder of certificates changes if there is
another one, or if it is said that there was none: then it goes, and is kept like the others.

Knows the names of the files, not what is in them. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from flm.disk.locks import holding
from flm.disk.private import create_file, read_file, secure_file, secure_folder, sync, write_new_file
from flm.errors import CommandCode, CommandError
from flm.store.folder import LOCK_SECONDS, Folder, locked
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
    `with_audit`: whether the audit log is replaced too; if not, it stays out of this. `certs`: the files of the folder
    of certificates that are in this."""

    kept: str
    staged: str
    had: tuple[str, ...]
    with_audit: bool
    certs: tuple[str, ...] = ()


AUDIT_LOG: Final = "audit.db"
CERTS: Final = "certs"
ABSENT: Final = "absent.json"  # in a folder of former files: the certificates that there were none of


def members(folder: Folder) -> dict[str, Path]:
    """Everything that belongs together, by the name it has in a backup, and what may go with it: AUDIT_LOG."""
    return {
        "config.db": folder.config,
        "security.db": folder.security,
        "pepper": folder.pepper,
        AUDIT_LOG: folder.audit,
    }


def certs_in(staged: Path) -> tuple[str, ...]:
    """The files of the folder of certificates that are in `staged`, by the name they have in a backup (`certs/…`)."""
    found = sorted(path for path in (staged / CERTS).rglob("*") if not path.is_dir())
    return tuple(str(path.relative_to(staged)) for path in found)


def absent_from(kept: Path) -> tuple[str, ...]:
    """The certificates, as `certs_in`, that there were none of before those files were kept. Raises IO_ERROR."""
    try:
        return msgspec.json.decode(read_file(kept / ABSENT, _JOURNAL_BYTES) or b"[]", type=tuple[str, ...])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CommandError(CommandCode.IO_ERROR, f"{kept / ABSENT} is damaged; nothing was changed") from None


def unsettled(folder: Folder) -> bool:
    """Whether a replacement was begun and not finished: then the files that are there are not to be used."""
    return os.path.lexists(folder.root / JOURNAL)


def settle(folder: Folder) -> None:
    """Undo a replacement that was cut off, if there is one. Raises IO_ERROR, DB_ERROR."""
    if unsettled(folder):
        with _alone(folder):  # whoever is replacing them is in there
            if unsettled(folder):
                _undo(folder)


def replace(folder: Folder, staged: Path, kept: Path, gone: Collection[str] = ()) -> bool:
    """Put the files in `staged` (some of `members`, by name, and `certs_in` it) in place, take away the certificates
    that are to be `gone`, and keep the former files in `kept`.

    False if there were none, and then there is no `kept`. Both are folders in the data folder's root; `staged` is gone
    afterwards. Raises IO_ERROR or DB_ERROR, and then all is as it was.
    """
    if (staged / CERTS).is_dir():
        secure_folder(folder.certs)  # to be locked
    with _alone(folder):
        if unsettled(folder):
            _undo(folder)
        try:
            concerned = _concerned(folder, with_audit=(staged / AUDIT_LOG).exists(), certs={*certs_in(staged), *gone})
            had = _keep(folder, kept, concerned)
            certs = tuple(name for name in concerned if name not in members(folder))
            journal = _Journal(kept.name, staged.name, had, with_audit=AUDIT_LOG in concerned, certs=certs)
            write_new_file(folder.root / JOURNAL, msgspec.json.encode(journal))
            _put_in_place(folder, staged, concerned)
            os.unlink(folder.root / JOURNAL)
        except BaseException:
            _undo(folder)
            shutil.rmtree(kept, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # it is done; a power cut before it is on disk brings back the old, whole
            sync(folder.root)
        shutil.rmtree(staged, ignore_errors=True)
        if not had:
            kept.rmdir()
    return bool(had)


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Nobody else opens the databases, or makes a certificate."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder.root))
        if folder.certs.is_dir():
            stack.enter_context(holding(folder.certs, LOCK_SECONDS, CommandCode.IO_ERROR, "at work in"))
        yield


def _concerned(folder: Folder, *, with_audit: bool, certs: Collection[str]) -> dict[str, Path]:
    """What is replaced, by its name in a backup; certificates last."""
    fixed = {name: path for name, path in members(folder).items() if with_audit or name != AUDIT_LOG}
    return fixed | {name: folder.root / name for name in sorted(certs)}


def _files(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """The file and what may lie beside it."""
    for suffix in ("", *_BESIDE) if name.endswith(".db") else ("",):
        yield f"{name}{suffix}", Path(f"{path}{suffix}")


def _put_in_place(folder: Folder, staged: Path, concerned: Mapping[str, Path]) -> None:
    for name, path in concerned.items():
        is_new = (staged / name).exists()
        if not is_new and name in members(folder):
            continue
        _make_parents(folder.root, path)
        for _, each in _files(name, path):  # what lies beside a damaged database would be taken for the new one's own
            if each != path or not is_new:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each)
        if is_new:
            _place(staged / name, path)
        sync(path.parent)


def _make_parents(root: Path, path: Path) -> None:
    """Let the folders of a file be there, on the disk, and private where they are the data folder's own."""
    within = [each for each in reversed(path.parents) if root in each.parents]
    for each in within or [path.parent]:
        if within or not each.is_dir():
            secure_folder(each)
            sync(each.parent)


def _keep(folder: Folder, kept: Path, concerned: Mapping[str, Path]) -> tuple[str, ...]:
    """Give every file that is there a second name in `kept`, databases closed and whole if they can be."""
    there = {name: path for name, path in concerned.items() if secure_file(path) >= 0}  # all, before one is touched
    os.mkdir(kept, 0o700)
    had = []
    for name, path in there.items():
        if name.endswith(".db"):
            _close(path)
        _make_parents(kept, kept / name)
        for each, file in _files(name, path):
            if secure_file(file) >= 0:
                _place(file, kept / each)
                had.append(each)
    absent = [name for name in concerned if name not in members(folder) and name not in there]
    if had and absent:
        write_new_file(kept / ABSENT, msgspec.json.encode(absent))
    for changed in {kept, *((kept / name).parent for name in had)}:
        sync(changed)
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
    for name, path in _concerned(folder, with_audit=journal.with_audit, certs=journal.certs).items():
        for each, target in _files(name, path):
            if each in journal.had:
                _place(kept / each, target)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
        if path.parent.is_dir():
            sync(path.parent)
    os.unlink(folder.root / JOURNAL)
    sync(folder.root)
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

"""`BackupService`: an encrypted copy of keys, settings, engines and certificates in one file, and the way back.

Strategy: `create` copies the databases as they are at one moment into a private folder, and seals that copy, the
pepper and the certificates into the file. `restore` unseals into a private folder, verifies all of it with the code
that opens databases and reads certificates, and only then replaces what is there, as one step that can be undone. It is
refused while a proxy runs: a running proxy has the old keys in its workers and the old databases open.

The content of a backup is a JSON line (`Contents`) and then the files in its order. Knows no terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from flm import __version__
from flm.disk.private import create_file, secure_folder, sync
from flm.errors import CommandCode, CommandError
from flm.runtime import instance, memory
from flm.services import backup_certs
from flm.services.times import rfc3339
from flm.store.copies import copy_to, usable, verify
from flm.store.folder import Folder
from flm.store.sealed import CHUNK_BYTES, Head, Kind, check_size, invalid, read_head, seal, unseal
from flm.store.sealed import Secret as Secret
from flm.store.swap import AUDIT_LOG, certs_in, members, replace, settle
from flm.store.workspace import COPIES, UNSEALED, workspace

KEPT: Final = "before-restore-"
_ALWAYS: Final = ("config.db", "security.db", "pepper")
_CONTENTS_BYTES: Final = 65_536


class File(msgspec.Struct, frozen=True):
    """One file of a backup and its size in bytes."""

    name: str
    bytes: int


class Contents(msgspec.Struct, frozen=True):
    """What is in a backup. `created_at`: Unix seconds; `flm`: the version that made it."""

    flm: str
    created_at: int
    files: tuple[File, ...]


class Created(msgspec.Struct, frozen=True):
    """A backup that was made. `bytes`: the size of the file; `left_out`: what of the certificates could not be taken,
    each with the reason."""

    file: str
    bytes: int
    created_at: str
    contains: tuple[str, ...]
    left_out: tuple[str, ...]


class Restored(msgspec.Struct, frozen=True):
    """What was restored. `left_out`: what of it was not, each with the reason; `kept`: the folder with the files there
    were before, None if there were none; `to_undo` says how to go back to them."""

    file: str
    created_at: str | None
    keys: int
    restored: tuple[str, ...]
    left_out: tuple[str, ...]
    kept: str | None
    to_undo: str


class BackupService:
    """The backups of one data folder. `now` is the Unix time in seconds."""

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    async def create(self, output: Path, secret: Secret, *, with_audit: bool = False) -> Created:
        """Write a backup to a file that is not there yet; whole, private and on disk, or not at all.

        `with_audit`: with the audit log, which is left out and left alone otherwise. A proxy may run. Raises USAGE,
        IO_ERROR, DB_ERROR, MIGRATION_FAILED.
        """
        return await asyncio.to_thread(self._create, output, secret, with_audit=with_audit)

    async def sealed_with(self, source: Path) -> Kind | None:
        """The kind of secret a backup was sealed with; None for a folder of former files, which needs none.

        Raises BACKUP_INVALID for what is no backup, or is one that is cut short.
        """
        return await asyncio.to_thread(_sealed_with, source)

    async def restore(self, source: Path, secret: Secret | None = None) -> Restored:
        """Replace keys, settings and engines by those of a backup, or of the folder of former files of a restore, and
        the certificates that are in it; others stay.

        Raises USAGE, PROXY_ALREADY_RUNNING, BACKUP_INVALID, DB_ERROR, MIGRATION_FAILED or IO_ERROR, and then nothing
        was changed.
        """
        return await asyncio.to_thread(self._restore, source, secret)

    def _create(self, output: Path, secret: Secret, *, with_audit: bool = False) -> Created:
        output = Path(os.path.abspath(output))
        if os.path.lexists(output):
            raise CommandError(CommandCode.USAGE, f"{output} is there already and was left as it is; take another name")
        secure_folder(self._folder.root)
        created_at = int(self._now())
        with _plainly(output), workspace(self._folder.root, COPIES) as copies:
            copy_to(self._folder, copies, with_audit=with_audit)
            certs = backup_certs.collect(self._folder)
            names = [name for name in members(self._folder) if (copies / name).exists()]
            files = [File(name, (copies / name).stat().st_size) for name in names]
            files += [File(name, len(data)) for name, data in certs.files.items()]
            contents = msgspec.json.encode(Contents(__version__, created_at, tuple(files))) + b"\n"
            parts: list[bytes | Path] = [contents, *(copies / name for name in names), *certs.files.values()]
            size = _write(output, parts, sum(each.bytes for each in files) + len(contents), secret)
        contains = tuple(each.name for each in files)
        return Created(str(output), size, rfc3339(created_at) or "", contains, certs.left_out)

    def _restore(self, source: Path, secret: Secret | None) -> Restored:
        source = Path(os.path.abspath(source))
        secure_folder(self._folder.root)
        with _plainly(source), self._alone(), workspace(self._folder.root, UNSEALED) as staged:
            settle(self._folder)
            created_at = None
            left_out: tuple[str, ...] = ()
            gone: tuple[str, ...] = ()
            if _sealed_with(source):
                created_at = _unpack(source, staged, secret)
                left_out = backup_certs.leave_out_expired(staged, self._now())
            else:
                gone = _take_copies(source, staged)
            backup_certs.complete(staged)
            keys = verify(staged)
            names = (*(name for name in members(self._folder) if (staged / name).exists()), *certs_in(staged))
            kept = self._free_name()
            (self._folder.run / memory.BUCKETS).unlink(
                missing_ok=True
            )  # they count by the keys' places in the database
            there_were = replace(self._folder, staged, kept, gone)
        return Restored(
            str(source),
            rfc3339(created_at),
            keys,
            names,
            left_out,
            str(kept) if there_were else None,
            _way_back(self._folder, kept if there_were else None),
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No proxy runs in this folder, and none can start."""
        secure_folder(self._folder.run)
        lock = instance.acquire(self._folder.run)
        if lock is None:
            raise CommandError(
                CommandCode.PROXY_ALREADY_RUNNING,
                f"a proxy runs in {self._folder.root}, so nothing was restored: `flm proxy stop`, restore, then "
                "`flm proxy start`",
            )
        try:
            memory.wait_for_orphans(self._folder.run)
            yield
        finally:
            os.close(lock)

    def _free_name(self) -> Path:
        stem = KEPT + datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%dT%H%M%SZ")
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10_000))
        return next(path for name in numbered if not os.path.lexists(path := self._folder.root / name))


def _write(output: Path, parts: Sequence[bytes | Path], length: int, secret: Secret) -> int:
    """Seal into `output` what the parts, or the files they name, hold together, under another name first; its size."""
    waiting = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with open(create_file(waiting), "wb") as file:
            seal(file, _bytes_of(parts), length, secret)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.link(waiting, output, follow_symlinks=False)  # never over a file that came meanwhile
        sync(output.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(waiting)
    return size


def _bytes_of(parts: Sequence[bytes | Path]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        with open(part, "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


def _sealed_with(source: Path) -> Kind | None:
    with _plainly(source):
        if source.is_dir():
            return None
        with _opened(source) as (_, head):
            return head.kind


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[BinaryIO, Head]]:
    """A backup, and its head, behind which it stands."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a FIFO nobody waits for the other end
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise invalid(str(source), "it is no regular file")
        head = read_head(file, str(source))
        check_size(head, found.st_size, str(source))
        yield file, head


def _unpack(source: Path, staged: Path, secret: Secret | None) -> int:
    """Unseal a whole file into `staged`; when it was made. Raises BACKUP_INVALID."""
    name = str(source)
    with _opened(source) as (file, head):
        if secret is None:
            raise invalid(name, f"it is sealed with a {head.kind}, and none was given")
        pieces = unseal(file, head, secret, name)
        start = b""
        while b"\n" not in start and len(start) < _CONTENTS_BYTES and (piece := next(pieces, b"")):
            start += piece
        line, _, rest = start.partition(b"\n")
        contents = _contents(line, name)
        _spread(contents, rest, pieces, staged, name)
    if why := backup_certs.fault(staged):
        raise invalid(name, why)
    return contents.created_at


def _contents(line: bytes, name: str) -> Contents:
    try:
        contents = msgspec.json.decode(line, type=Contents)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise invalid(name, "what is sealed in it is no backup of FLM's") from None
    names = [each.name for each in contents.files if each.name != AUDIT_LOG and not backup_certs.belongs(each.name)]
    if sorted(names) != sorted(_ALWAYS):
        raise invalid(
            name, f"FLM {contents.flm} made it of other files than this FLM ({__version__}) knows; upgrade FLM"
        )
    return contents


def _spread(contents: Contents, start: bytes, pieces: Iterator[bytes], staged: Path, name: str) -> None:
    waiting = start
    for each in contents.files:
        left = each.bytes
        secure_folder((staged / each.name).parent)
        with open(create_file(staged / each.name), "wb") as file:
            while left > 0 and (waiting := waiting or next(pieces, b"")):
                file.write(waiting[:left])
                left, waiting = left - len(waiting[:left]), waiting[left:]
        if left:
            raise invalid(name, "what is sealed in it ends too early")
    if waiting or next(pieces, b""):  # asking for the end verifies it
        raise invalid(name, "what is sealed in it is longer than it says")


def _take_copies(kept: Path, staged: Path) -> tuple[str, ...]:
    """Copy the files of a folder that a restore kept, which stays as it is; the certificates that there were none of.
    Nobody noted when they were current."""
    if not _usable(kept):
        raise invalid(str(kept), "it is no folder of former files, or they were not whole when they were kept")
    certs, absent = backup_certs.of_former(kept)
    for name in (*_ALWAYS, AUDIT_LOG, *certs):
        if (kept / name).exists():
            secure_folder((staged / name).parent)
            with open(create_file(staged / name), "wb") as copy, open(kept / name, "rb") as original:
                shutil.copyfileobj(original, copy)
    return absent


def _usable(kept: Path) -> bool:
    try:
        return usable(kept) and not backup_certs.fault(kept)
    except OSError:
        return False


def _way_back(folder: Folder, kept: Path | None) -> str:
    if kept is None:
        restored = [str(path) for name, path in members(folder).items() if name in _ALWAYS]
        restored += [str(folder.certs)] if folder.certs.exists() else []
        return f"there was nothing before: move {', '.join(restored)} away"
    if _usable(kept):
        elsewhere = []
        for option, path in (("config", folder.config), ("security", folder.security)):
            if path != folder.root / f"{option}.db":
                elsewhere += [f"--db-path-{option}", str(path)]
        return shlex.join(["flm", "security", "backup", "restore", *elsewhere, str(kept)])
    return f"the files that were there before were not whole, so no command takes them; they are in {kept}"


@contextlib.contextmanager
def _plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if str(where) == str(path) and isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            raise CommandError(CommandCode.USAGE, f"{path}: {error.strerror}; nothing was changed") from None
        raise CommandError(
            CommandCode.IO_ERROR, f"nothing was changed: {error.strerror or error} ({where}); mend that and try again"
        ) from None

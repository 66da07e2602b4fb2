"""Private files and folders: nobody else reads them, from the first byte on, and whoever reads them finds them whole.

Strategy: a folder is 0700 and a file 0600 whatever the umask: made with its mode and O_EXCL, never by a library that
would pick a mode. What is written goes to a file beside it, to the disk, and only then gets its name. The writer holds
a lock (flock) on that file while it lives, so the next one can tell what a killed one left behind, and removes it,
whatever the clock says. What is there is looked at before it is used: a symbolic link, another user's file or something
that is no file is refused, a file of ours that others may read is tightened, with a warning.

Knows nothing of what is in them. Blocking: calls a local file system, so on an event loop it runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flm.disk.locks import try_lock
from flm.errors import CommandCode, CommandError

_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_OTHERS: Final = 0o077
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOKING: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would make us wait

_NOT_YOURS: Final = "; run flm as a user who may do that, or name another folder (FLM_HOME)"
_NEXT_STEPS: Final = {
    errno.EACCES: _NOT_YOURS,
    errno.EPERM: _NOT_YOURS,
    errno.EROFS: "; mount its file system so that it can be written, or name another folder (FLM_HOME)",
    errno.ENOSPC: "; free space (df), and try again",
    errno.EDQUOT: "; free space within your quota, and try again",
}

log = logging.getLogger("flm.disk")


def secure_folder(path: Path) -> None:
    """Let `path` be a folder of ours with mode 0700, made with its parents if need be. Raises IO_ERROR."""
    try:
        for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
            _make_folder(missing)  # private too: who may write there could put another folder in the place of ours
        _refuse_link(path, os.lstat(path))
        descriptor = os.open(path, _LOOKING)
        try:
            _tighten(path, os.fstat(descriptor), _PRIVATE_FOLDER, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused_by_system("used", path, error) from None


def secure_file(path: Path) -> int:
    """Check one secret file, tightening its mode if others may read it, and return its size; -1 if it is not there.

    By its name alone: closing a second descriptor of a database would drop SQLite's locks on it. Raises IO_ERROR if it
    is a symbolic link, not a regular file, or another user's.
    """
    try:
        found = os.lstat(path)
        _tighten(path, found, _PRIVATE_FILE, path)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise _refused_by_system("used", path, error) from None
    return found.st_size


def create_file(path: Path) -> int:
    """Create an empty 0600 file that was not there, and return its descriptor. Raises FileExistsError, IO_ERROR."""
    try:
        return _create(path)
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused_by_system("made", path, error) from None


def read_file(path: Path, limit: int) -> bytes | None:
    """The first `limit` bytes of a secret file; None if it is not there. Raises IO_ERROR as `secure_file`."""
    try:
        _refuse_link(path, os.lstat(path))
        descriptor = os.open(path, _LOOKING)
        try:
            _tighten(path, os.fstat(descriptor), _PRIVATE_FILE, descriptor)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused_by_system("read", path, error) from None


def write_new_file(path: Path, data: bytes) -> bool:
    """Put a whole 0600 file in place at once. False if the name is taken, and then nothing changed. Raises IO_ERROR."""
    try:
        with _written_beside(path, data) as temporary:
            os.link(temporary, path, follow_symlinks=False)
        sync(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise _refused_by_system("written", path, error) from None
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Let `path` be a 0600 file with `data`, on the disk, or leave it as it was. Makes its folder, 0700, if need be.

    Raises IO_ERROR. Two writers at once leave the whole of one of them.
    """
    secure_folder(path.parent)
    try:
        with _written_beside(path, data) as temporary:
            os.rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise _refused_by_system("written", path, error) from None


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # through links: a folder may be what somebody has named
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A file with `data`, on the disk, to be given its name; what was not is gone afterwards."""
    _sweep(path)
    temporary, descriptor = _create_beside(path)
    try:
        with open(descriptor, "wb") as file:  # its lock ends with it, when the file has its name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _create_beside(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path`, and its descriptor, which holds the lock that says it is in use."""
    while True:
        temporary = path.with_name(f"{_beginning(path)}{os.getpid()}.{time.monotonic_ns()}")
        descriptor = _create(temporary)
        if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # somebody who swept was between our two steps: it takes the file away


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it."""
    for left in path.parent.glob(f"{_beginning(path)}*"):
        try:
            descriptor = os.open(left, _LOOKING)
        except OSError:
            continue  # it has its name by now, or is none of ours
        try:
            if try_lock(descriptor):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
        finally:
            os.close(descriptor)


def _beginning(path: Path) -> str:
    return f".{path.name}.new."


def _create(path: Path) -> int:
    descriptor = os.open(path, _NEW, _PRIVATE_FILE)
    os.fchmod(descriptor, _PRIVATE_FILE)  # a umask may have taken away bits that we need ourselves
    return descriptor


def _make_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _PRIVATE_FOLDER)
        os.chmod(path, _PRIVATE_FOLDER)  # as for a file


def _tighten(path: Path, found: os.stat_result, mode: int, at: Path | int) -> None:
    """Refuse what is not ours, and change what others may read. `at`: `path`, or a descriptor of it."""
    _refuse_link(path, found)
    expected = stat.S_ISDIR if mode == _PRIVATE_FOLDER else stat.S_ISREG
    if not expected(found.st_mode):
        noun = "a folder" if mode == _PRIVATE_FOLDER else "a regular file"
        raise _refused(path, f"it is not {noun}", "move it away")
    if found.st_uid != os.geteuid():
        raise _refused(
            path,
            f"it belongs to user id {found.st_uid}, and flm runs as user id {os.geteuid()}",
            "run flm as that user, or take it over (chown) if you trust what is in it",
        )
    if found.st_mode & _OTHERS:
        log.warning("%s could be read by others (mode %o); now it is %o", path, stat.S_IMODE(found.st_mode), mode)
        os.chmod(at, mode)


def _refuse_link(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _refused(path, "it is a symbolic link", "put the real thing there, or point FLM_HOME at the real folder")


def _refused(path: Path, why: str, next_step: str) -> CommandError:
    return CommandError(CommandCode.IO_ERROR, f"{path} is not used for secrets: {why}; {next_step}")


def _refused_by_system(verb: str, path: Path, error: OSError) -> CommandError:
    next_step = _NEXT_STEPS.get(error.errno or 0, "")
    return CommandError(CommandCode.IO_ERROR, f"{path} could not be {verb}: {error.strerror or error}{next_step}")

"""The files of certificates and keys: private from the first byte, and always whole.

Strategy: a pair is one file, so that key and certificate change in one rename. What is written goes to a file beside
it, to the disk, and only then gets its name: whoever reads finds the old content or the new one. The writer holds a
lock (flock) on that file while it lives, so the next one can tell what a killed one left behind, and removes it,
whatever the clock says. What is there is looked at before it is used: a link, another user's file or something that is
no file is refused, a file of ours that others may read is tightened, with a warning.

Knows no certificate but that a pair can be read. Blocking, so on an event loop it runs in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flm.errors import CommandCode, CommandError
from flm.tls import pair as pairs
from flm.tls.pair import MAX_PEM_BYTES, Pair

MAX_BYTES: Final = 4 * MAX_PEM_BYTES  # of any file here: a pair, or the notes of an order with its certificates
LOCK_SECONDS: Final = 30.0  # far longer than a key takes to make; after it, somebody hangs
_LOCK_POLL_SECONDS: Final = 0.01
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_OTHERS: Final = 0o077
_HOST_CHARACTERS: Final = 100  # of a folder's name; file systems allow 255 bytes
_HASH_CHARACTERS: Final = 12

log = logging.getLogger("flm.tls")


def folder_of(directory_url: str) -> str:
    """The name of the folder for what belongs to one CA: its host, for people, and a hash of the whole URL."""
    try:
        host = urlsplit(directory_url).netloc.lower().rpartition("@")[2]
    except ValueError:
        host = ""
    readable = re.sub(r"[^a-z0-9.-]", "_", host)[:_HOST_CHARACTERS].lstrip(".") or "ca"
    return f"{readable}-{hashlib.sha256(directory_url.encode(errors='surrogatepass')).hexdigest()[:_HASH_CHARACTERS]}"


def write_atomically(path: Path, data: bytes) -> None:
    """Let `path` be a 0600 file with `data`, on the disk, or leave it as it was. Makes its folder, 0700, if need be.

    Raises IO_ERROR. Two writers at once leave the whole of one of them.
    """
    make_folder(path.parent)
    try:
        _sweep(path)
        temporary, descriptor = _create_beside(path)
        try:
            with open(descriptor, "wb") as file:  # its lock ends with it, when the file has its name or is gone
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused_by_system("written", path, error) from None


def read_private(path: Path) -> bytes | None:
    """What a file of ours holds; None if it is not there.

    One that others may read is tightened, with a warning. Raises IO_ERROR if it is a link, no regular file, another
    user's, or larger than MAX_BYTES.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would make us wait
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise _refused(path, "it is a symbolic link", "put the real file there")
        with open(os.open(path, flags), "rb") as file:
            _tighten(path, file.fileno(), _PRIVATE_FILE)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused_by_system("read", path, error) from None
    if len(data) > MAX_BYTES:
        raise _refused(path, f"it is larger than {MAX_BYTES} bytes", "move it away")
    return data


def read_pair(path: Path) -> Pair | None:
    """The pair a file holds; None if it is not there. Raises IO_ERROR as `read_private`, PROXY_CERT_FAILED as
    `pair.read`, which then names the file."""
    data = read_private(path)
    if data is None:
        return None
    try:
        return pairs.read(data)
    except CommandError as error:
        raise CommandError(error.code, f"{path}: {error.message}") from None


def make_folder(path: Path) -> None:
    """Let `path` be a folder of ours with mode 0700, and its parents too if they are not there. Raises IO_ERROR."""
    try:
        for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
            with contextlib.suppress(FileExistsError):
                os.mkdir(missing, _PRIVATE_FOLDER)
                os.chmod(missing, _PRIVATE_FOLDER)  # a umask may have taken away bits that we need ourselves
        if path.is_symlink():
            raise _refused(path, "it is a symbolic link", "put the real folder there")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _tighten(path, descriptor, _PRIVATE_FOLDER)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused_by_system("used", path, error) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that makes something in `folder`, which is made if need be. The lock is on the folder itself
    (flock): it leaves no file and dies with its holder. Raises IO_ERROR after LOCK_SECONDS."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise CommandError(
                    CommandCode.IO_ERROR,
                    f"another flm has been at work in {folder} for {LOCK_SECONDS:g} s; "
                    "see whether it hangs (ps), end it, and try again",
                )
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _create_beside(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path`, and its descriptor, which holds the lock that says it is in use."""
    while True:
        temporary = path.with_name(f"{_beginning(path)}{os.getpid()}.{time.monotonic_ns()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, _PRIVATE_FILE)
        if _try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            os.fchmod(descriptor, _PRIVATE_FILE)  # as for a folder
            return temporary, descriptor
        os.close(descriptor)  # somebody who swept was between our two steps: it takes the file away


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it."""
    for left in path.parent.glob(f"{_beginning(path)}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # it has its name by now, or is none of ours
        try:
            if _try_lock(descriptor):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
        finally:
            os.close(descriptor)


def _beginning(path: Path) -> str:
    return f".{path.name}.new."


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tighten(path: Path, descriptor: int, mode: int) -> None:
    found = os.fstat(descriptor)
    if mode == _PRIVATE_FOLDER and not stat.S_ISDIR(found.st_mode):
        raise _refused(path, "it is not a folder", "move it away")
    if mode == _PRIVATE_FILE and not stat.S_ISREG(found.st_mode):
        raise _refused(path, "it is not a regular file", "move it away")
    if found.st_uid != os.geteuid():
        raise _refused(
            path,
            f"it belongs to user id {found.st_uid}, and flm runs as user id {os.geteuid()}",
            "run flm as that user, or take it over (chown) if you trust what is in it",
        )
    if found.st_mode & _OTHERS:
        log.warning("%s could be read by others (mode %o); now it is %o", path, stat.S_IMODE(found.st_mode), mode)
        os.fchmod(descriptor, mode)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, why: str, next_step: str) -> CommandError:
    return CommandError(CommandCode.IO_ERROR, f"{path} is not used for keys: {why}; {next_step}")


def _refused_by_system(verb: str, path: Path, error: OSError) -> CommandError:
    return CommandError(CommandCode.IO_ERROR, f"{path} could not be {verb}: {error.strerror or error}")

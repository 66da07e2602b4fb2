"""The data folder and its secret files: where they are, and that nobody else reads them.

Strategy: the folder is 0700 and every file in it 0600 from the first byte, whatever the umask: made with its mode and
O_EXCL, never by a library that would pick a mode. What is there already is looked at before it is used: a symbolic
link or another user's file is refused, a file of ours that others may read is tightened, with a warning.

Knows the names of the files and nothing of what is in them. Blocking: calls a local file system, so on an event loop
it runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from flm.errors import CommandCode, CommandError

LOCK_SECONDS = 30.0  # longer than any creation or migration; after it, somebody hangs
_LOCK_POLL_SECONDS = 0.01
_PRIVATE_FOLDER = 0o700
_PRIVATE_FILE = 0o600
_OTHERS = 0o077

log = logging.getLogger("flm.store")


class Folder(msgspec.Struct, frozen=True):
    """Where everything of one FLM is. `config` and `security` may lie elsewhere (`--db-path-…`); all are absolute."""

    root: Path
    config: Path
    security: Path

    @property
    def pepper(self) -> Path:
        """The key of the hash of all API keys."""
        return self.root / "pepper"

    @property
    def audit(self) -> Path:
        """The audit log, a database whose loss the others survive."""
        return self.root / "audit.db"

    @property
    def run(self) -> Path:
        """What belongs to the running proxy: lock, identity, control socket, mapped files."""
        return self.root / "run"

    @property
    def certs(self) -> Path:
        """Certificates with their keys, and accounts at certificate authorities. Not part of a backup."""
        return self.root / "certs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"


def locate(environment: Mapping[str, str], *, config: str | None = None, security: str | None = None) -> Folder:
    """The data folder: `FLM_HOME`, else the user's own (platformdirs). Touches nothing."""
    home = environment.get("FLM_HOME", "")
    if home:
        root = Path(home).expanduser()
    else:
        import platformdirs

        root = platformdirs.user_data_path("flm", appauthor=False)
    root = Path(os.path.abspath(root))
    return Folder(
        root=root,
        config=Path(os.path.abspath(config)) if config else root / "config.db",
        security=Path(os.path.abspath(security)) if security else root / "security.db",
    )


def secure_folder(path: Path) -> None:
    """Make `path` a folder of ours with mode 0700, with its parents if need be. Raises IO_ERROR."""
    try:
        for missing in reversed([parent for parent in path.parents if not parent.exists()]):
            _make_folder(missing)  # private too: who may write there could put another folder in the place of ours
        _make_folder(path)
        _tighten(path, os.lstat(path), _PRIVATE_FOLDER)
    except OSError as error:
        raise _refused_by_system("the data folder", path, error) from None


def secure_file(path: Path) -> int:
    """Check one secret file, tightening its mode if others may read it, and return its size; -1 if it is not there.

    Raises IO_ERROR if it is a symbolic link, not a regular file, or another user's.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise _refused_by_system("a secret file", path, error) from None
    try:
        _tighten(path, found, _PRIVATE_FILE)
    except OSError as error:
        raise _refused_by_system("a secret file", path, error) from None
    return found.st_size


def create_file(path: Path) -> int:
    """Create an empty 0600 file that was not there, and return its descriptor. Raises FileExistsError, IO_ERROR."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, _PRIVATE_FILE)
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused_by_system("a new file", path, error) from None
    os.fchmod(descriptor, _PRIVATE_FILE)  # as for a folder
    return descriptor


def read_file(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a secret file. Raises IO_ERROR; FileNotFoundError if it is not there."""
    if secure_file(path) < 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise _refused_by_system("a secret file", path, error) from None


def write_new_file(path: Path, content: bytes) -> bool:
    """Put a whole 0600 file in place at once, on disk before it has its name. False if the name is taken already."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with open(create_file(temporary), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            return False
        sync_folder(path.parent)
    except OSError as error:
        raise _refused_by_system("a new file", path, error) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return True


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(root: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder for oneself while databases are created, migrated or replaced; `shared`: with others who only
    open them. The lock is on the folder itself (flock), so it leaves no file and dies with its holder.
    Raises DB_ERROR after LOCK_SECONDS.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise CommandError(
                    CommandCode.DB_ERROR,
                    f"another flm has been preparing the databases in {root} for {LOCK_SECONDS:g} s; "
                    "see whether it hangs (ps), end it, and try again",
                )
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _PRIVATE_FOLDER)
        os.chmod(path, _PRIVATE_FOLDER)  # a umask may have taken away bits that we need ourselves


def _tighten(path: Path, found: os.stat_result, mode: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _refused(path, "it is a symbolic link", "put the real thing there, or point FLM_HOME at the real folder")
    expected = stat.S_ISDIR if mode == _PRIVATE_FOLDER else stat.S_ISREG
    if not expected(found.st_mode):
        noun = "a folder" if mode == _PRIVATE_FOLDER else "a regular file"
        raise _refused(path, f"it is not {noun}", "move it away")
    if found.st_uid != os.geteuid():
        raise _refused(
            path,
            f"it belongs to user id {found.st_uid}, and flm runs as user id {os.geteuid()}",
            "run flm as that user, or take the file over (chown) if you trust what is in it",
        )
    if found.st_mode & _OTHERS:
        log.warning("%s could be read by others (mode %o); now it is %o", path, stat.S_IMODE(found.st_mode), mode)
        os.chmod(path, mode)  # by name: closing a second descriptor of a database would drop SQLite's locks on it


def _refused(path: Path, why: str, next_step: str) -> CommandError:
    return CommandError(CommandCode.IO_ERROR, f"{path} is not used for secrets: {why}; {next_step}")


def _refused_by_system(what: str, path: Path, error: OSError) -> CommandError:
    return CommandError(CommandCode.IO_ERROR, f"{what} cannot be used: {error.strerror or error} ({path})")

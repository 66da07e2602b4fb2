"""Which proxy runs in a data folder: the lock that proves it, and the record that names it.

The proof is a held `flock` on `run/lock` **and** a record whose pid, start time and boot id fit a living process; a pid
alone proves nothing (it may be reused), nor does a file (it may be left over). The lock belongs to an open file
description: whoever starts a supervisor takes it and hands the descriptor on, and it survives exec.

Knows no socket, no worker, no settings. Blocking, but only on a local file system and /proc (or one call of `ps`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from flm import __version__
from flm.errors import CommandCode, CommandError
from flm.runtime.boot import Served

ACQUIRE_SECONDS: Final = 2.0  # a `status` holds the lock for microseconds, a `start` for longer: see `acquire`
_POLL_SECONDS: Final = 0.01
# To look at a file of ours: were it a FIFO, opening it would otherwise wait for its other end for ever.
_LOOKING: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LINUX = sys.platform.startswith("linux")
_START_TIME: Final = 19  # field 22 of the line, counted from the state (field 3)
_RECORD_BYTES: Final = 65_536  # far more than a record has; a decoy of a gigabyte is not read


class Instance(msgspec.Struct, frozen=True):
    """One running proxy. `start_time` is the process's own, in whatever unit the system gives; times are RFC 3339.
    `https_port`: 0 where there is no HTTPS."""

    id: str
    pid: int
    start_time: str
    boot_id: str
    mode: str
    address: str
    port: int
    version: str
    started_at: str
    https_port: int = 0


class ProcessIdentity(msgspec.Struct, frozen=True):
    """What tells a process from a later one with the same pid."""

    start_time: str
    boot_id: str


def lock_path(run: Path) -> Path:
    return run / "lock"


def record_path(run: Path) -> Path:
    return run / "instance.json"


def acquire(run: Path, timeout: float = ACQUIRE_SECONDS) -> int | None:
    """Take the lock of this folder: its descriptor, or None if another proxy has it.

    The lock may be held for a moment by somebody who only looks, or by a `start` that is not far enough to have a
    record; so a lock without a proxy is tried again for `timeout` seconds, a lock with one is given up at once.
    """
    descriptor = os.open(lock_path(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout
    while not _try(descriptor, fcntl.LOCK_EX):
        if _recorded_process_lives(run) or time.monotonic() >= deadline:
            os.close(descriptor)
            return None
        time.sleep(_POLL_SECONDS)
    return descriptor


def is_locked(run: Path) -> bool:
    """Whether somebody holds the lock: a proxy that runs, starts or stops."""
    try:
        descriptor = os.open(lock_path(run), _LOOKING)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def holds(run: Path, lock: int) -> bool:
    """Whether the folder's lock still is the one behind `lock`: not when the folder, or the file, was taken away."""
    try:
        there = os.stat(lock_path(run), follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(lock))


def running(run: Path) -> Instance | None:
    """The proxy that runs in this folder, if one does: lock held, and the recorded process is the one that lives."""
    instance = read(run)
    if instance is None or not _lives(instance) or not is_locked(run):
        return None
    return instance


def refuse_unseen(run: Path) -> None:
    """Raises IO_ERROR if it cannot be seen whether a proxy runs in this folder: `running` says None of that, too."""
    try:
        os.lstat(lock_path(run))
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(
            CommandCode.IO_ERROR,
            f"whether a proxy runs in {run.parent} cannot be seen: {error.strerror or error}; run flm as the user "
            "whose folder that is, or set FLM_HOME to the folder you mean",
        ) from None


def read(run: Path) -> Instance | None:
    """The record as it stands, or None if there is none that can be read. Says nothing about what runs."""
    try:
        with open(os.open(record_path(run), _LOOKING), "rb") as file:
            return msgspec.json.decode(file.read(_RECORD_BYTES), type=Instance)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write(run: Path, instance: Instance) -> None:
    """Replace the record at once. Raises OSError."""
    temporary = run / f".instance.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(instance))
    os.replace(temporary, record_path(run))


def remove(run: Path) -> None:
    """Take the record away, as the last thing a proxy does before it lets the lock go."""
    with contextlib.suppress(OSError):
        record_path(run).unlink()


def identify(pid: int) -> ProcessIdentity | None:
    """What tells the living process `pid` from others; None if there is no such process."""
    started = _linux_start_time(pid) if _LINUX else _ps_start_time(pid)
    return ProcessIdentity(started, boot_id()) if started else None


def boot_id() -> str:
    """A name for this boot of the machine: pids and start times of another boot mean nothing."""
    if _LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return _output_of("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid") or "unknown"


def _lives(instance: Instance) -> bool:
    identity = identify(instance.pid)
    return identity == ProcessIdentity(instance.start_time, instance.boot_id)


def announce(run: Path, instance_id: str, served: Served, address: str, started_at: str) -> None:
    """Write the record of this process as the proxy of a folder. Raises IO_ERROR, OSError."""
    me = identify(os.getpid())
    if me is None:
        raise CommandError(CommandCode.IO_ERROR, "the system does not say when this process was started")
    record = Instance(
        id=instance_id,
        pid=os.getpid(),
        start_time=me.start_time,
        boot_id=me.boot_id,
        mode=served.mode,
        address=address,
        port=served.port,
        https_port=served.https_port,
        version=__version__,
        started_at=started_at,
    )
    write(run, record)


def forget(run: Path, lock: int) -> None:
    """Remove what a proxy leaves in its folder that nobody needs afterwards, if the folder is still its own."""
    if not holds(run, lock):
        return  # what is there now, if anything, is another proxy's
    remove(run)
    for name in ("control.sock", "shared", "keyring"):
        with contextlib.suppress(OSError):
            (run / name).unlink()


def _recorded_process_lives(run: Path) -> bool:
    instance = read(run)
    return instance is not None and _lives(instance)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _linux_start_time(pid: int) -> str | None:
    """Field 22 of /proc/pid/stat (proc(5)): clock ticks after boot. The name before it may hold blanks and `)`.

    None for a zombie: it is dead, and only waits for its parent, which may take its time.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 1 :].split()
    if len(fields) <= _START_TIME or fields[0] in (b"Z", b"X"):
        return None
    return fields[_START_TIME].decode("ascii")


def _ps_start_time(pid: int) -> str | None:
    """The start time as `ps` prints it, to the second: what macOS offers without private calls."""
    return _output_of("/bin/ps", "-o", "lstart=", "-p", str(pid)) if pid > 0 else None


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=5, check=False)  # noqa: S603 - fixed programs
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None

"""The mapped files of a supervisor and its workers: shared memory, keyring, token buckets, rings of audit rows.

Made anew at each start, kept over exec as long as their layout is this version's. The buckets are kept over starts too,
however the proxy before ended: who stops or kills it gives nobody a fresh burst. They are made anew after a reboot,
when the clock they count by begins anew. The rings are kept too: they hold what the proxy before did not live to store.
The shared memory's file is locked
(shared) by whoever has it from this supervisor: as long as a worker lives, also one whose supervisor was killed, the
lock tells. Knows nothing of what is published.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from flm._native import Buckets, Keyring, NativeError, Rings, Shared
from flm.errors import CommandCode, CommandError
from flm.runtime import instance
from flm.snapshot import Snapshot, decode

CELLS: Final = 1024  # worker processes at once, draining ones included: what the layout allows, 320 bytes each
SNAPSHOT_BYTES: Final = 1 << 26  # engines with thousands of models; sparse, so unused room costs nothing
ORPHANS_SECONDS: Final = 10.0  # they end within 2 s; more on a machine that is short of everything
_POLL_SECONDS: Final = 0.02
BUCKETS: Final = "buckets"  # the file's name in the runtime folder
RINGS: Final = "audit"  # likewise
RING_BYTES: Final = 1 << 19  # some 2,800 rows: a second of the fastest worker; on disk for the cells in use only
FEWEST_KEYS: Final = 16_384  # 6 MiB of disk; a table has room for several times the keys there are

log = logging.getLogger("flm.supervisor")


class Memory:
    """All files, open and mapped, with their descriptors for the workers to inherit."""

    def __init__(
        self,
        shared: Shared,
        keyring: Keyring,
        buckets: Buckets,
        rings: Rings,
        *,
        shared_fd: int,
        keyring_fd: int,
        buckets_fd: int,
        rings_fd: int,
    ) -> None:
        self.shared = shared
        self.keyring = keyring
        self.buckets = buckets
        self.rings = rings
        self.shared_fd = shared_fd
        self.keyring_fd = keyring_fd
        self.buckets_fd = buckets_fd
        self.rings_fd = rings_fd

    @classmethod
    def create(cls, run: Path, keys: int) -> Self:
        """The buckets and rings of the proxy before, if there are any, and else new files in the runtime folder, with
        room for several times `keys` keys. Raises OSError, IO_ERROR."""
        shared_fd, keyring_fd = _new_file(run / "shared"), _new_file(run / "keyring")
        fcntl.flock(shared_fd, fcntl.LOCK_SH)  # inherited with the descriptor, gone with its last copy
        capacity = max(FEWEST_KEYS, 4 * keys)
        try:
            shared, keyring = Shared.create(shared_fd, CELLS, SNAPSHOT_BYTES), Keyring.create(keyring_fd, capacity)
            buckets, buckets_fd = open_buckets(run) or _new_buckets(run)
            rings, rings_fd = _open_rings(run) or _new_rings(run)
        except NativeError as error:
            message = f"the shared memory cannot be made in {run}: {error}; see that its disk has room"
            raise CommandError(CommandCode.IO_ERROR, message) from None
        return cls(
            shared,
            keyring,
            buckets,
            rings,
            shared_fd=shared_fd,
            keyring_fd=keyring_fd,
            buckets_fd=buckets_fd,
            rings_fd=rings_fd,
        )

    @classmethod
    def adopt(cls, shared_fd: int, keyring_fd: int, buckets_fd: int, rings_fd: int) -> Self | None:
        """The files of this process before it exec'd, or None if their layout is another version's."""
        try:
            shared, keyring = Shared.attach(shared_fd), Keyring.open_writer(keyring_fd)
            buckets, rings = Buckets.attach(buckets_fd, name_of_boot()), Rings.attach(rings_fd)
        except NativeError:
            return None
        return cls(
            shared,
            keyring,
            buckets,
            rings,
            shared_fd=shared_fd,
            keyring_fd=keyring_fd,
            buckets_fd=buckets_fd,
            rings_fd=rings_fd,
        )

    def prepare(self, cell: int) -> None:
        """Make a cell ready for a new worker. Without room on the disk its audit rows are dropped, and counted, until
        another call succeeds."""
        self.shared.beat(cell, time.monotonic_ns() // 1_000_000)
        with contextlib.suppress(NativeError):
            self.rings.prepare(cell)

    def published(self) -> Snapshot | None:
        """The snapshot in force; None if there is none, or one of another version's shape."""
        try:
            return decode(self.shared.snapshot()[1])
        except (msgspec.MsgspecError, NativeError):
            return None


def name_of_boot() -> bytes:
    """What buckets know this boot of the machine by, after which the monotonic clock begins anew."""
    return hashlib.blake2b(instance.boot_id().encode(), digest_size=16).digest()


def open_buckets(run: Path) -> tuple[Buckets, int] | None:
    """The buckets of the proxy that runs in this folder, or ran last, and their descriptor, which is the caller's.

    None if there are none, or none of this boot and this version's layout.
    """
    try:
        descriptor = os.open(run / BUCKETS, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return Buckets.attach(descriptor, name_of_boot()), descriptor
    except NativeError:
        os.close(descriptor)
        return None


def _new_buckets(run: Path) -> tuple[Buckets, int]:
    descriptor = _new_file(run / BUCKETS)
    return Buckets.create(descriptor, name_of_boot()), descriptor


def _open_rings(run: Path) -> tuple[Rings, int] | None:
    try:
        descriptor = os.open(run / RINGS, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return Rings.attach(descriptor), descriptor
    except NativeError as error:
        log.warning("audit rows that the proxy before had not stored are lost: %s: %s", run / RINGS, error)
        os.close(descriptor)
        return None


def _new_rings(run: Path) -> tuple[Rings, int]:
    descriptor = _new_file(run / RINGS)
    return Rings.create(descriptor, CELLS, RING_BYTES), descriptor


def orphans(run: Path) -> bool:
    """Whether workers of a proxy that was killed are still there, holding its port. They end within two seconds.

    Asked by who holds the folder's lock, or sees that nobody does.
    """
    try:
        descriptor = os.open(run / "shared", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # no proxy has been killed here: an orderly end removes it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def wait_for_orphans(run: Path) -> None:
    """Return when they are gone, or will not go. Blocking."""
    deadline = time.monotonic() + ORPHANS_SECONDS
    while orphans(run) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _new_file(path: Path) -> int:
    path.unlink(missing_ok=True)  # of a proxy that is gone: its workers, if any are left, keep what they mapped
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

"""The compiled module: API keys, the keyring, the shared memory, the token buckets and the rings of rows.

Every integer argument is checked: a negative number, or one too large for its field, is an OverflowError. Times are
whole milliseconds, those of buckets whole nanoseconds; which clock they come from is said with each. No text of an
error holds a byte of a key, digest or pepper.
"""

from typing import Final, final

__all__ = [
    "ADDRESS_BUCKETS",
    "ADDRESS_OVERFLOW",
    "CONNECTIONS",
    "COUNTERS",
    "ERRORS",
    "FAILURE_BUCKETS",
    "FAILURE_OVERFLOW",
    "GLOBAL_BUCKET",
    "IN_FLIGHT",
    "KEY_BUCKETS",
    "KEY_PATTERN",
    "LAYOUT_VERSION",
    "LOG_DROPPED",
    "REQUESTS",
    "SALT_BYTES",
    "Buckets",
    "Keyring",
    "NativeError",
    "Rings",
    "Shared",
    "generate_key",
    "hash_secret",
    "json_values",
    "key_id",
]

LAYOUT_VERSION: Final[int]
"""Version of the layout of the mapped files. A file of another version is refused with NativeError."""

KEY_PATTERN: Final[str]
"""Regular expression of a key, to be matched whole (`re.fullmatch`), for logs to redact and secret scanners to find.

A key is `flm_` + id (12 characters) + `_` + secret (43, 256 bits) + checksum (6, the CRC-32 of the 60 characters
before it); id, secret and checksum in base62. What matches may still be no key: `key_id` checks the checksum too.
"""

SALT_BYTES: Final[int]
"""Length of a salt: 16."""

COUNTERS: Final[int]
"""Counters of each worker slot: 32. Those without a name below are free."""

IN_FLIGHT: Final[int]
"""Counter: requests being answered (goes up and down)."""

REQUESTS: Final[int]
"""Counter: requests accepted."""

ERRORS: Final[int]
"""Counter: requests that ended in an error of FLM's or the engine's."""

LOG_DROPPED: Final[int]
"""Counter: log lines dropped because the pipe to the supervisor was full."""

CONNECTIONS: Final[int]
"""Counter: open client connections (goes up and down)."""

GLOBAL_BUCKET: Final[int]
"""Kind of bucket: the one of all requests. Its number is 0."""

KEY_BUCKETS: Final[int]
"""Kind of bucket: one for each key. Its number is the key's slot."""

ADDRESS_BUCKETS: Final[int]
"""Kind of bucket, and table: one for each client address. Its number is the owner."""

FAILURE_BUCKETS: Final[int]
"""Kind of bucket, and table: one for each client address, for requests whose key is bad. Its number is the owner."""

ADDRESS_OVERFLOW: Final[int]
"""Kind of bucket: shared by addresses whose place in ADDRESS_BUCKETS was taken. Its number is the last owner."""

FAILURE_OVERFLOW: Final[int]
"""Kind of bucket: shared by addresses whose place in FAILURE_BUCKETS was taken. Its number is the last owner."""

class NativeError(Exception):
    """A native object cannot do what was asked; the text says why: a file of another layout or damaged, buckets of
    another boot, a full keyring, a snapshot too large, a reader asked to write, a slot or counter that does not exist,
    a system call that failed."""

def generate_key() -> tuple[str, str]:
    """Make a new key from the system's random source: (the whole key, its id).

    The key is shown to the person once and never stored. NativeError if the system gives no random bytes.
    """

def key_id(presented: bytes) -> str | None:
    """The id of a presented key if its length, characters and checksum are right, else None. Says nothing about
    validity."""

def hash_secret(pepper: bytes, salt: bytes, presented: str) -> bytes:
    """What is stored of a key: HMAC-SHA256(pepper, salt || secret), 32 bytes.

    `pepper` has at least 32 bytes, `salt` exactly SALT_BYTES (16) random ones of this key's own, `presented` is the
    whole key. ValueError if one of them is malformed.
    """

def json_values(text: bytes, most: int) -> int:
    """How many values a JSON text holds: the commas, `[` and `{` outside its strings, without parsing it.

    `most + 1` as soon as there are more than `most`. What is not JSON gives some number. About a gigabyte a second; the
    interpreter's lock is not held meanwhile.
    """

@final
class Keyring:
    """A table of keys in a mapped file: one writing process (the supervisor), any number of readers (the workers).

    Readers take no lock and never wait; they see each key's former record or its new one, never a mixture, also when
    the writer is killed in the middle of a change. Two writers at once would damage the table: whoever opens one for
    writing holds the folder's lock. The file must not be shortened while it is mapped. The descriptor may be closed
    after the call.
    """

    @staticmethod
    def create(fd: int, capacity: int) -> Keyring:
        """Lay out a table for up to `capacity` keys (1 to 1048576; 384 bytes of disk for each, rounded up to a power
        of two) in the empty file behind `fd`, opened for reading and writing, and be its writer.

        The disk space is taken at once. ValueError if the capacity is out of bounds; NativeError if the file is not
        empty (others may have it mapped: make a new file and rename it) or there is no room.
        """

    @staticmethod
    def attach(fd: int, pepper: bytes) -> Keyring:
        """Map a table read-only, to verify keys under `pepper` (at least 32 bytes, else ValueError).

        NativeError if the file is not a complete keyring of this LAYOUT_VERSION.
        """

    @staticmethod
    def open_writer(fd: int) -> Keyring:
        """Take an existing table over as its writer, after the former writer exec'd, ended or was killed.

        NativeError if the file is not a complete keyring of this LAYOUT_VERSION: then make a new one.
        """

    def upsert(
        self, key_id: str, slot: int, salt: bytes, digest: bytes, expires_at_ms: int, revoked: bool, scopes: int
    ) -> None:
        """Add a key, or replace its record; in force for every `verify` that starts after this returns, in any
        process.

        `slot` (0 to 2^32 - 1) is the caller's dense number of the key, given back by `verify`. `salt` has SALT_BYTES
        (16) bytes, `digest` 32 (`hash_secret`). `expires_at_ms` is a Unix time in milliseconds, 0 for never. `scopes`
        (32 bits) are the caller's bits for what the key may do, given back by `verify`.
        ValueError if an argument is malformed; NativeError if the table is full (revoked and expired keys count) or
        this is a reader.
        """

    def remove(self, key_id: str) -> bool:
        """Take a key out of the table: True if it was there. Errors as for `upsert`."""

    def holds(self, key_id: str) -> bool:
        """Whether the table has this key and it is not revoked; expired or not. ValueError for what is no id."""

    def ids(self) -> list[str]:
        """Ids of all keys in the table, revoked and expired ones too, in no order. Walks the whole table."""

    def __len__(self) -> int:
        """Number of keys in the table, revoked and expired ones too. A reader walks the whole table for it."""

    def verify(self, presented: bytes, now_ms: int) -> tuple[str, int, int] | None:
        """(key id, slot, scopes) of the presented key if it is valid at `now_ms` (Unix time in milliseconds).

        None for every other cause: malformed, unknown, wrong secret, revoked, expired (from `expires_at_ms` on). A
        wrong checksum costs no hash; everything else costs one HMAC and one comparison in constant time, also an
        unknown id, and reads the same memory whether there is such a key or not. NativeError only if this object was
        not made by `attach`, and so has no pepper.
        """

@final
class Shared:
    """Mapped memory of the supervisor and its workers: epoch, snapshot, and heartbeat and counters of each worker
    slot.

    Only the supervisor publishes. The file must not be shortened while it is mapped. The descriptor may be closed
    after the call. Slots are 0 to worker_slots - 1, counters 0 to COUNTERS - 1; others are a NativeError.
    """

    @staticmethod
    def create(fd: int, worker_slots: int, snapshot_capacity: int) -> Shared:
        """Lay out memory for `worker_slots` workers (1 to 1024) and snapshots of up to `snapshot_capacity` bytes (1
        to 2^30) in the empty file behind `fd`, opened for reading and writing.

        The file is sparse: twice the capacity in length, on disk only what was published. ValueError if an argument is
        out of bounds; NativeError if the file is not empty or there is no room.
        """

    @staticmethod
    def attach(fd: int) -> Shared:
        """Map memory that was laid out by `create`, in this process or another; all methods may be called.

        NativeError if the file is not complete shared memory of this LAYOUT_VERSION.
        """

    def publish(self, snapshot: bytes) -> int:
        """Put a snapshot in force and return its epoch, one more than the last. In one process at a time.

        Readers see the former snapshot or this one, whole, also if the publisher is killed meanwhile. What this
        process changed before (keys in the keyring) is seen by every process that sees the epoch. NativeError if the
        snapshot is larger than the capacity or the disk is full; then the former one stays in force.
        """

    def epoch(self) -> int:
        """Number of snapshots published since the file was made: one atomic load, for the first step of each
        request."""

    def snapshot(self) -> tuple[int, bytes]:
        """(epoch, snapshot in force); (0, b"") before the first. Copied again if a publisher came by meanwhile.

        NativeError if that happened 10,000 times in a row.
        """

    def beat(self, slot: int, monotonic_ms: int) -> None:
        """Record that the worker in `slot` was alive at `monotonic_ms` (milliseconds of the monotonic clock)."""

    def last_beat(self, slot: int) -> int:
        """What was given to the last `beat` in this slot; 0 before the first."""

    def add(self, slot: int, counter: int, delta: int) -> None:
        """Add `delta` (-2^63 to 2^63 - 1) to a counter, modulo 2^64; atomic, whoever adds at the same time."""

    def counter(self, slot: int, counter: int) -> int:
        """Value of a counter, 0 to 2^64 - 1."""

    @property
    def worker_slots(self) -> int:
        """Number of worker slots the memory was made for."""

@final
class Buckets:
    """Token buckets in a mapped file, charged by any number of processes at once without a lock.

    A limit is one token each `interval_ns` nanoseconds, and at most `burst` at once; both are 1 at least (ValueError):
    no limit is not a limit. `now_ns` is the monotonic clock's nanoseconds (`time.monotonic_ns`), read right before the
    call; steps of the wall clock mean nothing here, and a `now_ns` that is early grants nothing. All processes
    together are granted the burst and the rate, exactly. A process killed at any moment leaves every bucket as it was
    before its call or after it. The limit is not stored: a changed one holds from the next take on.

    A take gives (allowed, remaining: whole tokens left, full_in_ns: until the bucket is full, next_in_ns: until a take
    would be allowed, 0 while tokens are left). A refused take charges nothing.

    A `give_back_…` returns a token that was taken at `taken_ns` (the `now_ns` of that take) and not used, as when a
    later limit refuses the request. What has refilled meanwhile is not returned a second time, so that nothing is left
    to return after one interval.

    An owner is the caller's number of an address: the upper 64 bits of an IPv6 address, and 0x0000ffff00000000 with an
    IPv4 address in the low 32 bits. The file must not be shortened while it is mapped. The descriptor may be closed
    after the call.
    """

    @staticmethod
    def create(
        fd: int, boot_id: bytes, *, keys: int = 1048576, addresses: int = 262144, overflow: int = 4096
    ) -> Buckets:
        """Lay out full buckets in the empty file behind `fd`, opened for reading and writing.

        `boot_id` names this boot (16 bytes), after which the monotonic clock starts anew. `keys` is the number of key
        slots; each table of addresses has `addresses` buckets and `overflow` ones to share. All are powers of two from
        8 to 2^24. The disk space is taken at once: 8 bytes a key, 32 an address and 32 an overflow bucket, so 16 MiB.
        ValueError if an argument is out of bounds; NativeError if the file is not empty, there is no room, or the
        processor cannot change 16 bytes in one step.
        """

    @staticmethod
    def attach(fd: int, boot_id: bytes) -> Buckets:
        """Map buckets that were laid out by `create`, in this process or another.

        NativeError if the file is not complete buckets of this LAYOUT_VERSION, or is of another boot: then make a new
        one. ValueError if `boot_id` has not 16 bytes.
        """

    def take_global(self, interval_ns: int, burst: int, now_ns: int) -> tuple[bool, int, int, int]:
        """Take a token from the bucket of all requests."""

    def take_key(self, slot: int, interval_ns: int, burst: int, now_ns: int) -> tuple[bool, int, int, int]:
        """Take a token from the bucket of the key in `slot` (0 to key_slots - 1, else NativeError)."""

    def take_address(
        self, table: int, owner: int, interval_ns: int, burst: int, now_ns: int
    ) -> tuple[bool, int, int, int, bool]:
        """Take a token from an owner's bucket in `table` (ADDRESS_BUCKETS or FAILURE_BUCKETS, else ValueError).

        The last value is whether it was an overflow bucket: another owner's bucket is in the one place where this
        owner's may be, and is not full yet, so this owner shares a bucket with others in the same position. A bucket
        that has become full is forgotten when its place is needed.
        """

    def give_back_global(self, interval_ns: int, taken_ns: int, now_ns: int) -> None:
        """Return a token to the bucket of all requests."""

    def give_back_key(self, slot: int, interval_ns: int, taken_ns: int, now_ns: int) -> None:
        """Return a token to the bucket of the key in `slot`. Errors as for `take_key`."""

    def give_back_address(
        self, table: int, owner: int, shared: bool, interval_ns: int, taken_ns: int, now_ns: int
    ) -> None:
        """Return a token to an owner's bucket, or, if `shared` (the last value of the take), to its overflow bucket."""

    def live(self, now_ns: int, most: int) -> list[tuple[int, int, int]]:
        """Buckets that are not full: (kind, number, monotonic nanoseconds when it will be full).

        Of each kind the `most` ones that take longest, those first. Reads the whole file, some milliseconds: not for
        the request path.
        """

    @property
    def key_slots(self) -> int:
        """Number of key slots the buckets were made for."""

@final
class Rings:
    """Rows of bytes from workers to the supervisor, in a mapped file: a ring for each worker slot.

    Each slot has one process that pushes, and all have one that takes and releases; nobody ever waits. A row counts
    once `push` has returned True, also if its process is killed at that moment; killed before, it has pushed nothing.
    Rows stay in the file, whoever ends, until their room is released. Slots are 0 to worker_slots - 1; others are a
    NativeError. The file must not be shortened while it is mapped. The descriptor may be closed after the call.
    """

    @staticmethod
    def create(fd: int, worker_slots: int, ring_bytes: int) -> Rings:
        """Lay out empty rings for `worker_slots` workers (1 to 1024), of `ring_bytes` each (a power of two from 64 to
        2^30), in the empty file behind `fd`, opened for reading and writing.

        The file is sparse: on disk are only the rings that were prepared. ValueError if an argument is out of bounds;
        NativeError if the file is not empty or there is no room.
        """

    @staticmethod
    def attach(fd: int) -> Rings:
        """Map rings that were laid out by `create`, in this process or another; all methods may be called.

        NativeError if the file is not complete rings of this LAYOUT_VERSION.
        """

    def prepare(self, slot: int) -> None:
        """Take the disk space of a slot's ring, the first time; nothing happens the next times.

        NativeError if there is no room: then the slot's rows are dropped, and counted, until another try succeeds.
        """

    def push(self, slot: int, row: bytes) -> bool:
        """Add a row. False if the ring is full, or the row larger than it, and it was counted as dropped."""

    def take(self, slot: int, most: int) -> tuple[list[bytes], int, bool]:
        """(at most `most` rows, oldest first; the position behind them; whether what followed them is damaged).

        The rows are taken again until `release` is called with the position. Damage is what a machine that lost power
        may leave; the position is then behind all there is.
        """

    def release(self, slot: int, position: int, lost: int = 0) -> None:
        """Give back the room of the rows before `position`, of the last `take`. `lost`: how many rows no sense could be
        made of; they are counted as dropped."""

    def waiting(self) -> list[int]:
        """The slots that have rows."""

    def dropped(self) -> int:
        """Rows that were dropped or lost, of all slots, since the file was made."""

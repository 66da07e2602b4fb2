"""The rate limits as they stand: one row for each bucket, of the policy in the database and the file of the buckets.

Strategy: the file is read as workers charge it, whether a proxy runs or not; it has the time at which each bucket will
be full, and the policy says what that means. Full buckets of addresses are not kept anywhere, so those are not listed.

Knows the store, the file and the policy; no worker and no request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from flm._native import (
    ADDRESS_BUCKETS,
    ADDRESS_OVERFLOW,
    FAILURE_BUCKETS,
    FAILURE_OVERFLOW,
    GLOBAL_BUCKET,
    KEY_BUCKETS,
)
from flm.policy.addresses import owner_text
from flm.policy.document import Policy, RateLimit
from flm.policy.limits import state
from flm.runtime.memory import open_buckets
from flm.store import keys as key_rows
from flm.store import policy as policy_rows
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.store.keys import StoredKey

MOST_ADDRESSES: Final = 1000  # rows of one kind: those whose buckets take longest to be full
_EVERY_KEY: Final = 1 << 20
_ALL: Final = "all"
_CHAT: Final = "flm chat"  # the keys of all chats from this machine share one bucket
_KINDS: Final = {
    ADDRESS_BUCKETS: "ip",
    ADDRESS_OVERFLOW: "ip",
    FAILURE_BUCKETS: "auth_failure",
    FAILURE_OVERFLOW: "auth_failure",
}

_Full = list[tuple[int, int, int]]  # kind, number, monotonic nanoseconds when it will be full


class Bucket(msgspec.Struct, frozen=True):
    """One bucket. `kind`: `key`, `ip`, `global` or `auth_failure`; `subject`: a key's id, an address (of IPv6 its /64)
    or `all`; `remaining`: whole requests left at this moment; `resets_in_seconds`: until it is full again.
    """

    kind: str
    subject: str
    limit_rpm: int
    burst: int
    remaining: int
    resets_in_seconds: float


async def buckets_of(folder: Folder) -> list[Bucket]:
    """Every bucket that the policy limits: the one of all, those of valid keys, and of addresses those not full.

    Of each kind the ones first that take longest to be full. Raises DB_ERROR, POLICY_INVALID.
    """
    async with await open_security(folder) as database:
        policy = await policy_rows.current(database)
        keys = await key_rows.all_keys(database)
    slots, live = await asyncio.to_thread(_read, folder)
    now_ns = time.monotonic_ns()
    return [*_everyone(policy, live, now_ns), *_keys(policy, keys, slots, live, now_ns), *_others(policy, live, now_ns)]


def _read(folder: Folder) -> tuple[int, _Full]:
    """Key slots of the file, and its buckets that are not full; all are while no proxy has run since the boot."""
    found = open_buckets(folder.run)
    if found is None:
        return _EVERY_KEY, []
    buckets, descriptor = found
    os.close(descriptor)
    return buckets.key_slots, buckets.live(time.monotonic_ns(), _EVERY_KEY)


def _row(kind: str, subject: str, limit: RateLimit, full_at_ns: int, now_ns: int) -> Bucket:
    remaining, seconds = state(limit, full_at_ns, now_ns)
    return Bucket(kind, subject, limit.rpm, limit.burst, remaining, round(seconds, 3))


def _everyone(policy: Policy, live: _Full, now_ns: int) -> Iterator[Bucket]:
    if policy.global_rate_limit is not None:
        full_at = next((full_at for kind, _, full_at in live if kind == GLOBAL_BUCKET), 0)
        yield _row("global", _ALL, policy.global_rate_limit, full_at, now_ns)


def _keys(policy: Policy, keys: list[StoredKey], slots: int, live: _Full, now_ns: int) -> list[Bucket]:
    if policy.rate_limit is None:
        return []
    full_at = {slot: moment for kind, slot, moment in live if kind == KEY_BUCKETS}
    subjects: Mapping[str, int] = {key.id: key.slot for key in keys if _valid(key)}
    if slots - 1 in full_at:
        subjects = {**subjects, _CHAT: slots - 1}
    limit = policy.rate_limit
    rows = [_row("key", subject, limit, full_at.get(slot, 0), now_ns) for subject, slot in subjects.items()]
    return sorted(rows, key=lambda row: -row.resets_in_seconds)


def _valid(key: StoredKey) -> bool:
    return not key.damaged and key.revoked_at is None and (key.expires_at is None or key.expires_at > time.time())


def _others(policy: Policy, live: _Full, now_ns: int) -> Iterator[Bucket]:
    limits = {"ip": policy.ip_rate_limit, "auth_failure": policy.auth_failure_limit}
    for wanted, limit in limits.items():
        of_kind = [(full_at, owner) for kind, owner, full_at in live if _KINDS.get(kind) == wanted]
        if limit is not None:
            for full_at, owner in sorted(of_kind, reverse=True)[:MOST_ADDRESSES]:
                yield _row(wanted, owner_text(owner), limit, full_at, now_ns)

"""The token buckets between processes: exact in real time, while slots change hands, and after SIGKILL.

Real time is what these need: each process reads the monotonic clock itself. A bucket is emptied at a known time, and
what is granted from then on is compared with the time until the last look, which found it empty again. A burst lasts
half a second, so that a machine that stops everybody for a while takes no tokens away unseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from flm._native import ADDRESS_BUCKETS, ADDRESS_OVERFLOW, FAILURE_BUCKETS, Buckets
from tests.native.conftest import BOOT, SMALL, Other

NewFile = Callable[[], int]
StartOther = Callable[..., Other]
MS = 10**6
KINDS: list[tuple[str, list[int]]] = [
    ("take_key", [9]),
    ("take_global", []),
    ("take_address", [FAILURE_BUCKETS, 2**63]),
]
LIMIT = (MS, 500)


def hammers(start_other: StartOther, fd: int, take: str, first: list[int], number: int) -> list[Other]:
    """Processes that are ready to take from one bucket."""
    arguments: dict[str, Any] = {"boot": BOOT.hex(), "take": take, "first": first, "limit": LIMIT}
    return [start_other("hammer", fd, **arguments) for _ in range(number)]


def emptied(buckets: Buckets, take: str, first: list[int]) -> int:
    """Take the burst at one time, which is given back."""
    now, (interval, burst) = time.monotonic_ns(), LIMIT
    assert all(getattr(buckets, take)(*first, interval, burst, now)[0] for _ in range(burst))
    return now


def hammered(others: list[Other], seconds: float) -> tuple[int, int]:
    """All take at once for so long: (grants, last time)."""
    end = time.monotonic_ns() + int(seconds * 1000 * MS)
    for other in others:
        other.tell(end)
    return collected(others)


def collected(others: list[Other]) -> tuple[int, int]:
    """Wait for all of them."""
    told = [other.answer() for other in others]
    return sum(granted for granted, _ in told), max(last for _, last in told)


def assert_exact(granted: int, begun: int, ended: int) -> None:
    """`granted` is all that came into the bucket."""
    assert abs(granted - (ended - begun) / LIMIT[0]) <= 1


@pytest.mark.parametrize(("take", "first"), KINDS)
def test_processes_at_one_moment_get_the_burst_and_not_one_more(
    new_file: NewFile, start_other: StartOther, take: str, first: list[int]
) -> None:
    fd, limit = new_file(), (MS, 300_000)
    Buckets.create(fd, BOOT, **SMALL)
    others = [start_other("drain", fd, boot=BOOT.hex(), take=take, first=first, limit=limit) for _ in range(4)]
    now = time.monotonic_ns()
    for other in others:
        other.tell(now)
    granted = [other.answer() for other in others]
    assert sum(granted) == limit[1]
    assert max(granted) < limit[1]  # they were at it together


def test_processes_share_each_kind_of_bucket_exactly(new_file: NewFile, start_other: StartOther) -> None:
    fd = new_file()
    buckets = Buckets.create(fd, BOOT, **SMALL)
    for take, first in KINDS:
        others = hammers(start_other, fd, take, first, 4)
        begun = emptied(buckets, take, first)
        granted, ended = hammered(others, 0.7)
        assert_exact(granted, begun, ended)


def test_a_bucket_is_exact_while_the_slots_around_it_change_hands(new_file: NewFile, start_other: StartOther) -> None:
    fd = new_file()
    buckets = Buckets.create(fd, BOOT, **{**SMALL, "addresses": 8})
    take, first = "take_address", [ADDRESS_BUCKETS, 2**62]
    others = hammers(start_other, fd, take, first, 2)
    begun = emptied(
        buckets, take, first
    )  # from now on it has its slot, and is at work within the half second it keeps it
    for other in others:
        other.tell(begun + 2000 * MS)
    passing = [
        start_other("pass_by", fd, boot=BOOT.hex(), table=ADDRESS_BUCKETS, limit=[20_000, 50], owners=k << 32)
        for k in (1, 2)
    ]
    granted, ended = collected(others)
    assert_exact(granted, begun, ended)
    for right, wrong, shared in (other.end() for other in passing):
        assert right > 1000
        assert wrong == 0
        assert shared > 0


def test_what_was_charged_outlives_who_charged_it_and_who_made_the_file(
    new_file: NewFile, start_other: StartOther
) -> None:
    fd = new_file()
    maker = Buckets.create(fd, BOOT, **SMALL)
    former, successors = (hammers(start_other, fd, "take_key", [1], 2) for _ in range(2))
    begun = emptied(maker, "take_key", [1])
    del maker
    granted, _ = hammered(former, 0.3)
    for other in former:
        other.kill()
    more, ended = hammered(successors, 0.3)
    assert min(granted, more) > 100
    assert_exact(granted + more, begun, ended)  # and no second burst


def test_processes_killed_anywhere_leave_every_bucket_whole(new_file: NewFile, start_other: StartOther) -> None:
    fd = new_file()
    buckets = Buckets.create(fd, BOOT, **{**SMALL, "addresses": 8})
    interval, burst = LIMIT
    size = interval * burst
    known = {owner for k in (1, 2) for owner in range(k << 32, (k << 32) + 5000)}
    for round_ in range(8):
        others = [
            start_other("pass_by", fd, boot=BOOT.hex(), table=ADDRESS_BUCKETS, limit=[interval, burst], owners=k << 32)
            for k in (1, 2)
        ]
        others += hammers(start_other, fd, "take_key", [3], 1)
        others[-1].tell(2**63)
        while not buckets.live(time.monotonic_ns(), 1):
            pass  # until they are at work
        for _ in range(round_ * 3):
            buckets.live(time.monotonic_ns(), 1)
        for other in others:
            other.kill()
        now = time.monotonic_ns()
        rows = buckets.live(now, 10_000)
        assert {owner for kind, owner, _ in rows if kind in (ADDRESS_BUCKETS, ADDRESS_OVERFLOW)} <= known
        assert all(tat <= now + size for _, _, tat in rows)
        left = sum(buckets.take_key(3, interval, burst, now)[0] for _ in range(2 * burst))
        assert left <= burst
        assert buckets.take_key(3, interval, burst, now)[2] > size - interval
        assert buckets.take_key(3, interval, burst, now + interval)[0]

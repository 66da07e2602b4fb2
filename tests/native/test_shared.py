"""The shared memory, in one process and between several: whole snapshots, exact counters, a publisher killed."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm import _native
from flm._native import NativeError, Shared
from tests.native.conftest import Other

NewFile = Callable[[], int]
StartOther = Callable[..., Other]
SNAPSHOTS_SEEN = 1000


def test_a_snapshot_is_seen_by_whoever_attached_before_and_after(new_file: NewFile) -> None:
    fd = new_file()
    first = Shared.create(fd, 2, 1000)
    early = Shared.attach(fd)
    assert (early.epoch(), early.snapshot()) == (0, (0, b""))
    assert first.publish(b"one") == 1
    assert early.publish(b"two, longer") == 2
    late = Shared.attach(fd)
    assert [each.epoch() for each in (first, early, late)] == [2, 2, 2]
    assert [each.snapshot() for each in (first, early, late)] == [(2, b"two, longer")] * 3


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_every_snapshot_comes_back(snapshots: list[bytes]) -> None:
    with tempfile.TemporaryFile() as file:
        shared = Shared.create(file.fileno(), 1, 300)
    for epoch, snapshot in enumerate(snapshots, 1):
        assert shared.publish(snapshot) == epoch
        assert shared.snapshot() == (epoch, snapshot)


def test_too_large_a_snapshot_is_refused_and_changes_nothing(new_file: NewFile) -> None:
    shared = Shared.create(new_file(), 1, 10)
    shared.publish(b"0123456789")
    with pytest.raises(NativeError, match="11 bytes and the shared memory was made for 10"):
        shared.publish(b"0123456789a")
    assert shared.snapshot() == (1, b"0123456789")


def test_room_is_taken_only_by_what_was_published(new_file: NewFile) -> None:
    fd = new_file()
    shared = Shared.create(fd, 4, 2**28)
    assert os.fstat(fd).st_size > 2**29
    shared.publish(b"x" * 100_000)
    assert os.fstat(fd).st_blocks * 512 < 2**20


def test_no_room_for_a_snapshot_is_an_error_and_changes_nothing(new_file: NewFile) -> None:
    shared = Shared.create(new_file(), 1, 2**20)
    shared.publish(b"in force")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(NativeError, match="could not reserve space"):
            shared.publish(b"x" * 500_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert shared.snapshot() == (1, b"in force")
    assert shared.publish(b"x" * 500_000) == 2
    assert shared.snapshot() == (2, b"x" * 500_000)


def test_heartbeats_and_counters_belong_to_their_slot(new_file: NewFile) -> None:
    fd = new_file()
    shared, other = Shared.create(fd, 3, 1), Shared.attach(fd)
    assert other.worker_slots == 3
    other.beat(2, 123_456)
    other.add(1, _native.IN_FLIGHT, 5)
    other.add(1, _native.IN_FLIGHT, -2)
    other.add(0, _native.COUNTERS - 1, -1)
    assert [shared.last_beat(slot) for slot in range(3)] == [0, 0, 123_456]
    assert [shared.counter(slot, _native.IN_FLIGHT) for slot in range(3)] == [0, 3, 0]
    assert shared.counter(0, _native.COUNTERS - 1) == 2**64 - 1
    names = [_native.IN_FLIGHT, _native.REQUESTS, _native.ERRORS, _native.LOG_DROPPED, _native.CONNECTIONS]
    assert names == [0, 1, 2, 3, 4]


def test_bounds_are_errors(new_file: NewFile) -> None:
    shared = Shared.create(new_file(), 2, 1)
    for call in (
        lambda: shared.beat(2, 0),
        lambda: shared.last_beat(2),
        lambda: shared.add(2, 0, 1),
        lambda: shared.counter(2, 0),
    ):
        with pytest.raises(NativeError, match="no worker slot 2: the memory was made for 2"):
            call()
    with pytest.raises(NativeError, match="no counter 32"):
        shared.add(0, _native.COUNTERS, 1)
    for slots, capacity in ((0, 1), (1025, 1), (1, 0), (1, 2**30 + 1)):
        with pytest.raises(ValueError, match="must be from 1"):
            Shared.create(new_file(), slots, capacity)
    with pytest.raises(OverflowError):
        shared.beat(-1, 0)
    with pytest.raises(OverflowError):
        shared.add(0, 0, 2**63)


def test_files_that_are_no_shared_memory_are_refused(new_file: NewFile) -> None:
    fd = new_file()
    with pytest.raises(NativeError, match="never completed"):
        Shared.attach(fd)
    Shared.create(fd, 1, 1)
    with pytest.raises(NativeError, match="not empty"):
        Shared.create(fd, 1, 1)
    os.pwrite(fd, (_native.LAYOUT_VERSION + 1).to_bytes(8, "little"), 8)
    with pytest.raises(NativeError, match="layout version"):
        Shared.attach(fd)
    keyring = new_file()
    _native.Keyring.create(keyring, 1)
    with pytest.raises(NativeError, match="not a flm-shm"):
        Shared.attach(keyring)


def consistent(epoch: int, snapshot: bytes, most: int) -> bool:
    """Whether this is what the role `publish` published as number `epoch`."""
    return snapshot == bytes([epoch % 256]) * (1 + epoch * 7919 % most)


def test_a_snapshot_is_whole_while_another_process_publishes_without_pause(
    new_file: NewFile, start_other: StartOther
) -> None:
    fd = new_file()
    shared = Shared.create(fd, 1, 4096)
    start_other("publish", fd, most=4096)
    last, seen = 0, 0
    while seen < SNAPSHOTS_SEEN:  # however long that takes: a busy machine may run the two in turns
        epoch, snapshot = shared.snapshot()
        assert epoch >= last
        if epoch == last:
            os.sched_yield()  # the other one's turn, where both have one core
            continue
        assert consistent(epoch, snapshot, 4096)
        last, seen = epoch, seen + 1


def test_a_killed_publisher_leaves_the_last_whole_snapshot(new_file: NewFile, start_other: StartOther) -> None:
    fd = new_file()
    most = 2**20
    shared = Shared.create(fd, 1, most)
    for round_ in range(8):
        before = shared.epoch()
        other = start_other("publish", fd, most=most)
        while shared.epoch() < before + 2 + round_:
            pass  # until it is at work
        other.kill()
        epoch, snapshot = shared.snapshot()
        assert consistent(epoch, snapshot, most)
        assert Shared.attach(fd).publish(b"from the heir") == epoch + 1
        assert shared.snapshot() == (epoch + 1, b"from the heir")


def test_no_count_is_lost_between_processes(new_file: NewFile, start_other: StartOther) -> None:
    fd = new_file()
    shared = Shared.create(fd, 1, 1)
    up, down = start_other("count_up", fd), start_other("count_up", fd)
    for other, delta in ((up, 3), (down, -1)):
        assert other.process.stdin is not None
        other.process.stdin.write(f"[100000, {delta}]\n")
        other.process.stdin.flush()
    for other in (up, down):
        assert other.ask([0, 0]) == "added"  # the answer to the first question
    assert up.process.stdout is not None
    assert down.process.stdout is not None
    assert up.process.stdout.readline() == down.process.stdout.readline() == '"added"\n'
    assert shared.counter(0, _native.REQUESTS) == 200_000

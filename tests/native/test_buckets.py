"""The token buckets in one process: what a take says, whose bucket is charged, and which file is taken for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm import _native
from flm._native import ADDRESS_BUCKETS, FAILURE_BUCKETS, Buckets, NativeError
from tests.native.conftest import BOOT, SMALL

NewFile = Callable[[], int]
SECOND = 10**9
UINT64 = st.integers(0, 2**64 - 1)


@pytest.fixture
def small(new_file: NewFile) -> Buckets:
    return Buckets.create(new_file(), BOOT, **SMALL)


def test_a_take_says_what_is_left_and_when_there_is_more(small: Buckets) -> None:
    now = 1000 * SECOND
    assert [small.take_key(3, SECOND, 3, now) for _ in range(4)] == [
        (True, 2, SECOND, 0),
        (True, 1, 2 * SECOND, 0),
        (True, 0, 3 * SECOND, SECOND),
        (False, 0, 3 * SECOND, SECOND),
    ]
    assert small.take_key(3, SECOND, 3, now + SECOND - 1) == (False, 0, 2 * SECOND + 1, 1)
    assert small.take_key(3, SECOND, 3, now + SECOND) == (True, 0, 3 * SECOND, SECOND)
    assert small.take_key(3, SECOND, 3, now + 60 * SECOND) == (True, 2, SECOND, 0)
    assert small.take_key(4, SECOND, 3, now) == (True, 2, SECOND, 0)
    assert small.take_global(SECOND, 2, now) == (True, 1, SECOND, 0)
    assert small.take_address(ADDRESS_BUCKETS, 0, SECOND, 2, now) == (True, 1, SECOND, 0, False)
    assert small.take_address(FAILURE_BUCKETS, 0, SECOND, 2, now) == (True, 1, SECOND, 0, False)


@given(
    interval=st.integers(1, 10**12),
    burst=st.integers(1, 2**32 - 1),
    steps=st.lists(st.one_of(st.just(0), st.integers(0, 10**6), st.integers(0, 2**50)), max_size=60),
)
def test_a_bucket_is_one_that_counts_tokens(interval: int, burst: int, steps: list[int]) -> None:
    with tempfile.TemporaryFile() as file:
        buckets = Buckets.create(file.fileno(), BOOT, **SMALL)
    size = min(interval * burst, 2**64 - 1)
    now, tokens = 2**55, Fraction(size, interval)
    for step in steps:
        now += step
        tokens = min(Fraction(size, interval), tokens + Fraction(step, interval))
        allowed, remaining, full_in, next_in = buckets.take_key(0, interval, burst, now)
        assert allowed == (tokens >= 1)
        tokens -= allowed
        if size + now < 2**64:
            assert (remaining, full_in) == (int(tokens), size - tokens * interval)
            assert next_in == max(0, interval - tokens * interval)


@given(st.lists(st.tuples(UINT64, st.integers(1, 2**64 - 1), st.integers(1, 2**32 - 1)), max_size=40))
def test_any_numbers_are_answered_within_bounds(takes: list[tuple[int, int, int]]) -> None:
    with tempfile.TemporaryFile() as file:
        buckets = Buckets.create(file.fileno(), BOOT, **SMALL)
    for now, interval, burst in takes:
        for found in (
            buckets.take_global(interval, burst, now),
            buckets.take_key(1, interval, burst, now),
            buckets.take_address(ADDRESS_BUCKETS, now % 3, interval, burst, now)[:4],
        ):
            allowed, remaining, _, next_in = found
            assert 0 <= remaining <= burst - allowed
            assert (next_in == 0) == (remaining > 0)
        buckets.give_back_global(interval, interval, now)


def test_a_token_given_back_is_there_again_once(small: Buckets) -> None:
    now = 1000 * SECOND
    assert small.take_key(1, SECOND, 1, now)[0]
    small.give_back_key(1, SECOND, now, now)
    assert small.take_key(1, SECOND, 1, now)[0]
    small.give_back_key(1, SECOND, now, now + SECOND)  # it has come back by itself
    assert [small.take_key(1, SECOND, 1, now + SECOND)[0] for _ in range(2)] == [True, False]
    assert small.take_global(SECOND, 1, now)[0]
    small.give_back_global(SECOND, now, now)
    assert [small.take_global(SECOND, 1, now)[0] for _ in range(2)] == [True, False]
    for table in (ADDRESS_BUCKETS, FAILURE_BUCKETS):
        *_, shared = small.take_address(table, 5, SECOND, 1, now)
        small.give_back_address(table, 5, shared, SECOND, now, now)
        assert [small.take_address(table, 5, SECOND, 1, now)[0] for _ in range(2)] == [True, False]


def test_a_smaller_limit_holds_at_once_and_locks_nobody_out(small: Buckets) -> None:
    now = 10**6 * SECOND
    for _ in range(100):
        assert small.take_key(0, 60 * SECOND, 100, now)[0]
    assert small.take_key(0, SECOND, 5, now) == (False, 0, 5 * SECOND, SECOND)
    assert small.take_key(0, SECOND, 5, now + SECOND)[0]


def test_a_full_table_grants_no_more_than_its_own_buckets_and_the_shared_ones(small: Buckets) -> None:
    now, granted, shared = 1000 * SECOND, 0, 0
    for owner in range(2000):
        for _ in range(4):
            found = small.take_address(ADDRESS_BUCKETS, owner, SECOND, 3, now)
            granted += found[0]
            shared += found[0] and found[4]
    assert granted == 3 * (SMALL["addresses"] + SMALL["overflow"])
    assert shared == 3 * SMALL["overflow"]
    assert small.take_address(ADDRESS_BUCKETS, 10**6, SECOND, 3, now)[::4] == (False, True)
    assert small.take_address(FAILURE_BUCKETS, 10**6, SECOND, 3, now)[0]
    assert small.take_key(0, SECOND, 3, now)[0]
    # Two seconds later every bucket has two tokens more, whoever asks.
    again = sum(small.take_address(ADDRESS_BUCKETS, owner, SECOND, 3, now + 2 * SECOND)[0] for owner in range(9000))
    assert again <= 2 * (SMALL["addresses"] + SMALL["overflow"])


def test_what_is_listed_is_what_is_not_full(small: Buckets) -> None:
    now = 1000 * SECOND
    small.take_global(SECOND, 9, now)
    for slot, times in ((7, 1), (30, 3), (2, 2)):
        for _ in range(times):
            small.take_key(slot, SECOND, 9, now)
    small.take_address(ADDRESS_BUCKETS, 0x0000FFFF_7F000001, 5 * SECOND, 1, now)
    small.take_address(FAILURE_BUCKETS, 2**64 - 1, SECOND, 1, now)
    keys = [(_native.KEY_BUCKETS, slot, now + times * SECOND) for slot, times in ((30, 3), (2, 2), (7, 1))]
    addresses = [
        (ADDRESS_BUCKETS, 0x0000FFFF_7F000001, now + 5 * SECOND),
        (FAILURE_BUCKETS, 2**64 - 1, now + SECOND),
    ]
    assert small.live(now, 100) == [(_native.GLOBAL_BUCKET, 0, now + SECOND), *keys, *addresses]
    assert small.live(now, 1) == [(_native.GLOBAL_BUCKET, 0, now + SECOND), keys[0], *addresses]
    assert small.live(now + 2 * SECOND, 100) == [keys[0], addresses[0]]
    for owner in range(2000):
        small.take_address(FAILURE_BUCKETS, owner, SECOND, 1, now)
    kinds = [row[0] for row in small.live(now, 10_000)]
    assert kinds.count(FAILURE_BUCKETS) == SMALL["addresses"]
    assert kinds.count(_native.FAILURE_OVERFLOW) == SMALL["overflow"]
    assert len({_native.ADDRESS_OVERFLOW, *kinds}) == 6


def test_bounds_are_errors(small: Buckets) -> None:
    assert small.key_slots == SMALL["keys"]
    for slot in (SMALL["keys"], 2**40):
        with pytest.raises(NativeError, match="made for 64"):
            small.take_key(slot, 1, 1, 1)
        with pytest.raises(NativeError, match="made for 64"):
            small.give_back_key(slot, 1, 1, 1)
    for limit in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="1 at least"):
            small.take_key(0, *limit, 1)
        with pytest.raises(ValueError, match="1 at least"):
            small.take_global(*limit, 1)
        with pytest.raises(ValueError, match="1 at least"):
            small.take_address(ADDRESS_BUCKETS, 1, *limit, 1)
    for table in (_native.GLOBAL_BUCKET, _native.KEY_BUCKETS, _native.ADDRESS_OVERFLOW, 99):
        with pytest.raises(ValueError, match="table"):
            small.take_address(table, 1, 1, 1, 1)
        with pytest.raises(ValueError, match="table"):
            small.give_back_address(table, 1, False, 1, 1, 1)
    for call in (
        lambda: small.take_key(0, 1, 2**32, 1),
        lambda: small.take_key(0, -1, 1, 1),
        lambda: small.take_key(0, 1, 1, -1),
        lambda: small.take_key(0, 1, 1, 2**64),
        lambda: small.take_address(ADDRESS_BUCKETS, 2**64, 1, 1, 1),
    ):
        with pytest.raises(OverflowError):
            call()


@pytest.mark.parametrize("name", ["keys", "addresses", "overflow"])
@pytest.mark.parametrize("size", [0, 4, 100, 2**25])
def test_sizes_out_of_bounds_are_refused(new_file: NewFile, name: str, size: int) -> None:
    with pytest.raises(ValueError, match="powers of two from 8"):
        Buckets.create(new_file(), BOOT, **{**SMALL, name: size})


def test_files_that_are_no_buckets_of_this_boot_are_refused(new_file: NewFile) -> None:
    fd = new_file()
    with pytest.raises(NativeError, match="never completed"):
        Buckets.attach(fd, BOOT)
    first = Buckets.create(fd, BOOT, **SMALL)
    assert first.take_key(0, SECOND, 1, SECOND)[0]
    with pytest.raises(NativeError, match="not empty"):
        Buckets.create(fd, BOOT, **SMALL)
    with pytest.raises(NativeError, match="another boot"):
        Buckets.attach(fd, bytes(16))
    for wrong in (b"", BOOT[:15], BOOT + b"x"):
        with pytest.raises(ValueError, match="16 bytes"):
            Buckets.attach(fd, wrong)
    assert not Buckets.attach(fd, BOOT).take_key(0, SECOND, 1, SECOND)[0]
    assert Buckets.create(new_file(), bytes(16), **SMALL).take_key(0, SECOND, 1, SECOND)[0]  # a reboot clears
    os.pwrite(fd, (_native.LAYOUT_VERSION + 1).to_bytes(8, "little"), 8)
    with pytest.raises(NativeError, match="layout version"):
        Buckets.attach(fd, BOOT)
    shared = new_file()
    _native.Shared.create(shared, 1, 1)
    with pytest.raises(NativeError, match="not a flm-bkts"):
        Buckets.attach(shared, BOOT)


def test_the_usual_size_takes_its_room_at_once(new_file: NewFile) -> None:
    fd = new_file()
    buckets = Buckets.create(fd, BOOT)
    assert buckets.key_slots == 2**20
    assert os.fstat(fd).st_size < 17 * 2**20
    assert os.fstat(fd).st_blocks * 512 >= os.fstat(fd).st_size
    assert buckets.take_key(2**20 - 1, SECOND, 1, SECOND)[0]

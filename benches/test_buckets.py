"""Benches of the token buckets: a take from Python, and several processes at buckets of their own.

Aim: a take under 0.3 µs, with 10 live buckets or 10,000 alike, and no slower when every core takes. It measures warm
memory; that the processes together are granted the right number is in tests/native/.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flm._native import ADDRESS_BUCKETS, Buckets
from tests.native.conftest import BOOT, Other

LIMIT = (1000, 2**32 - 1)  # never empty: over an hour of tokens
TAKES = 200_000


@pytest.fixture(scope="module", params=[10, 10_000])
def charged(request: pytest.FixtureRequest) -> tuple[Buckets, list[int], int]:
    """Buckets of the usual size, the key slots and addresses that are charged in them, and the time of that."""
    with tempfile.TemporaryFile() as file:
        buckets = Buckets.create(file.fileno(), BOOT)
    now = time.monotonic_ns()
    for number in range(request.param):
        assert buckets.take_key(number, 10**12, 10, now)[0]
        assert buckets.take_address(ADDRESS_BUCKETS, 0x0000FFFF_0A000000 + number, 10**12, 10, now)[0]
    return buckets, list(range(request.param)), now


def test_take_of_a_key(benchmark: BenchmarkFixture, charged: tuple[Buckets, list[int], int]) -> None:
    buckets, slots, now = charged
    assert benchmark(buckets.take_key, slots[len(slots) // 2], *LIMIT, now)[0]


def test_take_of_an_address(benchmark: BenchmarkFixture, charged: tuple[Buckets, list[int], int]) -> None:
    buckets, slots, now = charged
    owner = 0x0000FFFF_0A000000 + slots[len(slots) // 2]
    assert benchmark(buckets.take_address, ADDRESS_BUCKETS, owner, *LIMIT, now)[0]


def test_take_refused(benchmark: BenchmarkFixture, charged: tuple[Buckets, list[int], int]) -> None:
    buckets, slots, now = charged
    while buckets.take_key(slots[1], 10**12, 10, now)[0]:
        pass
    assert not benchmark(buckets.take_key, slots[1], 10**12, 10, now)[0]


def test_take_of_the_one_for_all(benchmark: BenchmarkFixture, charged: tuple[Buckets, list[int], int]) -> None:
    buckets, _, now = charged
    assert benchmark(buckets.take_global, *LIMIT, now)[0]


def test_list_of_what_is_live(benchmark: BenchmarkFixture, charged: tuple[Buckets, list[int], int]) -> None:
    buckets, slots, now = charged
    assert len(benchmark(buckets.live, now - 1, 1000)) >= min(len(slots), 1000)


@pytest.fixture
def takers() -> Iterator[list[Other]]:
    """One process for each core, at neighbouring key slots."""
    with tempfile.TemporaryFile() as file:
        Buckets.create(file.fileno(), BOOT)
        others = [
            Other("take_many", file.fileno(), {"boot": BOOT.hex(), "slot": slot, "limit": LIMIT})
            for slot in range(os.cpu_count() or 1)
        ]
        yield others
    for other in others:
        other.close()


def test_processes_at_buckets_of_their_own(benchmark: BenchmarkFixture, takers: list[Other]) -> None:
    """The processor time of a take in one process alone, over that with all at work: 1 is linear.

    Processor time, so that a busy machine does not count, and in rounds that take turns, of which the best counts.
    """

    def cost(others: list[Other]) -> float:
        for other in others:
            other.tell(TAKES)
        return max(other.answer() for other in others) / TAKES

    alone, together = [], []

    def turn() -> None:
        alone.append(cost(takers[:1]))
        together.append(cost(takers))

    benchmark.pedantic(turn, rounds=5)
    benchmark.extra_info["processes"] = len(takers)
    benchmark.extra_info["nanoseconds a take alone"] = min(alone)
    benchmark.extra_info["scaling"] = scaling = min(alone) / min(together)
    assert scaling > 0.5

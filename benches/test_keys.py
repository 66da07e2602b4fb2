"""Benches of what every request does in the native crate: checking its key, and looking whether anything changed.

Aim: a check under 1.5 µs and the epoch under 100 ns, called from Python, however many keys there are. It measures one
process on warm memory; what happens while a writer changes the keyring is in tests/native/.
"""

from __future__ import annotations

import tempfile

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flm import _native
from tests.native.conftest import PEPPER, Issued, issue

Filled = tuple[_native.Keyring, Issued]


@pytest.fixture(scope="module", params=[10, 10_000])
def filled(request: pytest.FixtureRequest) -> Filled:
    """A reader of a keyring of the usual capacity with that many keys, and one of them."""
    keys = [issue() for _ in range(request.param)]
    with tempfile.TemporaryFile() as file:
        writer = _native.Keyring.create(file.fileno(), 65_536)
        for slot, key in enumerate(keys):
            key.upsert(writer, slot=slot)
        return _native.Keyring.attach(file.fileno(), PEPPER), keys[len(keys) // 2]


def test_verify_a_good_key(benchmark: BenchmarkFixture, filled: Filled) -> None:
    reader, key = filled
    assert benchmark(reader.verify, key.plain, 1) == (key.id, len(reader) // 2, 0)


def test_verify_an_unknown_id(benchmark: BenchmarkFixture, filled: Filled) -> None:
    reader, _ = filled
    assert benchmark(reader.verify, issue().plain, 1) is None


def test_verify_a_bad_checksum(benchmark: BenchmarkFixture, filled: Filled) -> None:
    reader, key = filled
    last = b"0" if key.plain[-1:] != b"0" else b"1"
    assert benchmark(reader.verify, key.plain[:-1] + last, 1) is None


def test_epoch(benchmark: BenchmarkFixture) -> None:
    with tempfile.TemporaryFile() as file:
        shared = _native.Shared.create(file.fileno(), 1, 4096)
    shared.publish(b"snapshot")
    assert benchmark(shared.epoch) == 1


def test_snapshot_of_100_kb(benchmark: BenchmarkFixture) -> None:
    with tempfile.TemporaryFile() as file:
        shared = _native.Shared.create(file.fileno(), 1, 200_000)
    shared.publish(b"x" * 100_000)
    assert benchmark(shared.snapshot) == (1, b"x" * 100_000)

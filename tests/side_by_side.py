"""All tests that need no real engine and no real CA, in two processes: most of their time is waiting.

One runs the folders of BESIDE, of which only CPU time or a few child processes is asked, the other everything else, so
that a new folder is in by itself. The second one's output is shown as it comes, the first one's when both have ended.
Does not know what any test does; arguments go to both (`python -m tests.side_by_side -x`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APART = ("acme", "real")  # each has a target of its own, since it needs programs that are built first
BESIDE = ("engines", "wire", "structure", "demo", "clients")
_NO_TESTS = 5  # pytest's exit code where a choice (-k) leaves nothing


def commands(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The two commands: the folders beside, and all the others."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    folders = [f"tests/{name}" for name in BESIDE]
    ignored = [f"--ignore=tests/{name}" for name in (*APART, *BESIDE)]
    return [*pytest, *folders], [*pytest, "tests", *ignored]


def main(arguments: list[str]) -> int:
    """Run both; 0 if both passed, or the first exit code that says otherwise."""
    return run(*commands(arguments))


def run(beside: list[str], others: list[str]) -> int:
    """Run two commands of pytest at the same time; 0 if both passed, or the first exit code that says otherwise."""
    with tempfile.TemporaryFile() as output:
        first = subprocess.Popen(beside, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            second = subprocess.run(others, cwd=ROOT, check=False).returncode
            codes = [second, first.wait()]
        except BaseException:
            first.terminate()
            first.wait()
            raise
        output.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(output.read())
    return next((code for code in codes if code not in (0, _NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""All tests that need no real engine and no real CA, in some processes side by side: most of their time is waiting.

Each group of BESIDE has a process, and everything else has one, so that a new folder is in by itself. That one's output
is shown as it comes, the others' when all have ended. Does not know what any test does; arguments go to all of them
(`python -m tests.side_by_side -x`).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APART = ("acme", "real")  # each has a target of its own, since it needs programs that are built first
BESIDE = (
    ("engines", "wire", "structure", "demo", "clients", "upstream"),
    ("runtime",),  # as long as all the rest: real process trees
)
_NO_TESTS = 5  # pytest's exit code where a choice (-k) leaves nothing


def commands(arguments: list[str]) -> list[list[str]]:
    """One for each group of folders, and the last one for all the others."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    groups = [[f"tests/{name}" for name in group] for group in BESIDE]
    ignored = [f"--ignore=tests/{name}" for name in (*APART, *(name for group in BESIDE for name in group))]
    return [*([*pytest, *group] for group in groups), [*pytest, "tests", *ignored]]


def main(arguments: list[str]) -> int:
    """Run them all; 0 if all passed, or the first exit code that says otherwise."""
    return run(*commands(arguments))


def run(*commands: list[str]) -> int:
    """Run commands of pytest at the same time; 0 if all passed, or the first exit code that says otherwise."""
    *beside, shown = commands
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in beside]
        children = [
            subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            for command, output in zip(beside, outputs, strict=True)
        ]
        try:
            codes = [subprocess.run(shown, cwd=ROOT, check=False).returncode, *(child.wait() for child in children)]
        except BaseException:
            for child in children:
                child.terminate()
                child.wait()
            raise
        sys.stdout.flush()
        for output in outputs:
            output.seek(0)
            sys.stdout.buffer.write(output.read())
    return next((code for code in codes if code not in (0, _NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""All tests that need no real engine and no real CA, in some processes side by side: most of their time is waiting.

Each group of BESIDE has a process, and everything else has one, so that a new folder is in by itself. That one's output
is shown as it comes, the others' when all have ended. Does not know what any test does; arguments go to all of them
(`python -m tests.side_by_side -x`).

Up to AGAIN tests of a part that failed are run again when nothing else runs, and have to pass then. Whatever fails once
is named in the last lines: either the machine was too busy for it, or there is a race in it or in FLM. More failures
than that are failures at once.
"""

from __future__ import annotations

import contextlib
import json
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
AGAIN = 2  # what a busy machine explains; more is a fault
_FAILED = 1  # pytest's exit code where tests failed, and nothing worse
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


def run(*commands: list[str], again: int = AGAIN) -> int:
    """Run commands of pytest at the same time; 0 if all passed, or the first exit code that says otherwise. `again`:
    how many failures of a part are run once more."""
    with tempfile.TemporaryDirectory() as caches:
        parts = [[*command, "-o", f"cache_dir={caches}/{index}"] for index, command in enumerate(commands)]
        codes = _beside(parts)
        return _verdict([_again(part, code, again) for part, code in zip(parts, codes, strict=True)])


def _beside(parts: list[list[str]]) -> list[int]:
    """Their exit codes, in the same order."""
    *beside, shown = parts
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in beside]
        children = [
            subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            for command, output in zip(beside, outputs, strict=True)
        ]
        try:
            last = subprocess.run(shown, cwd=ROOT, check=False).returncode
            codes = [*(child.wait() for child in children), last]
        except BaseException:
            for child in children:
                child.terminate()
                child.wait()
            raise
        sys.stdout.flush()
        for output in outputs:
            output.seek(0)
            sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return codes


def _again(part: list[str], code: int, most: int) -> tuple[int, list[str]]:
    """The exit code that counts, and the tests that failed at first and passed alone."""
    failed = _failed(Path(part[-1].removeprefix("cache_dir=")))
    if code != _FAILED or not 0 < len(failed) <= most:
        return code, []
    print(f"\nagain, with nothing beside: {', '.join(failed)}", flush=True)
    code = subprocess.run([*part, "--last-failed"], cwd=ROOT, check=False).returncode
    return code, failed if code == 0 else []


def _failed(cache: Path) -> list[str]:
    """What pytest's cache has of the last run; nothing where it was not pytest that ran, or it came to no end."""
    try:
        return sorted(json.loads((cache / "v/cache/lastfailed").read_bytes()))
    except OSError:
        return []


def _verdict(parts: list[tuple[int, list[str]]]) -> int:
    for _, passed_alone in parts:
        for each in passed_alone:
            print(f"failed, and passed when it was run again alone: {each}")
    return next((code for code, _ in parts if code not in (0, _NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

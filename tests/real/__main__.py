"""The tests against real engines: `python -m tests.real`.

An engine's process that hangs fails each test of it until it is ended: Ollama 0.11.4's runner was seen to stop in the
middle of an answer, without using the processor, and to leave all later requests waiting. So more failures than
elsewhere are run once more, with engines started anew, and have to pass then; they are named in the last lines.
"""

from __future__ import annotations

import sys
from typing import Final

from tests.side_by_side import run

AGAIN: Final = 12  # of one engine that hangs
_MOST: Final = 20  # then it is no engine that hangs
_SECONDS: Final = 60  # all tests together take half of that


def main(arguments: list[str]) -> int:
    """0 if all passed."""
    pytest = [sys.executable, "-m", "pytest", *arguments, f"--maxfail={_MOST}", f"--timeout={_SECONDS}"]
    return run([*pytest, "tests/real", "--ignore=tests/real/vllm"], again=AGAIN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

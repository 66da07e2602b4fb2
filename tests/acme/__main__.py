"""The tests of this folder in two processes side by side, since they mostly wait: `python -m tests.acme -x`.

One runs the attempts of a child that is asked by the test, the other one single issuances and whole proxies.
"""

from __future__ import annotations

import sys

from tests.side_by_side import run

BESIDE = tuple(
    f"tests/acme/test_{name}.py" for name in ("refusals", "unreached", "killed_attempts", "renewal", "surroundings")
)


def main(arguments: list[str]) -> int:
    """0 if all passed."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    return run([*pytest, *BESIDE], [*pytest, "tests/acme", *(f"--ignore={each}" for each in BESIDE)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

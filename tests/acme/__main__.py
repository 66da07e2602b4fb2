"""The tests of this folder in three processes side by side, since they mostly wait: `python -m tests.acme -x`.

One runs the attempts of a child that is asked by the test, one whole proxies with other CAs and neighbours, and one
everything else: single issuances, whole proxies and what is killed.
"""

from __future__ import annotations

import sys

from tests.side_by_side import run

BESIDE = (
    ("refusals", "unreached", "killed_attempts", "renewal", "surroundings"),
    ("settings", "neighbours", "visitors", "limits", "backup"),
)


def main(arguments: list[str]) -> int:
    """0 if all passed."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    groups = [[f"tests/acme/test_{name}.py" for name in group] for group in BESIDE]
    ignored = [f"--ignore={each}" for group in groups for each in group]
    return run(*([*pytest, *group] for group in groups), [*pytest, "tests/acme", *ignored])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

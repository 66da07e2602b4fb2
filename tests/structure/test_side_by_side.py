"""`make test` leaves no folder out, and fails when either half does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import side_by_side

TESTS = Path(side_by_side.__file__).parent


def test_the_two_halves_are_everything_but_real_engines_and_cas() -> None:
    beside, others = side_by_side.commands([])
    named = {each.removeprefix("tests/") for each in beside if each.startswith("tests/")}
    ignored = {each.removeprefix("--ignore=tests/") for each in others if each.startswith("--ignore=")}
    assert ignored == named | {"real", "acme"}
    assert "tests" in others
    assert all(any((TESTS / name).rglob("test_*.py")) for name in named)


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [("pass", "pass", 0), ("1", "pass", 1), ("pass", "1", 1), ("3", "2", 2), ("5", "pass", 0)],
)
def test_either_half_can_fail(monkeypatch: pytest.MonkeyPatch, first: str, second: str, code: int) -> None:
    def command(text: str) -> list[str]:
        return ["python3", "-c", "pass" if text == "pass" else f"raise SystemExit({text})"]

    monkeypatch.setattr(side_by_side, "commands", lambda arguments: (command(first), command(second)))
    assert side_by_side.main([]) == code

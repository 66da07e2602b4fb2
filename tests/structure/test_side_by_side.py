"""`make test` leaves no folder out, and fails when any part of it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import side_by_side

TESTS = Path(side_by_side.__file__).parent


def test_the_parts_are_everything_but_real_engines_and_cas() -> None:
    *beside, others = side_by_side.commands([])
    named = [each.removeprefix("tests/") for command in beside for each in command if each.startswith("tests/")]
    ignored = {each.removeprefix("--ignore=tests/") for each in others if each.startswith("--ignore=")}
    assert len(named) == len(set(named))
    assert ignored == {*named, "real", "acme"}
    assert "tests" in others
    assert all(any((TESTS / name).rglob("test_*.py")) for name in named)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (("pass", "pass", "pass"), 0),
        (("1", "pass", "pass"), 1),
        (("pass", "1", "pass"), 1),
        (("pass", "pass", "1"), 1),
        (("3", "pass", "2"), 2),
        (("5", "pass", "pass"), 0),
    ],
)
def test_any_part_can_fail(monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], code: int) -> None:
    def command(text: str) -> list[str]:
        return ["python3", "-c", "pass" if text == "pass" else f"raise SystemExit({text})"]

    monkeypatch.setattr(side_by_side, "commands", lambda arguments: list(map(command, parts)))
    assert side_by_side.main([]) == code

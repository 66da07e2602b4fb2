"""`make test` leaves no folder out, and fails when any part of it does."""

from __future__ import annotations

import sys
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
        (("3", "pass", "2"), 3),
        (("5", "pass", "pass"), 0),
    ],
)
def test_any_part_can_fail(monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], code: int) -> None:
    def command(text: str) -> list[str]:
        return ["python3", "-c", "pass" if text == "pass" else f"raise SystemExit({text})"]

    monkeypatch.setattr(side_by_side, "commands", lambda arguments: list(map(command, parts)))
    assert side_by_side.main([]) == code


def pytest_of(folder: Path, *bodies: str) -> list[str]:
    """A command of pytest for a folder of its own, whose tests have these bodies."""
    folder.mkdir()
    tests = [f"def test_{index}():\n    {body}\n" for index, body in enumerate(bodies)]
    (folder / "test_it.py").write_text("from pathlib import Path\n" + "".join(tests))
    return [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-c", "/dev/null", str(folder)]


def once(folder: Path, name: str) -> str:
    """The body of a test that fails the first time only."""
    mark = folder / name
    return f"mark = Path({str(mark)!r}); seen = mark.exists(); mark.touch(); assert seen"


def test_what_failed_once_is_run_again_alone_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "part"
    part = pytest_of(folder, "pass", once(tmp_path, "first"), once(tmp_path, "second"))
    assert side_by_side.run(part, ["true"]) == 0
    last = capfd.readouterr().out.splitlines()[-2:]
    assert all(line.startswith("failed, and passed when it was run again alone: ") for line in last)
    assert [line[-6:] for line in last] == ["test_1", "test_2"]


def test_what_fails_twice_has_failed(tmp_path: Path) -> None:
    part = pytest_of(tmp_path / "part", "assert False", once(tmp_path, "first"))
    assert side_by_side.run(["true"], part) == 1


def test_many_failures_are_no_accident(tmp_path: Path) -> None:
    part = pytest_of(tmp_path / "part", *(once(tmp_path, str(index)) for index in range(side_by_side.AGAIN + 1)))
    assert side_by_side.run(part, ["true"]) == 1


def test_an_engine_that_hangs_fails_more_of_them(tmp_path: Path) -> None:
    part = pytest_of(tmp_path / "part", *(once(tmp_path, str(index)) for index in range(side_by_side.AGAIN + 1)))
    assert side_by_side.run(part, again=side_by_side.AGAIN + 1) == 0


def test_a_run_that_broke_down_is_not_run_again(tmp_path: Path) -> None:
    body = f"{once(tmp_path, 'first')[: -len('; assert seen')]}; seen or __import__('os')._exit(3)"
    assert side_by_side.run(pytest_of(tmp_path / "part", body), ["true"]) == 3

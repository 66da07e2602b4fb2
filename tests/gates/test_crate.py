"""A gate passes for the right reason only: a fault that misses, does not build or fails otherwise is red."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.gates import crate, loom, miri
from tests.gates.crate import Checker, Fault, PlantError, as_it_is, caught, outcomes, plant
from tests.gates.page import ROOT, Row, render, verdict

FAULT = Fault("a weaker store", "latch.rs", "Release", "Relaxed", "latch::model::torn", r"assertion `left == right`")
FOUND = "   Compiling flm-native v0.1.0\ntest latch::model::torn ... FAILED\nassertion `left == right` failed\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crate of one file."""
    (tmp_path / crate.SOURCE).mkdir(parents=True)
    (tmp_path / crate.SOURCE / "latch.rs").write_text("store(Release)")
    for name in ("Cargo.toml", "Cargo.lock"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(crate, "ROOT", tmp_path)
    return tmp_path


def saying(text: str, code: int) -> Checker:
    """A checker that prints this, wherever it runs."""
    return Checker("said", [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"], {})


@pytest.mark.parametrize("fault", [*loom.FAULTS, *miri.FAULTS], ids=lambda fault: fault.what)
def test_every_fault_fits_the_source_as_it_is(fault: Fault, tmp_path: Path) -> None:
    plant(fault, tmp_path)
    planted = (tmp_path / crate.SOURCE / fault.file).read_text()
    assert fault.new in planted
    assert planted != (ROOT / crate.SOURCE / fault.file).read_text()


def test_a_fault_that_does_not_fit_is_an_error(root: Path) -> None:
    (root / crate.SOURCE / "latch.rs").write_text("Release Release")
    with pytest.raises(PlantError, match="2 times"):
        plant(FAULT, root / "copy")
    assert caught(saying(FOUND, 101), FAULT).outcome.endswith("2 times, not once")


@pytest.mark.parametrize(
    ("text", "code", "outcome"),
    [
        (FOUND, 101, "passed"),
        (FOUND.replace("FAILED", "ok"), 0, "NOT FOUND"),
        (FOUND.replace("   Compiling", "   Fresh"), 101, "the copy was not built"),
        ("   Compiling flm-native v0.1.0\nerror: assertion `left == right`", 101, "the test did not run"),
        (FOUND.replace("assertion", "attempt"), 101, "failed otherwise"),
    ],
)
@pytest.mark.usefixtures("root")
def test_a_fault_is_caught_only_if_its_test_fails_as_expected(text: str, code: int, outcome: str) -> None:
    assert caught(saying(text, code), FAULT).outcome == outcome


@pytest.mark.usefixtures("root")
def test_a_test_that_fails_or_did_not_run_is_on_the_page() -> None:
    good = "Compiling flm-native 0\ntest latch::model::torn ... ok\ntest spsc::model::rows - should panic ... ok\n"
    assert {row.outcome for row in as_it_is(saying(good, 0), [], ["latch::", "spsc::"])} == {"passed"}
    assert as_it_is(saying(good[9:], 0), [], [])[-1].outcome == "was not built"
    rows = as_it_is(saying("test latch::model::torn ... FAILED\n", 101), [], ["latch::", "spsc::"])
    assert [(row.name, row.outcome) for row in rows] == [
        ("latch::model::torn", "FAILED"),
        ("spsc::", "no such test ran"),
        ("cargo", "ended with 101"),
    ]


def test_cargos_report_is_read() -> None:
    report = "running 3 tests\ntest a::b ... ok\ntest a::c - should panic ... FAILED\ntest d ... ignored, why\nok\n"
    assert outcomes(report) == {"a::b": "ok", "a::c": "FAILED", "d": "ignored"}


def test_a_machine_without_miri_fails_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(miri, "TOOLCHAIN", "+no-such-toolchain")
    assert miri.main() == 1
    assert "Miri is missing: rustup toolchain install nightly" in capsys.readouterr().out


def test_the_page_and_the_exit_code_say_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("one", "passed", 1.5, "well"), Row("two", "NOT FOUND", None)]
    text = render("Title", "gate-it", [("commit", "`0`")], ("test", "outcome", "s", "seen"), rows)
    assert "1 passed, 1 failed" in text
    assert "| `one` | passed | 1.50 | well |\n| `two` | NOT FOUND |  |  |\n" in text
    assert verdict(rows) == 1
    assert "failed: two: NOT FOUND" in capsys.readouterr().out
    assert verdict(rows[:1]) == 0

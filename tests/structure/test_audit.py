"""The audit turns red at what it is for: a vulnerable pin, a pin nobody asked about, a record that cannot be read."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from tests.structure import audit
from tests.structure.audit import AskError, Files, cargo_audit_answer, check, faults, main, pip_audit_answer
from tests.structure.test_advisories import H11, PYO3, clone

TODAY = datetime.date(2026, 2, 1)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A checkout with two locks that have been asked about, and nothing found."""
    files = Files.of(tmp_path / "checkout")
    files.record.parent.mkdir(parents=True)
    files.python_lock.write_text("h11==0.16.0\n")
    files.rust_lock.write_text('[[package]]\nname = "pyo3"\nversion = "0.30.0"\nsource = "registry"\n')
    common = {"of": "2026-01-02", "affected": []}
    python = common | {"database": "P", "state": "commit 1", "packages": ["h11 0.16.0"]}
    rust = common | {"database": "R", "state": "commit 2", "packages": ["pyo3 0.30.0"]}
    files.record.write_text(json.dumps({"python": python, "rust": rust}))
    return files


@pytest.fixture
def databases(tmp_path: Path) -> list[str]:
    """Arguments that ask clones of both databases, which know one advisory each."""
    pypa = clone(tmp_path / "pypa", {"vulns/h11/PYSEC-2026-348.yaml": json.dumps(H11)})
    rustsec = clone(tmp_path / "rustsec", {"crates/pyo3/RUSTSEC-2025-0020.md": PYO3})
    return ["ask", "--pypa", str(pypa), "--rustsec", str(rustsec)]


def test_what_was_asked_about_is_clean_and_its_age_is_told(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(files, TODAY) == 0
    said = capsys.readouterr().out
    assert "as of 2026-01-02 (30 days ago)" in said
    assert "make audit" in said


@pytest.mark.parametrize(
    ("lock", "clean", "planted", "found"),
    [
        ("python_lock", "0.16.0", "0.14.0", "PYSEC-2026-348 h11 0.14.0"),
        ("rust_lock", "0.30.0", "0.24.0", "RUSTSEC-2025-0020 pyo3 0.24.0"),
    ],
)
def test_a_vulnerable_pin_is_red_before_and_after_asking_until_it_is_accepted(
    files: Files,
    databases: list[str],
    capsys: pytest.CaptureFixture[str],
    lock: str,
    clean: str,
    planted: str,
    found: str,
) -> None:
    root, path = files.rust_lock.parent, getattr(files, lock)
    path.write_text(path.read_text().replace(clean, planted))
    assert main([], root) == 1
    assert "has not been asked" in capsys.readouterr().out
    assert main(databases, root) == 1
    assert list(faults(files)) == [f"{found}: affected; raise the lock"]
    files.accepted.write_text(f'"{found}" = "  "')
    assert list(faults(files)) == [f"{found}: accepted without a reason"]
    files.accepted.write_text(f'"{found}" = "only the tests have it, and not what is wrong in it"')
    assert main([], root) == 0
    path.write_text(path.read_text().replace(planted, clean))
    assert main(databases, root) == 1
    assert list(faults(files)) == [f"{found}: accepted, but nothing is affected by it"]
    files.accepted.unlink()
    assert main([], root) == 0


@pytest.mark.parametrize("lock", ["h11==0.16.0\nnew==1.0\n", "h11==0.16.1\n"])
def test_a_pin_nobody_asked_about_is_red(files: Files, lock: str) -> None:
    files.python_lock.write_text(lock)
    (fault,) = faults(files)
    assert fault.endswith(": P has not been asked")


def test_a_crate_nobody_asked_about_is_red(files: Files) -> None:
    files.record.write_text(files.record.read_text().replace("pyo3 0.30.0", "pyo3 0.29.0"))
    assert list(faults(files)) == ["pyo3 0.30.0: R has not been asked"]


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "field", "type", "missing", "lock"])
def test_a_record_or_a_lock_that_cannot_be_read_is_red(
    files: Files, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = files.record.read_text()
    match damage:
        case "cut":
            files.record.write_text(text[:-9])
        case "empty":
            files.record.write_text("{}")
        case "shape":
            files.record.write_text(text.replace("affected", "affects"))
        case "field":
            files.record.write_text(text.replace('"state"', '"more": 1, "state"'))
        case "type":
            files.record.write_text(text.replace("2026-01-02", "lately"))
        case "missing":
            files.record.unlink()
        case "lock":
            files.rust_lock.write_text("[[package")
    assert check(files, TODAY) == 1
    assert "the audit cannot be read" in capsys.readouterr().out


def test_a_database_that_cannot_be_read_leaves_the_record_as_it_was(
    files: Files, databases: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files.record.read_bytes()
    assert main([*databases[:-1], str(tmp_path / "nowhere")], files.rust_lock.parent) == 1
    assert "cannot be read with git" in capsys.readouterr().out
    assert files.record.read_bytes() == before


def test_a_program_that_is_missing_or_cannot_ask_says_what_else_there_is() -> None:
    with pytest.raises(AskError, match="make audit PYPA=FOLDER"):
        audit._said(["/nonexistent/pip-audit"], "PYPA")
    with pytest.raises(AskError, match=r"no line to the database.*make audit RUSTSEC=FOLDER"):
        audit._said(["sh", "-c", "echo no line to the database >&2; exit 1"], "RUSTSEC")


def test_what_pip_audit_says() -> None:
    """As pip-audit 2.10.1 writes it."""
    said = {
        "dependencies": [
            {"name": "h11", "version": "0.14.0", "vulns": [{"id": "PYSEC-2026-348", "fix_versions": ["0.16.0"]}]},
            {"name": "Zope_Event", "version": "6.2", "vulns": []},
            {"name": "private", "skip_reason": "not found"},
        ],
        "fixes": [],
    }
    assert pip_audit_answer(said) == ({"h11 0.14.0", "zope-event 6.2"}, {"PYSEC-2026-348 h11 0.14.0"})


def test_what_cargo_audit_says() -> None:
    """As cargo-audit 0.22.2 writes it. A withdrawn version has no advisory."""
    pyo3, old = {"name": "pyo3", "version": "0.24.0"}, {"name": "old", "version": "1.0.0"}
    said = {
        "vulnerabilities": {"list": [{"advisory": {"id": "RUSTSEC-2025-0020"}, "package": pyo3}]},
        "warnings": {
            "unmaintained": [{"kind": "unmaintained", "package": old, "advisory": {"id": "RUSTSEC-2024-0001"}}],
            "yanked": [{"kind": "yanked", "package": old, "advisory": None}],
        },
    }
    assert cargo_audit_answer(said) == {
        "RUSTSEC-2025-0020 pyo3 0.24.0",
        "RUSTSEC-2024-0001 old 1.0.0",
        "yanked old 1.0.0",
    }


def test_lint_holds_the_locks_against_the_record() -> None:
    makefile = (audit.ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    assert "-m tests.structure.audit\n" in recipe

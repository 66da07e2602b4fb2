"""The set-up finds a Rust that works, or gets out of the way of the one that does not."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "requirements" / "rust.py"


@pytest.fixture(scope="module")
def rust() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rust", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rustc(folder: Path, script: str) -> str:
    folder.mkdir(parents=True)
    program = folder / "rustc"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return os.pathsep.join((str(folder), "/usr/bin", "/bin"))


def test_one_that_works_is_taken_as_it_is(rust: ModuleType, tmp_path: Path) -> None:
    environment = {"PATH": rustc(tmp_path / "bin", "echo rustc 1.95.0 '(59807616e 2026-04-14)'")}
    assert rust.usable(environment) == (environment, True)


def test_a_proxy_under_another_home_is_told_where_its_toolchains_are(rust: ModuleType, tmp_path: Path) -> None:
    toolchains = tmp_path / "owner" / ".rustup"
    script = f'[ "$RUSTUP_HOME" = {toolchains} ] && echo rustc 1.95.0 || exit 1'
    path = rustc(tmp_path / "owner" / ".cargo" / "bin", script)
    toolchains.mkdir()
    found, works = rust.usable({"PATH": path, "HOME": "/nowhere"})
    assert works
    assert found["RUSTUP_HOME"] == str(toolchains)


def test_one_that_does_not_work_is_taken_off_path(rust: ModuleType, tmp_path: Path) -> None:
    path = rustc(tmp_path / "bin", "exit 1")
    found, works = rust.usable({"PATH": path})
    assert not works
    assert found["PATH"] == os.pathsep.join(("/usr/bin", "/bin"))


def test_one_that_is_too_old_is_refused(rust: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(rust.TooOldError, match=r"1\.63\.0 is too old"):
        rust.usable({"PATH": rustc(tmp_path / "bin", "echo rustc 1.63.0")})


def test_none_at_all(rust: ModuleType, tmp_path: Path) -> None:
    assert rust.usable({"PATH": str(tmp_path)}) == ({"PATH": str(tmp_path)}, False)

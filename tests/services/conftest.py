"""A data folder of the test's own, and no FLM_… variable but it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flm.store import sealed
from flm.store.folder import Folder, locate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def only_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLM_ENGINE_DISCOVER", "false")  # the machine's own engines are not for tests
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # supervisors and workers run as `python -P -m …`


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return locate({"FLM_HOME": str(tmp_path / "home")})


@pytest.fixture
def other(tmp_path: Path) -> Folder:
    """The data folder of another machine."""
    return locate({"FLM_HOME": str(tmp_path / "other")})


@pytest.fixture(autouse=True)
def quick_to_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LOG_N", 10)  # a millisecond instead of half a second

"""Workers run as `python -P -m …`, which must find this checkout and its tests."""

from __future__ import annotations

import os

import pytest

from tests.runtime.harness import ROOT


@pytest.fixture(autouse=True)
def checkout_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in [name for name in os.environ if name.startswith("FLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLM_ENGINE_DISCOVER", "false")  # the machine's own engines are not for tests

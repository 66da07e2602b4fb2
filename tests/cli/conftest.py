"""Commands as a person types them: in this process for speed, or as `python -m flm` where a process matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


class Said:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def data(self) -> Any:
        """The document's data, whose envelope is checked."""
        document = json.loads(self.out)
        assert list(document) == ["version", "data"], self.out
        assert document["version"] == "1.0"
        assert self.code == 0
        return document["data"]

    @property
    def error(self) -> tuple[str, str]:
        """(code, message) of an error, whose envelope is checked."""
        document = json.loads(self.out)
        assert list(document) == ["error"], self.out
        assert list(document["error"]) == ["code", "message"]
        assert self.code in (1, 2)
        return document["error"]["code"], document["error"]["message"]


Flm = Callable[..., Said]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FLM_ENGINE_DISCOVER", "false")  # the machine's own engines are not for tests
    return tmp_path / "home"


@pytest.fixture
def flm(capsys: pytest.CaptureFixture[str]) -> Flm:
    def run(*arguments: str) -> Said:
        code = main(list(arguments))
        return Said(code, *capsys.readouterr())

    return run


def _take_interrupts() -> None:
    """Whoever runs the tests in the background lets them inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "flm", *arguments],
        preexec_fn=_take_interrupts,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )

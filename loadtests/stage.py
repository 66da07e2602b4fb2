"""The stage of every load test and bench: a demo engine and the proxy, each a process, in a data folder of its own.

Knows the `flm` command and nothing of FLM's inside: what is measured here is what a person gets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.demo import Demo, demo_engine

ROOT = Path(__file__).resolve().parents[1]  # the FLM that is measured is this checkout
COMMAND_SECONDS = 120.0  # no command takes that long; more is a hang
ENGINE_ID = "demo"
MODEL = f"flm://{ENGINE_ID}/demo"  # what the callers ask for
ENGINE_MODEL = "demo"  # what the engine is asked for, and computes its answer from


class CommandFailedError(Exception):
    """An `flm` command ended with an error; the message holds what it printed."""


@dataclass(frozen=True)
class Flm:
    """The `flm` command with a data folder."""

    home: Path

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLM_")}
        # The machine's own engines are not for load.
        return inherited | {"FLM_HOME": str(self.home), "PYTHONPATH": str(ROOT), "FLM_ENGINE_DISCOVER": "false"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flm", *arguments]

    def run(self, *arguments: str) -> Any:
        """Run one command; its `data`. Raises CommandFailedError."""
        ended = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if ended.returncode != 0:
            raise CommandFailedError(f"flm {' '.join(arguments)}: {ended.stdout}{ended.stderr}")
        return json.loads(ended.stdout)["data"]

    def status(self) -> list[dict[str, Any]]:
        return list(self.run("proxy", "status"))


@dataclass(frozen=True)
class Stage:
    """A proxy that runs in front of a demo engine. `url` is the proxy's, without `/v1`."""

    flm: Flm
    engine: Demo
    url: str
    key: str


def free_port() -> int:
    """A port that the kernel has just given to somebody and taken back."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def stage(
    *,
    workers: int = 1,
    controls: bool = True,
    pace: float = 0.0,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """Start everything, and end everything. `pace`: seconds between the words of a stream."""
    with ExitStack() as stack:
        engine = stack.enter_context(demo_engine("openai", "--pace", str(pace), controls=controls))
        flm = Flm(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flm-stage-"))) / "home")
        flm.run("engines", "add", "--id", ENGINE_ID, "--kind", "openai", "--url", engine.url)
        for name, value in (settings or {}).items():
            flm.run("config", "set", name, value)
        key = flm.run("api-keys", "create", "--label", "load")["key"]
        stack.callback(_stop, flm)
        handle = flm.run("proxy", "start", "--port", str(free_port()), "--workers", str(workers))
        yield Stage(flm, engine, handle["endpoints"]["localhost"], key)


def _stop(flm: Flm) -> None:
    if flm.status():
        flm.run("proxy", "stop", "--now")

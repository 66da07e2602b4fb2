"""One FLM with a data folder of its own, used the way a person uses it: through its command line and its port.

Does not import flm and knows nothing of its insides: what it sees is JSON on standard output and HTTP.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai

from tests.support.ports import free_port

COMMAND_TIMEOUT_SECONDS = 60.0
CLIENT_TIMEOUT_SECONDS = 20.0
"""No reply of a scripted model takes a second; a proxy that hangs shall not hang the run as well."""


class CommandError(Exception):
    """A command failed; carries the code of its error object and shows all that it printed."""

    def __init__(self, arguments: tuple[str, ...], done: subprocess.CompletedProcess[str], log: str) -> None:
        said = f"{done.stdout}\n{done.stderr}\nend of the daemon's log:\n{log}"
        super().__init__(f"flm {' '.join(arguments)}: exit code {done.returncode}\n{said}")
        try:
            self.code = json.loads(done.stdout)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            self.code = None


class Installation:
    """FLM with the data folder `home`; `environment` is all that it sees of the user's, but for PATH."""

    def __init__(self, home: Path, **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.port = 0
        self.key = ""
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        self._environment = {**kept, "HOME": str(home), "FLM_HOME": str(home / "flm"), **environment}

    def run(self, *arguments: str) -> Any:
        """The `data` that `flm ARGUMENTS` prints; CommandError when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "flm", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
        )
        if done.returncode != 0:
            raise CommandError(arguments, done, self.log_tail())
        answer = json.loads(done.stdout)
        assert answer["version"] == "1.0"
        return answer["data"]

    def start(self) -> None:
        """Start the proxy on a free port; keeps the key that the first start shows."""
        port = free_port()
        data = self.run("proxy", "start", "--port", str(port))
        self.key = data.get("key") or self.key
        self.port = port

    def stop(self) -> None:
        """Stop the proxy at once, streams included."""
        self.run("proxy", "stop", "--now")

    def client(self, key: str | None = None) -> openai.OpenAI:
        """An official client of this proxy that neither retries nor reads the user's settings; close it."""
        transport = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(**self._options(key), http_client=transport)

    def async_client(self) -> openai.AsyncOpenAI:
        """The same for asyncio."""
        transport = openai.DefaultAsyncHttpxClient(trust_env=False)
        return openai.AsyncOpenAI(**self._options(None), http_client=transport)

    def _options(self, key: str | None) -> dict[str, Any]:
        return {
            "base_url": f"http://127.0.0.1:{self.port}/v1",
            "api_key": self.key if key is None else key,
            "max_retries": 0,
            "timeout": CLIENT_TIMEOUT_SECONDS,
        }

    def log_tail(self, lines: int = 40) -> str:
        """The end of the daemon's log."""
        return "\n".join(self._log_lines()[-lines:])

    def faults(self) -> list[str]:
        """Log lines by which the proxy says that it made a mistake itself, whatever the client was told."""
        return [line for line in self._log_lines() if '"internal_error"' in line]

    def _log_lines(self) -> list[str]:
        log = self.home / "flm" / "logs" / "flm.log"
        return log.read_text(errors="replace").splitlines() if log.exists() else []

"""Start real engines as real processes, each on a port of its own with a home of its own, and stop them again.

Does not know FLM and asserts nothing about answers: what an engine must say stands in the tests.

Strategy: the kernel chooses the port; readiness is asked for over HTTP until a deadline, waiting in between on the
process itself, so that an engine that dies is noticed at once and its log is shown. Engines write their log to a file,
which also serves as evidence: tests wait for lines in it to learn what an engine did (began, gave up) on its side.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.real import locations
from tests.support.ports import free_port

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 60.0
PROBE_TIMEOUT_SECONDS = 2.0
POLL_SECONDS = 0.02
START_ATTEMPTS = 3
"""Another process may take the port between the kernel's choice and the engine's bind."""
LOG_LINES_SHOWN = 20

Answer = TypeVar("Answer")


class EngineStartError(Exception):
    """The engine's program is absent, ended before it was ready, or did not become ready in time."""


def wait_until(
    ask: Callable[[], Answer | None], seconds: float, what: str, *, process: subprocess.Popen[bytes] | None = None
) -> Answer:
    """The first true answer of `ask`, asked every 20 ms for at most `seconds`; TimeoutError naming `what` otherwise.

    With `process`, the pauses end early when it exits, which is a ChildProcessError.
    """
    deadline = time.monotonic() + seconds
    while True:
        if answer := ask():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        if process is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        raise ChildProcessError(f"process {process.pid} ended with code {process.returncode} before {what}")


def request(port: int, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT_SECONDS) -> Any:
    """The JSON that an engine itself answers, whatever the status; OSError or ValueError when it gives none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        return json.loads(connection.getresponse().read())
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: where it listens, how it identifies itself, and where it logs."""

    kind: str
    """FLM's word for it."""
    version: str
    """What it says of itself."""
    port: int
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        """Base address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the engine itself answers, past FLM."""
        return request(self.port, method, path, body)

    def log_mark(self) -> int:
        """How much it has logged so far: a mark to give to `wait_for_log`."""
        return self.log.stat().st_size

    def wait_for_log(self, pattern: str, since: int, seconds: float) -> str:
        """The first log line after the mark that matches; TimeoutError when none appears within `seconds`."""

        def find() -> str | None:
            with self.log.open("rb") as file:
                file.seek(since)
                lines = file.read().decode(errors="replace").splitlines()
            return next((line for line in lines if re.search(pattern, line)), None)

        return wait_until(find, seconds, f"a line like {pattern!r} in {self.log}", process=self.process)

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


def _environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's settings but where programs and the scratch folder are."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, "HOME": str(home), **more}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _launch(
    command: Callable[[int], list[str]],
    environment: Callable[[int], dict[str, str]],
    ready: str,
    log: Path,
    wanted: int | None = None,
    seconds: float = START_DEADLINE_SECONDS,
) -> tuple[int, subprocess.Popen[bytes]]:
    """Start a program on port `wanted`, or a free one, and wait until GET `ready` answers 200; -> port, process."""
    for _ in range(START_ATTEMPTS):
        port = wanted or free_port()
        try:
            return port, _start(command(port), environment(port), f"http://127.0.0.1:{port}{ready}", log, seconds)
        except ChildProcessError as error:
            text = log.read_text(errors="replace")
            if "in use" not in text:
                raise EngineStartError(f"{error}\n{log}:\n{text}") from error
    raise EngineStartError(f"every port chosen was taken before the engine could bind it, see {log}")


def _start(
    command: list[str], environment: dict[str, str], ready: str, log: Path, seconds: float
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as error:
            raise EngineStartError(f"cannot start {command[0]}: {error}; is it built (`make engines`)?") from error
    try:
        wait_until(lambda: _answers(ready), seconds, f"200 from {ready}", process=process)
    except BaseException:
        _end(process)
        raise
    return process


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_SECONDS) as response:
            return bool(response.status == http.client.OK)
    except (OSError, http.client.HTTPException):
        return False


@contextmanager
def llama_server(folder: Path, *, model: str, arguments: tuple[str, ...], port: int | None = None) -> Iterator[Engine]:
    """A llama-server with one model file of the scripted part, on `port` or a free one; its log stands in `folder`.

    Raises EngineStartError when it does not start.
    """
    program = locations.llama_server_dir() / "bin" / "llama-server"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "engine.log"
    fixed = ["-m", str(locations.scripted_dir() / model), "--host", "127.0.0.1", "--threads", "1", "--offline"]
    taken, process = _launch(
        lambda chosen: [str(program), *fixed, "--port", str(chosen), *arguments],
        lambda _port: _environment(folder),
        "/health",
        log,
        port,
    )
    try:
        yield Engine("llamacpp", request(taken, "GET", "/props")["build_info"], taken, log, process)
    finally:
        _end(process)


@contextmanager
def ollama(folder: Path, version: str, **settings: str) -> Iterator[Engine]:
    """An Ollama of that version with every scripted model created; home, models and log stand in `folder`.

    `settings` are added to its environment. Raises EngineStartError when it does not start.
    """
    program = locations.ollama_dir(version) / "bin" / "ollama"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "engine.log"

    def environment(port: int) -> dict[str, str]:
        own = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_NO_CLOUD": "1"}
        return _environment(folder, **own, OLLAMA_NUM_PARALLEL="1", OLLAMA_DEBUG="1", **settings)

    port, process = _launch(lambda _port: [str(program), "serve"], environment, "/api/version", log)
    try:
        for name in locations.SCRIPTED_MODELS:
            _create(program, name, environment(port))
        yield Engine("ollama", request(port, "GET", "/api/version")["version"], port, log, process)
    finally:
        _end(process)


def _create(program: Path, model: str, environment: dict[str, str]) -> None:
    command = [str(program), "create", model, "-f", str(locations.scripted_dir() / f"Modelfile.{model}")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_DEADLINE_SECONDS)
    if done.returncode != 0:
        raise EngineStartError(f"ollama create {model} failed: {done.stderr}")

"""Start a real vLLM that serves the scripted model, and read from its own metrics what it does.

Knows vLLM's command line and metrics; knows neither FLM nor what an answer must be.

Strategy: as tests/real/engines.py, on a port that the kernel chose, with nothing of the user's settings. The server is
started as a module, since the console script of the CPU package asks for the metadata of another package name. One
thread, and one gigabyte for its cache: the model is tiny.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real import engines as real
from tests.real.vllm.build import vllm_dir

START_DEADLINE_SECONDS = 300.0
"""It imports for twenty seconds on a free machine, twice; busy cores make that minutes."""
CONTEXT = 2048
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
CHAT = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_v3")
EMBED = ("--runner", "pooling", "--convert", "embed")


@dataclass(frozen=True, slots=True)
class Load:
    """What vLLM is doing: requests at work, and tokens it has made since it started."""

    running: int
    tokens: int


@contextmanager
def vllm(folder: Path, name: str, *arguments: str, key: str | None = None) -> Iterator[real.Engine]:
    """A vLLM that serves the scripted model as `name`; home and log stand in `folder`. `key`: demanded on `/v1`.

    Raises EngineStartError when it does not start.
    """
    part = vllm_dir()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "engine.log"
    command = [str(part / "venv" / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(part / "scripted"), "--served-model-name", name, "--dtype", "float32"]
    command += ["--max-model-len", str(CONTEXT), "--enforce-eager", "--host", "127.0.0.1", *arguments]
    secret = {} if key is None else {"VLLM_API_KEY": key}
    port, process = real._launch(
        lambda chosen: [*command, "--port", str(chosen)],
        lambda _port: real._environment(folder, **SETTINGS, **secret),
        "/health",
        log,
        seconds=START_DEADLINE_SECONDS,
    )
    try:
        yield real.Engine("vllm", real.request(port, "GET", "/version")["version"], port, log, process)
    finally:
        real._end(process)


def load(engine: real.Engine) -> Load:
    """What the engine's own `/metrics` say now."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=real.REQUEST_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return Load(int(_gauge(text, "vllm:num_requests_running")), int(_gauge(text, "vllm:generation_tokens_total")))


def _gauge(text: str, name: str) -> float:
    found = re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no {name} among the metrics"
    return float(found[1])

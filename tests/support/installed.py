"""A whole FLM for one test: its own data folder, supervisor, worker, key and registered engines; raw clients for it.

    async with installed(tmp_path, {"e": ("openai", engine.url)}) as flm:
        answer = await flm.ask("POST", "/v1/chat/completions", {...})

Knows no engine. The machine's own engines are not looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flm.config import Value
from flm.services.engines import EngineService
from flm.services.security import SecurityService
from tests.runtime.harness import ROOT, Running, running

WORKER = "flm.runtime.worker"
Upstream = tuple[str, str] | tuple[str, str, dict[str, Any]]  # kind, URL, and what else `EngineService.add` takes


class Flm:
    """A running FLM and a key for it."""

    def __init__(self, proxy: Running, key: str) -> None:
        self.proxy = proxy
        self.port = proxy.port
        self.key = key

    def request(self, method: str, path: str, body: Any = None, *headers: str, key: str | None = "") -> bytes:
        """The bytes of one request; `key` None: without one, "": the good one."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", *headers]
        if key is not None:
            lines.append(f"authorization: Bearer {key or self.key}")
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(data)}"]
        return "\r\n".join((*lines, "", "")).encode() + data

    async def ask(self, method: str, path: str, body: Any = None, *headers: str, key: str | None = "") -> Answer:
        """One request on a connection of its own, and all that comes back until FLM has closed it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self.request(method, path, body, "connection: close", *headers, key=key))
            return Answer(await reader.read())
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Answer:
    """What a client got. `body` is without its chunks; `whole`: it ended as HTTP wants, not cut."""

    def __init__(self, raw: bytes) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1]) if first else 0
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if self.headers.get("transfer-encoding") == "chunked":
            self.body, self.whole = _unchunked(rest)
        else:
            self.body, self.whole = rest, len(rest) == int(self.headers.get("content-length", len(rest)))

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object of a whole answer, or the last one among the events of a stream."""
        if self.headers.get("content-type") == "application/json":
            return json.loads(self.body).get("error")  # type: ignore[no-any-return]
        errors = [one["error"] for one in self.objects if "error" in one]
        return errors[-1] if errors else None

    @property
    def events(self) -> list[bytes]:
        """The blocks of a stream: events and comments."""
        return [block for block in self.body.split(b"\n\n") if block]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects of a stream's events."""
        data = [block[6:] for block in self.events if block.startswith(b"data: ") and block != b"data: [DONE]"]
        return [json.loads(one) for one in data]


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    body = bytearray()
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return bytes(body), False
        length = int(data[at:end], 16)
        at = end + 2
        if not length:
            return bytes(body), data.startswith(b"\r\n", at)
        body += data[at : at + length]
        at += length + 2


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Supervisors and workers run as `python -P -m …`, and read settings from FLM_… variables."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("FLM_")]:
        del os.environ[name]
    os.environ.update(PYTHONPATH=str(ROOT), FLM_ENGINE_DISCOVER="false")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def installed(
    root: Path, engines: Mapping[str, Upstream], worker_module: str = WORKER, **flags: Value
) -> AsyncIterator[Flm]:
    """A started FLM with these engines registered, by id; `flags` are settings with `__` for the dot."""
    with _own_environment():
        async with running(root, worker_module=worker_module, **flags) as proxy:
            for name, (kind, url, *more) in engines.items():
                seen = await EngineService(proxy.folder).add(name, kind, url, **(more[0] if more else {}))
                assert seen.status == "RunningHealthy", seen
            yield Flm(proxy, (await SecurityService(proxy.folder).create_key("test")).key)

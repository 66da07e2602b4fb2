"""Requests of an API client to a proxy under test, on raw sockets: whole ones, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from flm.services.security import SecurityService
from tests.runtime.harness import Running

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.json["error"])


class Client:
    """One caller with a key of its own."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key

    @classmethod
    async def of(cls, proxy: Running) -> Client:
        return cls(proxy.port, (await SecurityService(proxy.folder).create_key("test")).key)

    def request(self, path: str, body: Any = None) -> bytes:
        """The bytes of one request."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{'POST' if data else 'GET'} {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {self.key}"]
        lines += ["connection: close", "content-type: application/json", f"content-length: {len(data)}", "", ""]
        return "\r\n".join(lines).encode() + data

    async def ask(self, path: str, body: Any = None) -> Answer:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(self.request(path, body))
                head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if b"transfer-encoding: chunked" in head.lower():
            rest = _unchunked(rest)
        return Answer(int(head.split(b" ", 2)[1]), rest)

    async def chat(self, model: str, **more: Any) -> Answer:
        return await self.ask(CHAT, conversation(model, **more))

    async def models(self) -> list[str]:
        return [str(entry["id"]) for entry in (await self.ask("/v1/models")).json["data"]]

    async def leave(self, data: bytes, *, after: bytes = b"", when: asyncio.Future[None] | None = None) -> None:
        """Send `data`, wait until `after` has come, or for `when`, and go."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        try:
            if after:
                await reader.readuntil(after)
            if when is not None:
                await when
        finally:
            writer.transport.abort()


def conversation(model: str, text: str = "hello", *, stream: bool = False, system: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"model": model, "stream": stream, "messages": [*messages, {"role": "user", "content": text}]}


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        whole, data = whole + data[:length], data[length + 2 :]
    return whole

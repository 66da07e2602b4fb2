"""A client for benches: so many non-streaming chat requests over kept connections, each answer looked at.

As cheap as asyncio allows, since client, engine and proxy share a machine. Anything but a 200 with the whole answer,
or a closed connection, ends the bench with an error: a fast wrong answer is worth nothing.
"""

from __future__ import annotations

import asyncio
import functools
import json
from typing import NamedTuple, cast

from flm.demo import script
from loadtests.stage import ENGINE_MODEL

PROMPT = "How much does one request cost?"
TEXT = json.dumps(script.reply(ENGINE_MODEL, PROMPT).text, ensure_ascii=False).encode()
ROUND_SECONDS = 120.0


class Target(NamedTuple):
    """Where to ask, and for what. `key`: the bearer token, if one is needed."""

    host: str
    port: int
    model: str
    key: str | None = None

    def request(self) -> bytes:
        """One whole request; the length is that of an everyday client's."""
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0.7})
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"host: {self.host}:{self.port}",
            "accept: application/json",
            "content-type: application/json",
            "user-agent: flm-bench",
            f"content-length: {len(body)}",
        ]
        lines += [f"authorization: Bearer {self.key}"] if self.key else []
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class WrongAnswerError(Exception):
    """The bench got something else than the right answer."""


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, `remaining` times."""

    def __init__(self, request: bytes, remaining: int) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._remaining = remaining
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if self._remaining:
            self._remaining -= 1
            self._transport.write(self._request)
        else:
            self.done.set_result(None)
            self.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200 ") or TEXT not in body:
            self._fail(f"{head!r} {body[:500]!r}")
            return
        self._received = b""
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection ended: {exc!r}")
        self.closed.set_result(None)

    def close(self) -> None:
        self._transport.close()

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(WrongAnswerError(reason))
            self.close()


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        raise WrongAnswerError(f"an answer without a length: {head!r}")
    return int(rest.partition(b"\r\n")[0])


async def round_of(target: Target, requests: int, connections: int) -> None:
    """Ask `requests` times in all over so many connections. Raises WrongAnswerError, TimeoutError, OSError."""
    loop = asyncio.get_running_loop()
    request = target.request()
    askers: list[Asker] = []
    try:
        async with asyncio.timeout(ROUND_SECONDS):
            for place in range(connections):
                share = requests // connections + (place < requests % connections)
                make = functools.partial(Asker, request, share)
                askers.append((await loop.create_connection(make, target.host, target.port))[1])
            await asyncio.gather(*(asker.done for asker in askers))
    finally:
        for asker in askers:
            asker.close()
        await asyncio.gather(*(asker.closed for asker in askers))
        await asyncio.gather(*(asker.done for asker in askers), return_exceptions=True)

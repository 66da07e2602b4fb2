"""What of a caller's request reaches an engine: every byte between FLM and the engine is recorded by a tap.

The caller sends things that are its own business, each with a mark that can be found again. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from flm.engines.registry import DIALECTS
from tests.behaviour.stage import CHAT, Stage
from tests.support.belonging import begun

CREDENTIAL = "canary-of-the-engine"
PASSED_ON = frozenset({"accept", "user-agent"})  # what the pass-through lets through of a caller's own
MARKS = {
    "cookie": "canary-cookie",
    "x-api-key": "canary-x-api-key",
    "api-key": "canary-api-key",
    "proxy-authorization": "Basic canary-proxy",
    "x-forwarded-for": "203.0.113.71",
    "forwarded": "for=203.0.113.72",
    "x-real-ip": "203.0.113.73",
    "true-client-ip": "203.0.113.74",
    "cf-connecting-ip": "203.0.113.75",
    "via": "1.1 canary-via",
    "referer": "http://localhost/canary-referer",
    "user-agent": "canary-agent",
    "x-stainless-lang": "canary-stainless",
    "x-conversation-id": "canary-conversation",
    "x-request-id": "canary-request-id",
}
"""Header to value: what a caller, its browser or its proxies may send."""


class Arrived(NamedTuple):
    """`line`: the request line at the engine, "" if it got nothing. `headers`: the names of what came with it."""

    asked: str
    line: str
    headers: tuple[str, ...]


class Tap:
    """A relay to an engine that keeps what goes there."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._tasks: set[asyncio.Task[None]] = set()
        self.received = bytearray()
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine, to_engine = await asyncio.open_connection(self._target.hostname, self._target.port)
        back = asyncio.create_task(_pump(engine, writer))
        self._tasks.add(back)
        back.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.received += data
                to_engine.write(data)
                await to_engine.drain()
        to_engine.close()
        await back


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tap(target: str) -> AsyncIterator[Tap]:
    relay = Tap(target)
    async with await asyncio.start_server(relay.accept, "127.0.0.1", 0) as server:
        relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield relay


async def arrived(stage: Stage, tapped: Tap) -> list[Arrived]:
    """Ask on every route as a caller who says too much, and see what the engine gets. Fails if a mark arrives."""
    headers = [f"{name}: {value}" for name, value in MARKS.items()]
    found = []
    await stage.begin("", "")
    for way in stage.ways:
        del tapped.received[:]
        answer = await stage.flm.ask("POST", way.endpoint.value, stage.body(way, f"tapped-{stage.kind}"), *headers)
        assert answer.status == 200, answer.body
        found.append(checked(stage, way.label, bytes(tapped.received)))
        assert found[-1].line, "the tap has recorded nothing"
    found.append(await _passed_on(stage, tapped, headers))
    for path in ("/v1/models", f"/v1/models/flm://tapped-{stage.kind}/{stage.engine.model}"):
        del tapped.received[:]
        answer = await stage.flm.ask("GET", path, None, *headers)
        assert answer.status == 200, answer.body
        label = "models" if path == "/v1/models" else "one model"
        found.append(checked(stage, label, bytes(tapped.received)))
    return found


async def _passed_on(stage: Stage, tapped: Tap, headers: list[str]) -> Arrived:
    """The same question on the pass-through, in the engine's own words."""
    wanted = begun(DIALECTS[stage.kind], CHAT.endpoint)
    assert wanted is not None
    path = DIALECTS[stage.kind].begin(wanted).request.path
    body = {**stage.body(CHAT), "model": stage.engine.model}
    del tapped.received[:]
    answer = await stage.flm.ask("POST", f"/engine/tapped-{stage.kind}{path}", body, *headers)
    assert answer.status == 200, answer.body
    return checked(stage, "passed on (`/engine/…`)", bytes(tapped.received), PASSED_ON)


def checked(stage: Stage, asked: str, data: bytes, allowed: frozenset[str] = frozenset()) -> Arrived:
    """What has arrived. Fails if one of MARKS that is not `allowed` has, or the caller's key."""
    private = {name: value for name, value in MARKS.items() if name not in allowed}
    for mark in (stage.flm.key, *private.values(), *(f"\n{name}:" for name in private)):
        assert mark.lower().encode() not in data.lower(), (stage.kind, asked, mark)
    if not data:
        return Arrived(asked, "", ())
    line, *rest = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    names = tuple(sorted(one.partition(":")[0].lower() for one in rest))
    assert f"Bearer {CREDENTIAL}".encode() in data
    return Arrived(asked, line.removesuffix(" HTTP/1.1"), names)

"""One kind of engine behind a real FLM: the simulator's process, its controls, and what both sides have seen.

Knows how a request is put and how an answer is told in words; not what should come of it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from flm.engines.call import Endpoint
from tests.support.demo import Demo
from tests.support.installed import Answer, Flm

SEEN_WITHIN = 20.0  # seconds until the engine has seen what it is going to see; far longer than it takes
POLL = 0.02
RECEIVE_BUFFER = 65_536  # of a client that is slow: what the kernel keeps for it is not what is looked at


class Way(NamedTuple):
    """How a client asks. `label` is the page's word for it."""

    label: str
    endpoint: Endpoint
    stream: bool = False


CHAT = Way("chat", Endpoint.CHAT)
STREAM = Way("chat, streamed", Endpoint.CHAT, stream=True)
COMPLETIONS = Way("completions", Endpoint.COMPLETIONS)
COMPLETIONS_STREAM = Way("completions, streamed", Endpoint.COMPLETIONS, stream=True)
EMBEDDINGS = Way("embeddings", Endpoint.EMBEDDINGS)
WAYS = (STREAM, CHAT, COMPLETIONS_STREAM, COMPLETIONS, EMBEDDINGS)
TEXT = "Say something, client."  # by it a client's request is known from FLM's own
BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": TEXT}]},
    Endpoint.COMPLETIONS: {"prompt": TEXT},
    Endpoint.EMBEDDINGS: {"input": TEXT},
}


class Seen(NamedTuple):
    """What one situation led to, in words that are the same each time."""

    status: str
    code: str
    retry: str
    client: str
    engine: str


class Stage:
    """`patient` and `hasty` are ids of the same engine; FLM waits long for the one, half a second for the other."""

    def __init__(self, flm: Flm, kind: str, engine: Demo) -> None:
        self.flm = flm
        self.kind = kind
        self.engine = engine
        self.patient, self.hasty = kind, f"hasty-{kind}"
        self._embedding = engine.model
        self.ways: tuple[Way, ...] = ()

    async def learn(self) -> None:
        """Which ways of asking this engine answers, and which of its models is for embeddings, if one of them is."""
        listed = json.loads((await self.flm.ask("GET", "/v1/models")).body)["data"]
        mine = [
            one["name"] for one in listed if one["engine_id"] == self.patient and "embedding" in one["capabilities"]
        ]
        self._embedding = mine[0] if mine else self.engine.model
        self.ways = tuple([way for way in WAYS if (await self.ask(way)).status == 200])

    def body(self, way: Way, engine_id: str | None = None) -> dict[str, Any]:
        embeds = way.endpoint is Endpoint.EMBEDDINGS
        name = f"flm://{engine_id or self.patient}/{self._embedding if embeds else self.engine.model}"
        return {"model": name, **({} if embeds else {"stream": way.stream}), **BODIES[way.endpoint]}

    async def ask(self, way: Way, *, key: str | None = "", engine_id: str | None = None) -> Answer:
        return await self.flm.ask("POST", way.endpoint.value, self.body(way, engine_id), key=key)

    @asynccontextmanager
    async def asking(self, way: Way) -> AsyncIterator[socket.socket]:
        """A client that has asked, and does with the answer what it likes."""
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", self.flm.port))
            await loop.sock_sendall(client, self.flm.request("POST", way.endpoint.value, self.body(way)))
            yield client

    # --- the engine's side

    async def begin(self, directives: str, path: str) -> None:
        """Forget what was; from now on requests to the engine's `path` are answered as the directives say."""
        await asyncio.to_thread(self.engine.clear)
        if directives:
            await asyncio.to_thread(self.engine.fault, path, directives)

    async def happened(self, event: str) -> None:
        await asyncio.to_thread(self.engine.wait, event, 1, SEEN_WITHIN)

    async def requests(self) -> list[dict[str, Any]]:
        """Requests of clients that the engine has got; what FLM asks for itself is left out."""
        return [one for one in await asyncio.to_thread(self.engine.requests) if TEXT in one["body"]]

    async def told_by_engine(self) -> str:
        """What became of the request there, once it is over."""
        async with asyncio.timeout(SEEN_WITHIN):
            while any(one["outcome"] == "running" for one in await self.requests()):
                await asyncio.sleep(POLL)
        outcomes = [OUTCOMES[one["outcome"]] for one in await self.requests()]
        times = {0: "", 1: "", 2: "twice: "}[len(outcomes)]
        assert len(set(outcomes)) <= 1, outcomes
        return times + outcomes[0] if outcomes else "nothing"

    async def until_blocked(self) -> int:
        """Bytes the engine has sent when it could send no more for a while."""
        sent, since = -1, 0
        async with asyncio.timeout(SEEN_WITHIN):
            while since < 5 or not sent:
                (one,) = await self.requests()
                since = since + 1 if one["bytes_sent"] == sent else 0
                sent = one["bytes_sent"]
                await asyncio.sleep(POLL)
        return sent

    # --- FLM's side

    async def logged(self, error_type: str, before: int) -> str:
        """How the log calls it, once there is one more line of it than `before`."""
        async with asyncio.timeout(SEEN_WITHIN):
            while len(lines := self.lines(error_type)) <= before:
                await asyncio.sleep(POLL)
        return f"(log: {lines[-1]['status']} `{error_type}`)"

    def lines(self, error_type: str) -> list[dict[str, Any]]:
        """The log's lines about requests to this engine that ended so."""
        marks = (f'"error_type":"{error_type}"', f'"engine_id":"{self.patient}"')
        lines = self.flm.proxy.log().splitlines()
        return [json.loads(line) for line in lines if all(mark in line for mark in marks) and line.endswith("}")]


OUTCOMES = {
    "finished": "the request, answered to its end",
    "failed": "the request, and fails as it was told",
    "cancelled": "the request, then FLM closes the connection",
}


def told_by(answer: Answer) -> str:
    """What a client has in its hands."""
    if answer.headers.get("content-type") == "application/json":
        told = "one JSON error" if answer.error else "the whole answer"
        return told if answer.whole else "a part of the answer, cut off"
    chunks = answer.objects if answer.whole else []
    parts = []
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if any(choice.get("text") or choice.get("delta", {}).get("content") for choice in choices):
        parts.append("text")
    errors = sum("error" in chunk for chunk in chunks)
    if errors:
        parts.append("one error event" if errors == 1 else f"{errors} error events")
    if any(choice.get("finish_reason") for choice in choices):
        parts.append("a finish reason")
    parts.append("`[DONE]`" if answer.events and answer.events[-1] == b"data: [DONE]" else "no `[DONE]`")
    return ", ".join(parts) if answer.whole else "a part of the stream, cut off"


def told(answer: Answer, engine: str) -> Seen:
    """The facts of an answer that came."""
    error = answer.error
    retry = [
        f"`{name}: {answer.headers[name]}`" for name in ("x-should-retry", "retry-after") if name in answer.headers
    ]
    code = f"`{error['code']}`" if error else ""
    return Seen(str(answer.status), code, ", ".join(retry), told_by(answer), engine)

"""Everything that can go wrong between a client and an engine, each brought about for real on a `Stage`.

A situation is a name, the ways of asking it is tried in, and what is done; what comes of it is only observed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from flm.engines.registry import DIALECTS
from tests.behaviour.stage import (
    CHAT,
    COMPLETIONS,
    COMPLETIONS_STREAM,
    EMBEDDINGS,
    OUTCOMES,
    STREAM,
    WAYS,
    Seen,
    Stage,
    Way,
    told,
)
from tests.support.belonging import begun
from tests.support.installed import Answer

Act = Callable[[Stage, Way], Awaitable[Seen]]
FLOOD_MIB = 32  # more than what lies in the buffers of all sockets on the way


class Situation(NamedTuple):
    """`title` completes "what happens when …"."""

    title: str
    ways: tuple[Way, ...]
    act: Act


def engine_path(stage: Stage, way: Way) -> str:
    """Where this kind of engine is asked."""
    wanted = begun(DIALECTS[stage.kind], way.endpoint)
    assert wanted is not None
    return DIALECTS[stage.kind].begin(wanted).request.path


def engine_does(directives: str, *, hasty: bool = False) -> Act:
    """Ask an engine that follows the directives."""

    async def act(stage: Stage, way: Way) -> Seen:
        await stage.begin(directives, engine_path(stage, way))
        answer = await stage.ask(way, engine_id=stage.hasty if hasty else None)
        return told(answer, await stage.told_by_engine())

    return act


async def error_inside(stage: Stage, way: Way) -> Seen:
    """FLM closes behind the error; an engine that ends its answer with it may be quicker."""
    seen = await engine_does("demo: error=2")(stage, way)
    assert seen.engine in (OUTCOMES["finished"], OUTCOMES["cancelled"]), seen
    return seen._replace(engine="the request, answered up to the error")


async def reset_before_the_answer(stage: Stage, way: Way) -> Seen:
    """On a connection that an earlier request has left open: such a loss is made good once, on a fresh one."""
    await stage.begin("", "")
    assert (await stage.ask(way)).status == 200
    return await engine_does("demo: cut=-1 end=rst")(stage, way)


def with_key(key: str | None) -> Act:
    async def act(stage: Stage, way: Way) -> Seen:
        await stage.begin("", "")
        answer = await stage.ask(way, key=key)
        return told(answer, await stage.told_by_engine())

    return act


async def leave_while_it_thinks(stage: Stage, way: Way) -> Seen:
    await stage.begin("demo: hold=gate", engine_path(stage, way))
    before = len(stage.lines("client_disconnected"))
    async with stage.asking(way):
        await stage.happened("held")
    log = await stage.logged("client_disconnected", before)
    return Seen("none", "", "", f"nothing {log}", await stage.told_by_engine())


async def leave_in_the_middle(stage: Stage, way: Way) -> Seen:
    await stage.begin("demo: endless between=0.01", engine_path(stage, way))
    before = len(stage.lines("client_disconnected"))
    received = b""
    async with stage.asking(way) as client:
        while b"data: " not in received:
            received += await asyncio.get_running_loop().sock_recv(client, 4096)
    log = await stage.logged("client_disconnected", before)
    return Seen(str(Answer(received).status), "", "", f"what came until then {log}", await stage.told_by_engine())


async def read_after_a_pause(stage: Stage, way: Way) -> Seen:
    await stage.begin(f"demo: flood={FLOOD_MIB}", engine_path(stage, way))
    loop = asyncio.get_running_loop()
    received = bytearray()
    async with stage.asking(way) as client:
        await stage.happened("first_byte")
        sent = await stage.until_blocked()
        assert sent < FLOOD_MIB << 20, "the engine was not slowed down"
        while not received.endswith(b"0\r\n\r\n"):
            received += await loop.sock_recv(client, 1 << 20)
    answer = Answer(bytes(received))
    text = sum(len(choice["delta"].get("content") or "") for one in answer.objects for choice in one["choices"])
    assert text >= FLOOD_MIB << 20, "something is missing"
    engine = await stage.told_by_engine()
    return told(answer, f"that it can send no more for a while; {engine}")._replace(client="all of it, `[DONE]`")


async def read_nothing(stage: Stage, way: Way) -> Seen:
    await stage.begin(f"demo: flood={FLOOD_MIB}", engine_path(stage, way))
    loop = asyncio.get_running_loop()
    before = len(stage.lines("client_too_slow"))
    received = bytearray()
    async with stage.asking(way) as client:
        log = await stage.logged("client_too_slow", before)
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(client, 1 << 20):
                received += data
    answer = Answer(bytes(received)) if received else None
    status = str(answer.status) if answer else "none"
    assert answer is None or not answer.whole
    return Seen(status, "", "", f"its connection is cut {log}", await stage.told_by_engine())


async def nobody_there(stage: Stage, way: Way) -> Seen:
    """The engine's process has ended."""
    return told(await stage.ask(way), "nothing")


ALL = WAYS
STREAMS = (STREAM, COMPLETIONS_STREAM)
WHOLES = (CHAT, COMPLETIONS, EMBEDDINGS)
CLIENTS: tuple[Situation, ...] = (
    Situation("the caller sends no key", ALL, with_key(None)),
    Situation("the caller's key is wrong", ALL, with_key("flm_wrong")),
    Situation("the client leaves while the engine thinks", ALL, leave_while_it_thinks),
    Situation("the client leaves in the middle of the stream", STREAMS, leave_in_the_middle),
    Situation("the client reads nothing for a while, then everything", (STREAM,), read_after_a_pause),
)
STUCK = Situation("the client reads nothing for `proxy.send_timeout_seconds`", (STREAM,), read_nothing)
ENGINES: tuple[Situation, ...] = (
    Situation("the engine refuses FLM's own key for it (401)", ALL, engine_does("demo: status=401")),
    Situation("the engine refuses the request (400)", ALL, engine_does("demo: status=400")),
    Situation("the engine does not know the model (404)", ALL, engine_does("demo: status=404")),
    Situation("the engine is busy (503)", ALL, engine_does("demo: status=503")),
    Situation("the engine fails before its answer (500)", ALL, engine_does("demo: status=500")),
    Situation("the engine resets a kept connection, and the next, before its answer", ALL, reset_before_the_answer),
    Situation("the engine sends what is no HTTP", ALL, engine_does("demo: garbage=-1")),
    Situation(
        "the engine does not answer within `engine.first_byte_timeout_seconds`",
        ALL,
        engine_does("demo: hold=gate", hasty=True),
    ),
    Situation("the engine reports an error inside its stream", (STREAM,), error_inside),
    Situation("the engine ends its stream early, in order", (STREAM,), engine_does("demo: quiet")),
    Situation("the engine dies in the middle of a stream", STREAMS, engine_does("demo: words=60 cut=900 end=rst")),
    Situation("the engine dies in the middle of a whole answer", WHOLES, engine_does("demo: cut=20 end=rst")),
    Situation(
        "the engine falls silent for `engine.between_bytes_timeout_seconds`",
        STREAMS,
        engine_does("demo: hold=gate hold_at=3", hasty=True),
    ),
)
DEAD = Situation("the engine is not there", ALL, nobody_there)
SITUATIONS = (*CLIENTS, STUCK, *ENGINES, DEAD)

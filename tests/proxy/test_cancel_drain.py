"""A client that leaves an engine which breaks when it is cut: the client's request is over, the engine's is not."""

from __future__ import annotations

import asyncio

import pytest

from flm.engines.base import DialectDefaults
from tests.proxy.harness import CHAT, World, chat, engine, run
from tests.proxy.test_inference import DONE, GOOD_WHOLE, STREAM_HEAD, event
from tests.support.engine import Peer, ScriptedEngine, Step, fin, receive, say, stall

OLD = "0.1-breaks"


@pytest.fixture(autouse=True)
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """One version of every engine breaks when it is cut."""
    monkeypatch.setattr(DialectDefaults, "drain_seconds", lambda _dialect, version: 60.0 if version == OLD else 0.0)
    monkeypatch.setattr("flm.proxy.exchange.WATCH_AFTER_SECONDS", 0)


def held(going_on: asyncio.Event) -> Step:
    async def step(peer: Peer) -> None:
        peer.stalled.set()
        await going_on.wait()

    return step


MOMENTS = {
    "before the first byte": (True, b"", STREAM_HEAD + event("a", "stop") + DONE),
    "in the middle of a stream": (True, STREAM_HEAD + event("a"), event("b", "stop") + DONE),
    "waiting for a whole answer": (False, b"", GOOD_WHOLE),
    "in the middle of a whole answer": (False, GOOD_WHOLE[:-5], GOOD_WHOLE[-5:]),
}


@pytest.mark.parametrize(("stream", "before", "rest"), MOMENTS.values(), ids=MOMENTS)
def test_the_answer_is_read_on_for_nobody(stream: bool, before: bytes, rest: bytes) -> None:
    async def test() -> None:
        going_on, drained = asyncio.Event(), asyncio.Event()

        async def seen(_peer: Peer) -> None:
            drained.set()

        async with ScriptedEngine([receive(), say(before), held(going_on), say(rest), seen, fin()]) as scripted:
            world = World(engine(scripted.url, version=OLD), engine_max_in_flight=1)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=stream))
            task = client.start()
            await (await scripted.peer(0)).stalled.wait()
            client.leave()
            await task
            assert world.app.in_flight == 0
            assert world.lines[-1]["error_type"] == "client_disconnected"
            assert (await world.chat("flm://e/m")).code == "overloaded"  # the engine is still at it
            assert not scripted.peers[0].closed.is_set()
            going_on.set()
            await drained.wait()
            await scripted.peers[0].closed.wait()
            assert scripted.errors == []
            await world.app.aclose()

    run(test())


def test_the_worker_ends_and_cuts_what_it_drains() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), stall()]) as scripted:
            world = World(engine(scripted.url, version=OLD))
            client = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = client.start()
            await (await scripted.peer(0)).stalled.wait()
            client.leave()
            await task
            assert not scripted.peers[0].closed.is_set()
            await world.app.aclose()
            await scripted.peers[0].closed.wait()

    run(test())


def test_another_version_of_the_engine_is_cut_at_once() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), stall()]) as scripted:
            world = World(engine(scripted.url, version="0.2"))
            client = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = client.start()
            await (await scripted.peer(0)).stalled.wait()
            client.leave()
            await task
            await scripted.peers[0].closed.wait()
            world.publish(engine(scripted.url, version=OLD))
            second = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = second.start()
            await (await scripted.peer(1)).stalled.wait()
            second.leave()
            await task
            assert not scripted.peers[1].closed.is_set()  # found anew as the version that breaks
            await world.app.aclose()

    run(test())

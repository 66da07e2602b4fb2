"""A revoked key's running requests end, each in its own way, and those of other keys go on."""

from __future__ import annotations

import asyncio
import json

from flm._native import key_id
from tests.proxy.harness import CHAT, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, fin, receive, say, stall, until

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'


def revoke(world: World, key: str) -> None:
    """As the supervisor does it: out of the keyring, then the worker is told."""
    known = key_id(key.encode())
    assert known is not None
    assert world.keyring.remove(known)
    world.app.end_revoked()


async def streaming(world: World, key: str) -> Client:
    client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True), key=key)
    client.start()
    await client.until(lambda c: len(c.events) == 1)
    return client


def test_each_of_its_requests_ends_and_no_other() -> None:
    async def test() -> None:
        go_on = asyncio.Event()
        begun = [receive(), say(STREAM_HEAD + EVENT)]
        scripts = (
            [*begun, stall()],
            [*begun, until(go_on), say(b"data: [DONE]\n\n"), fin()],
            [receive(), stall()],
        )
        async with ScriptedEngine(*scripts) as scripted:
            world = World(engine(scripted.url))
            bad = world.add_key()
            stream, other = await streaming(world, bad), await streaming(world, world.key)
            waiting = world.client("POST", CHAT, body=chat("flm://e/m"), key=bad)
            waiting.start()
            await (await scripted.peer(2)).stalled.wait()
            uploading = world.client("POST", CHAT, hold=True, headers={"content-length": "100"}, key=bad)
            uploading.start()
            await uploading.until(lambda c: c.receives == 1)
            revoke(world, bad)
            world.app.end_revoked()  # a second time changes nothing
            for client in (stream, waiting, uploading):
                assert client.task is not None
                await client.task
                assert client.complete
            assert len(stream.events) == 2
            assert json.loads(stream.events[1][6:])["error"]["code"] == "invalid_api_key"
            assert b"[DONE]" not in stream.body
            assert (waiting.status, waiting.code) == (401, "invalid_api_key")
            assert (uploading.status, uploading.code) == (401, "invalid_api_key")
            assert world.app.in_flight == 1
            go_on.set()
            assert other.task is not None
            await other.task
            assert (other.events[-1], len(other.events)) == (b"data: [DONE]", 2)
            assert [line["error_type"] for line in world.lines] == ["invalid_api_key"] * 3 + [None]
            await world.app.aclose()

    run(test())


def test_a_client_that_does_not_read_keeps_nothing_running() -> None:
    async def test() -> None:
        deaf = asyncio.Event()
        pieces = [say(STREAM_HEAD + EVENT), until(deaf), say(EVENT), stall()]
        async with ScriptedEngine([receive(), *pieces]) as scripted:
            world = World(engine(scripted.url), proxy_send_timeout_seconds=0.2)
            key = world.add_key()
            client = await streaming(world, key)
            client.reading.clear()
            deaf.set()
            peer = await scripted.peer(0)
            await peer.stalled.wait()
            revoke(world, key)
            await asyncio.wait_for(peer.closed.wait(), 1)
            assert client.task is not None
            await client.task
            assert world.cuts == [("127.0.0.1", "50000")]
            await world.app.aclose()

    run(test())


def test_requests_without_a_key_are_left_alone() -> None:
    async def test() -> None:
        world = World()
        client = world.client("POST", "/health", key=None)
        client.start()
        world.app.end_revoked()
        assert client.task is not None
        await client.task
        assert client.status == 405

    run(test())

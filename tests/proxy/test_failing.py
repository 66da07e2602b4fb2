"""Which failure is told of which engine, seen from the data path; and that callers who leave are none."""

from __future__ import annotations

import pytest

from tests.proxy.harness import CHAT, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, chunked, fin, receive, rst, say, stall

EVENT = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def test_each_name_of_an_address_is_told_of_by_itself() -> None:
    """Also when a name goes and another comes at the same address, whose connections could be used on."""

    async def main() -> None:
        async with ScriptedEngine([receive(), rst()]) as peer:
            world = World(engine(peer.url, name="a"), engine(peer.url, name="b"))
            for name in ("a", "b", "a"):
                assert (await world.chat(f"flm://{name}/m")).status == 502
            world.publish(engine(peer.url, name="c"))
            assert (await world.chat("flm://c/m")).status == 502
            assert world.failures == ["a", "b", "a", "c"]
            await world.app.aclose()

    run(main())


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_what_an_engine_answers_is_no_failure(status: int) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(answer(status, b'{"error":{"message":"no"}}')), stall()]) as peer:
            world = World(engine(peer.url))
            assert (await world.chat("m")).status >= 400
            assert world.failures == []
            await world.app.aclose()

    run(main())


@pytest.mark.parametrize("end", [fin(), rst()], ids=["fin", "rst"])
def test_an_end_after_the_answer_was_complete_is_no_failure(end: object) -> None:
    async def main() -> None:
        whole = chunked(200, [EVENT, DONE], b"content-type: text/event-stream")[:-5]  # but for the last chunk
        async with ScriptedEngine([receive(), say(whole), end]) as peer:  # type: ignore[list-item]
            world = World(engine(peer.url))
            client = await world.chat("m", stream=True)
            assert client.events[-1] == DONE.strip()
            assert world.failures == []
            await world.app.aclose()

    run(main())


@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD, HEAD + EVENT], ids=["nothing", "half a head", "head", "event"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_caller_who_leaves_is_no_failure(sent: bytes, stream: bool) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(sent), stall()]) as peer:
            world = World(engine(peer.url))
            client = world.client("POST", CHAT, body=chat("m", stream=stream))
            task = client.start()
            connected = await peer.peer(0)
            await connected.stalled.wait()
            client.leave()
            await connected.closed.wait()
            await task
            assert world.failures == []
            assert world.lines[-1]["error_type"] == "client_disconnected"
            await world.app.aclose()

    run(main())


def test_a_worker_that_ends_is_no_failure_of_the_engines() -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(HEAD + EVENT), stall()]) as peer:
            world = World(engine(peer.url))
            client = world.client("POST", CHAT, body=chat("m", stream=True))
            task = client.start()
            await client.until(lambda seen: len(seen.events) > 0)
            await world.app.aclose()
            await task
            assert b'"error"' in client.body
            assert world.failures == []

    run(main())

"""When FLM's own comments come while an engine is silent: the first after five seconds, then at the setting's pace."""

from __future__ import annotations

import asyncio

import pytest

from flm.proxy import keepalive
from flm.proxy.keepalive import FIRST_COMMENT_SECONDS, KeepAlive
from tests.proxy.harness import CHAT, World, chat, engine, run
from tests.proxy.test_inference import DONE, GOOD_STREAM, STREAM_HEAD, event
from tests.support.engine import ScriptedEngine, fin, receive, say, stall, until


def test_the_first_comment_is_due_after_five_seconds() -> None:
    assert KeepAlive.first_after == FIRST_COMMENT_SECONDS == 5.0


def test_further_comments_come_at_the_pace_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(keepalive.asyncio, "sleep", at_once)

    async def test() -> None:
        loaded = asyncio.Event()
        async with ScriptedEngine([receive(), until(loaded), say(GOOD_STREAM), stall()]) as scripted:
            world = World(engine(scripted.url), engine_keepalive_comment_seconds=7)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: len(c.events) >= 3)
            loaded.set()
            await task
            assert set(pauses) - {0} == {7}
            assert client.events[-1] == b"data: [DONE]"
            await world.app.aclose()

    run(test())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_an_answer_in_time_has_no_comment(path: str) -> None:
    async def test() -> None:
        text = b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"a",'
        text += b'"logprobs":null,"finish_reason":"stop"}]}\n\n'
        piece = event("a", "stop") if path == CHAT else text
        async with ScriptedEngine([receive(), say(STREAM_HEAD + piece + DONE), fin()]) as scripted:
            world = World(engine(scripted.url))
            body = chat("flm://e/m", stream=True) if path == CHAT else {"model": "m", "prompt": "x", "stream": True}
            client = await world.ask("POST", path, body)
            assert [one[:1] for one in client.events] == [b"d", b"d"]
            await world.app.aclose()

    run(test())


def test_the_engines_own_comment_passes_and_ends_flms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0.001)

    async def test() -> None:
        silent, loaded = asyncio.Event(), asyncio.Event()
        script = [receive(), until(silent), say(STREAM_HEAD + b":\n\n"), until(loaded)]
        script += [say(event("a", "stop") + DONE), fin()]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: len(c.events) == 1)
            silent.set()
            await client.until(lambda c: len(c.events) == 2)
            loaded.set()
            await task
            assert client.events[:2] == [b": waiting for the engine", b":"]
            assert client.events[-1] == b"data: [DONE]"
            await world.app.aclose()

    run(test())


def test_an_error_behind_the_engines_own_comment_is_one_event() -> None:
    async def test() -> None:
        error = b'data: {"error":{"message":"out of memory","type":"x","code":500}}\n\n'
        async with ScriptedEngine([receive(), say(STREAM_HEAD + b":\n\n" + error + DONE), fin()]) as scripted:
            world = World(engine(scripted.url))
            client = await world.chat("flm://e/m", stream=True)
            assert client.status == 200
            assert [one[:1] for one in client.events] == [b":", b"d"]
            assert b"out of memory" in client.events[1]
            assert DONE not in client.body
            await world.app.aclose()

    run(test())

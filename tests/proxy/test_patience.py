"""A late engine: the 504 says who was late, by which limit, what may be going on and what raises the limit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from flm.proxy.keepalive import KeepAlive
from tests.proxy.harness import CHAT, Client, World, chat, engine, run
from tests.proxy.test_inference import GOOD_WHOLE, STREAM_HEAD, event
from tests.support.engine import ScriptedEngine, receive, say, stall, until
from tests.upstream.test_pool import full_listener

HALF = GOOD_WHOLE[:-5]


def late(script: list[Any], *, stream: bool = False, own: dict[str, float] | None = None, **settings: Any) -> Client:
    result: list[Client] = []

    async def test() -> None:
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url, name="gpu1", models=["llama3:8b"], **(own or {})), **settings)
            result.append(await world.chat("flm://gpu1/llama3:8b", stream=stream))
            await world.app.aclose()

    run(test())
    return result[0]


def test_a_model_that_loads_too_long_is_504_and_says_so() -> None:
    client = late([receive(), stall()], engine_first_byte_timeout_seconds=0.1)
    assert (client.status, client.code) == (504, "engine_timeout")
    assert client.headers[b"x-should-retry"] == b"false"
    text = client.error["message"]
    for part in (
        "did not begin to answer within 0.1 s",
        "engine 'gpu1'",
        "model 'llama3:8b'",
        "loading the model",
        "engine.first_byte_timeout_seconds",
    ):
        assert part in text
    assert "--" not in text


def test_an_engine_with_a_limit_of_its_own_names_that_one() -> None:
    client = late([receive(), stall()], own={"first_byte_timeout": 0.1})
    assert client.status == 504
    assert "--first-byte-timeout (`flm engines add`)" in client.error["message"]


@pytest.mark.parametrize(
    ("script", "settings", "parts"),
    [
        (
            [receive(), say(HALF), stall()],
            {"engine_between_bytes_timeout_seconds": 0.1},
            ("sent nothing for 0.1 s in the middle of its answer", "engine.between_bytes_timeout_seconds"),
        ),
        (
            [receive(), stall()],
            {"engine_total_timeout_seconds": 0.1},
            ("was not done within 0.1 s", "engine.total_timeout_seconds"),
        ),
        (
            [receive(), say(HALF), stall()],
            {"engine_total_timeout_seconds": 0.2},
            ("was not done within 0.2 s", "engine.total_timeout_seconds"),
        ),
    ],
    ids=["between bytes", "total, before the head", "total, behind it"],
)
def test_the_other_limits(script: list[Any], settings: dict[str, Any], parts: tuple[str, str]) -> None:
    client = late(script, **settings)
    assert (client.status, client.code) == (504, "engine_timeout")
    assert client.headers[b"x-should-retry"] == b"false"
    for part in (*parts, "engine 'gpu1'", "model 'llama3:8b'"):
        assert part in client.error["message"]


def test_an_engine_that_does_not_accept() -> None:
    async def test() -> None:
        listener, waiting = full_listener()
        world = World(engine(f"http://127.0.0.1:{listener.getsockname()[1]}"), engine_connect_timeout_seconds=0.1)
        client = await world.chat("flm://e/m")
        assert (client.status, client.code) == (504, "engine_timeout")
        text = client.error["message"]
        assert "did not accept a connection within 0.1 s" in text
        assert "engine.connect_timeout_seconds" in text
        await world.app.aclose()
        for each in (listener, *waiting):
            each.close()

    run(test())


def test_in_a_stream_the_same_words_are_the_one_event() -> None:
    script = [receive(), say(STREAM_HEAD + event("a")), stall()]
    client = late(script, stream=True, engine_between_bytes_timeout_seconds=0.1)
    assert client.status == 200
    errors = [json.loads(one[6:])["error"] for one in client.events if b'"error":{' in one]
    assert len(errors) == 1
    assert "engine.between_bytes_timeout_seconds" in errors[0]["message"]
    assert b"[DONE]" not in client.body


def test_a_stream_whose_model_loads_too_long_is_one_event_behind_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0.001)

    async def test() -> None:
        never = asyncio.Event()
        async with ScriptedEngine([receive(), until(never)]) as scripted:
            world = World(engine(scripted.url), engine_first_byte_timeout_seconds=0.1)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            await client.begin()
            assert client.status == 200
            assert [one[:1] for one in client.events] == [b":", b"d"]
            assert "loading the model" in json.loads(client.events[-1][6:])["error"]["message"]
            assert client.complete
            await world.app.aclose()

    run(test())

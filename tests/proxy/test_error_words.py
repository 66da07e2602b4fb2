"""What errors tell API clients: the engine's id and never its address, nothing of FLM's credential for it, and of a
caller's own words no more than fits a line."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from flm.config import Settings
from flm.engines.refusals import MAX_MESSAGE
from flm.policy.restrictions import Restriction
from flm.proxy.view import View
from flm.snapshot import Engine, Model, Snapshot
from tests.proxy.harness import CHAT, EMBEDDINGS, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, fin, mark, receive, rst, say, stall

JSON = b"content-type: application/json"
BEGUN = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"a"}}]}\n\n'
)
CREDENTIAL = "sk-canary-credential"
ALL = {"passthrough_open_routes": "*:* /*"}
ASKED = pytest.mark.parametrize("passed_through", [False, True], ids=["translated", "passed through"])


async def ask(world: World, *, passed_through: bool, stream: bool = False) -> Client:
    if passed_through:
        return await world.ask("POST", "/engine/e/x", body=b"{}")
    return await world.chat("flm://e/m", stream=stream)


def without_address(client: Client, port: int) -> str:
    """The error's message, in whichever way it came."""
    message = str(json.loads(re.sub(rb"^data: ", b"", client.body.strip().split(b"\n\n")[-1]))["error"]["message"])
    assert "127.0.0.1" not in message
    assert str(port) not in message
    return message


# --- where an engine is ----------------------------------------------------------------------------------------------


@ASKED
def test_an_engine_that_is_not_there_is_called_by_its_id(passed_through: bool) -> None:
    async def test() -> None:
        async with ScriptedEngine([fin()]) as scripted:
            await scripted.stop_listening()
            client = await ask(World(engine(scripted.url + "/base"), **ALL), passed_through=passed_through)
            message = without_address(client, scripted.port)
            assert message == "nothing answers at engine 'e' (the connection was refused); is the engine running?"

    run(test())


@pytest.mark.parametrize(
    ("script", "stream", "passed_through", "words"),
    [
        ([receive(), rst()], False, False, "engine 'e' reset the connection before it answered"),
        ([receive(), rst()], False, True, "engine 'e' reset the connection before it answered"),
        ([receive(), say(BEGUN), rst()], True, False, "engine 'e' reset the connection in the middle of its answer"),
        ([receive(), stall()], False, False, "engine 'e' did not begin to answer within 0.1 s (engine 'e', model"),
        ([receive(), stall()], False, True, "engine 'e' did not begin to answer within 0.1 s (engine 'e')"),
        ([receive(), say(b"nonsense\r\n\r\n"), stall()], False, True, "engine 'e': the engine's answer is not HTTP"),
        ([receive(), say(b"\x15\x03\x01\x00\x02\x02\x46"), fin()], False, False, "what listens at engine 'e' speaks"),
    ],
)
def test_an_engine_that_fails_is_called_by_its_id(
    script: list[Any], stream: bool, passed_through: bool, words: str
) -> None:
    async def test() -> None:
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url), engine_first_byte_timeout_seconds=0.1, **ALL)
            client = await ask(world, passed_through=passed_through, stream=stream)
            await world.app.aclose()
            message = without_address(client, scripted.port)
            assert message.startswith(words)

    run(test())


def test_an_engine_that_is_full_is_called_by_its_id() -> None:
    async def test() -> None:
        asked = asyncio.Event()
        async with ScriptedEngine([receive(), mark(asked), stall()]) as scripted:
            world = World(engine(scripted.url), engine_max_in_flight=1)
            first = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = first.start()
            await asked.wait()
            message = without_address(await world.chat("flm://e/m"), scripted.port)
            assert message == "engine 'e' already has 1 requests; try again shortly"
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await world.app.aclose()

    run(test())


@ASKED
def test_what_was_last_seen_of_an_engine_holds_no_address(passed_through: bool) -> None:
    async def test() -> None:
        last = "nothing answers at http://10.0.0.5:8000 (the connection was refused); is the engine running?"
        down = engine("http://10.0.0.5:8000", status="ErrorNetwork", last_error=last)
        client = await ask(World(down, **ALL), passed_through=passed_through)
        assert "10.0.0.5" not in client.error["message"]
        assert "engine 'e' is not answering (ErrorNetwork): nothing answers at engine 'e' (" in client.error["message"]

    run(test())


def view(**urls: str) -> View:
    engines = tuple(Engine(name, "of a newer FLM", url, "RunningHealthy") for name, url in urls.items())
    return View(1, Snapshot("instance", Settings(), engines), {}, lambda *_: pytest.fail("nobody is asked"))


@pytest.mark.parametrize(
    ("text", "asked", "seen"),
    [
        ("the engine at http://10.0.0.5:80 is late", None, "engine 'a' is late"),
        ("what listens at http://10.0.0.5:8000 speaks TLS", None, "what listens at engine 'b' speaks TLS"),
        ("the engine at http://10.0.0.5: gone", None, "engine 'a': gone"),
        ("another name than 10.0.0.5:8000; mend it", None, "another name than engine 'b'; mend it"),
        ("http://10.0.0.5:8000/v1 and http://10.0.0.5:8000.", None, "engine 'b'/v1 and engine 'b'."),
        ("http://10.0.0.5:80001 http://10.0.0.50", None, "http://10.0.0.5:80001 http://10.0.0.50"),
        ("https://gpu:1/x failed", "d", "engine 'd' failed"),
        ("https://gpu:1/x failed", "c", "engine 'c' failed"),
        ("http://not a url: not usable", None, "engine 'f': not usable"),
        ("nothing of the kind", "a", "nothing of the kind"),
    ],
)
def test_whose_address_it_is(text: str, asked: str | None, seen: str) -> None:
    found = view(
        a="http://10.0.0.5", b="http://10.0.0.5:8000", c="https://gpu:1/x", d="https://gpu:1/x", f="http://not a url"
    )
    assert found.by_ids(text, asked) == seen


# --- FLM's credential for an engine ----------------------------------------------------------------------------------


def error(**fields: str) -> bytes:
    return json.dumps({"error": {"message": "odd", "type": "t", **fields}}).encode()


ERRORS = {
    "message": error(message=f"your key {CREDENTIAL} is odd"),
    "code": error(code=CREDENTIAL),
    "param": error(param=CREDENTIAL),
    "type": error(type=CREDENTIAL),
    "text": f"no key {CREDENTIAL}".encode(),
    **{f"cut at {left}": error(message="a" * (MAX_MESSAGE - left) + CREDENTIAL) for left in range(4, len(CREDENTIAL))},
    "text, cut": b"a" * (MAX_MESSAGE - 9) + CREDENTIAL.encode(),
}


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503, 200])
@pytest.mark.parametrize("body", ERRORS.values(), ids=ERRORS.keys())
def test_an_engines_error_tells_nothing_of_flms_credential(body: bytes, status: int) -> None:
    async def test() -> None:
        said = answer(status, body, JSON) if status != 200 else BEGUN + b"data: " + body + b"\n\n"
        async with ScriptedEngine([receive(), say(said), fin()]) as scripted:
            world = World(engine(scripted.url, credential=CREDENTIAL))
            client = await world.chat("flm://e/m", stream=status == 200)
            await world.app.aclose()
            assert b'"error":{' in client.body
            assert CREDENTIAL[:4].encode() not in client.body + b"".join(world.raw)

    run(test())


# --- a caller's own words --------------------------------------------------------------------------------------------

LONG = "n" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        {"model": LONG},
        {"model": f"flm://{LONG}/m"},
        {"model": f"flm://e/{LONG}"},
        {"model": "flm://e/m", "tool_choice": LONG},
        {"model": "flm://e/m", "tool_choice": {"type": "function", "function": {"name": LONG}}, "tools": []},
        {"model": "flm://o/m", "messages": [{"role": LONG, "content": "x"}]},
        {"model": "flm://o/m", "messages": [{"role": "user", "content": [{"type": LONG}]}]},
        {"model": "flm://e/m", "stream_options": {"include_usage": LONG}, LONG: 1},
        {"model": "flm://e/m", "stream": LONG},
        {"model": "long"},
        {"model": "flm://only/m", "input": [LONG], "encoding_format": LONG},
    ],
)
def test_an_error_repeats_little_of_what_a_caller_wrote(body: dict[str, Any]) -> None:
    async def test() -> None:
        ollama = engine("http://127.0.0.1:1", kind="ollama", name="o")
        embedding = Engine("only", "openai", "http://127.0.0.1:1", "RunningHealthy", models=(Model("m"),))
        world = World(engine("http://127.0.0.1:1"), ollama, embedding, aliases={"long": f"flm://e/{LONG}"})
        asked = body if "input" in body else {"messages": [{"role": "user", "content": "x"}], **body}
        client = await world.ask("POST", EMBEDDINGS if "input" in body else CHAT, body=asked)
        assert 400 <= client.status < 600
        assert len(client.error["message"]) < 500

    run(test())


@pytest.mark.parametrize("path", ["/v1/models/flm%3A%2F%2Fe%2F{}", "/v1/models/{}", "/engine/{}/x", "/{}"])
@pytest.mark.parametrize("restricted", [False, True])
def test_an_error_repeats_little_of_a_long_path(path: str, restricted: bool) -> None:
    async def test() -> None:
        world = World(engine("http://127.0.0.1:1"), **ALL)
        key = world.add_key(restriction=Restriction(engines=("x",))) if restricted else world.key
        world.publish(engine("http://127.0.0.1:1"), **ALL)
        client = await world.ask("GET", path.format("n" * 7_000), key=key)
        assert 400 <= client.status < 500
        assert len(client.error["message"]) < 500

    run(test())

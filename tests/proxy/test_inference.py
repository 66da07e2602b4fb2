"""One translated request against an engine that follows a script: its faults become the right status, or one event."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from flm.proxy.keepalive import KeepAlive
from tests.proxy.harness import CHAT, EMBEDDINGS, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, chunked, fin, mark, receive, rst, say, serve, stall, until

SSE = b"content-type: text/event-stream"
JSON = b"content-type: application/json"
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\n" + SSE + b"\r\n\r\n"
GOOD_STREAM = chunked(200, [event("a"), event("b", "stop"), DONE], SSE)
GOOD_WHOLE = answer(200, json.dumps(WHOLE).encode(), JSON)


def ask(script: list[Any], *, stream: bool, path: str = CHAT, **settings: Any) -> tuple[Client, World, ScriptedEngine]:
    result: list[Any] = []

    async def test() -> None:
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url), **settings)
            body = chat("flm://e/m", stream=stream) if path == CHAT else {"model": "flm://e/m", "input": "x"}
            client = await world.ask("POST", path, body)
            await world.app.aclose()
            assert world.app.in_flight == 0
            result.extend((client, world, scripted))

    run(test())
    return result[0], result[1], result[2]


def test_a_whole_answer_comes_back_under_the_name_the_caller_wrote() -> None:
    client, world, scripted = ask([receive(), say(GOOD_WHOLE), stall()], stream=False)
    assert client.status == 200
    assert json.loads(client.body) == {**WHOLE, "model": "flm://e/m"}
    assert client.headers[b"content-length"] == b"%d" % len(client.body)
    sent = json.loads(bytes(scripted.peers[0].received).split(b"\r\n\r\n", 1)[1])
    assert sent == {**chat("m"), "stream": False}
    assert b"authorization" not in bytes(scripted.peers[0].received).lower()
    line = world.lines[-1]
    assert (line["status"], line["error_type"], line["engine_id"], line["model"]) == (200, None, "e", "flm://e/m")
    assert (line["bytes_in"], line["bytes_out"]) == (len(json.dumps(chat("flm://e/m"))), len(client.body))


def test_a_stream_comes_back_event_by_event() -> None:
    client, world, _ = ask([receive(), say(GOOD_STREAM), stall()], stream=True)
    assert client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert client.headers[b"cache-control"] == b"no-cache, no-store"
    assert client.headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in client.headers
    assert client.events[-1] == b"data: [DONE]"
    assert [json.loads(one[6:])["model"] for one in client.events[:-1]] == ["flm://e/m"] * 2
    assert client.complete
    assert world.lines[-1]["ttft_ms"] is not None


def test_connections_are_used_again() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({CHAT: GOOD_STREAM})]) as scripted:
            world = World(engine(scripted.url))
            for _ in range(3):
                assert (await world.chat("flm://e/m", stream=True)).complete
            assert len(scripted.peers) == 1
            await world.app.aclose()

    run(test())


def test_embeddings_go_to_their_own_path() -> None:
    body = {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1}}  # fmt: skip
    client, _, scripted = ask(
        [receive(), say(answer(200, json.dumps(body).encode(), JSON)), stall()], stream=False, path=EMBEDDINGS
    )
    assert json.loads(client.body)["data"][0]["embedding"] == [0.5]
    assert bytes(scripted.peers[0].received).startswith(b"POST /v1/embeddings ")


FAULTS = [
    ("cut before the head", [receive(), fin()], 502, "engine_error"),
    ("reset before the head", [receive(), rst()], 502, "engine_error"),
    ("garbage", [receive(), say(b"SSH-2.0-OpenSSH_9.0\r\n"), stall()], 502, "engine_protocol_error"),
    ("not JSON", [receive(), say(answer(200, b"<html>", JSON)), stall()], 502, "engine_protocol_error"),
    ("status 000", [receive(), say(b"HTTP/1.1 000 x\r\n\r\n"), stall()], 502, "engine_protocol_error"),
    ("status 999", [receive(), say(answer(999, b"{}", JSON)), stall()], 502, None),
    ("a redirect", [receive(), say(answer(302, b"", b"location: http://169.254.169.254/")), stall()], 502, None),
    ("switching", [receive(), say(b"HTTP/1.1 101 x\r\nupgrade: y\r\n\r\n"), stall()], 502, None),
    ("its own 4xx", [receive(), say(answer(400, b'{"error":{"message":"long"}}', JSON)), stall()], 400, None),
    ("its own 401", [receive(), say(answer(401, b'{"error":{"message":"who?"}}', JSON)), stall()], 502, "engine_error"),
    ("its own 500", [receive(), say(answer(500, b'{"error":{"message":"boom"}}', JSON)), stall()], 502, "engine_error"),
    ("its own 503", [receive(), say(answer(503, b"{}", JSON)), stall()], 503, "engine_unavailable"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("script", "status", "code"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_before_the_first_byte_is_a_real_status(
    script: list[Any], status: int, code: str | None, stream: bool
) -> None:
    client, world, _ = ask(script, stream=stream)
    assert client.status == status
    assert code is None or client.code == code
    assert client.headers[b"content-type"] == b"application/json"
    assert client.error["request_id"].encode() == client.headers[b"x-request-id"]
    assert world.lines[-1]["error_type"] == client.code
    if client.code == "engine_protocol_error":
        assert client.headers[b"x-should-retry"] == b"false"


REPEATED = b'{"error":{"message":"Incorrect API key provided: canary-credential.","type":"x"}}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        [receive(), say(answer(401, REPEATED, JSON)), stall()],
        [receive(), say(STREAM_HEAD + event("a") + b"data: " + REPEATED + b"\n\n"), fin()],
    ],
    ids=["refused at once", "refused inside the stream"],
)
def test_an_engine_that_repeats_its_credential_does_not_show_it_to_clients(script: list[Any], stream: bool) -> None:
    async def test() -> None:
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url, credential="canary-credential"))
            client = await world.chat("flm://e/m", stream=stream)
            await world.app.aclose()
            assert b"authorization: Bearer canary-credential" in scripted.peers[0].received
            assert b'"error":{' in client.body
            assert b"canary-credential" not in client.body
            assert b"canary-credential" not in b"".join(world.raw)

    run(test())


def test_an_engine_that_is_not_there_is_503() -> None:
    async def test() -> None:
        async with ScriptedEngine([fin()]) as scripted:
            url = scripted.url
            await scripted.stop_listening()
            world = World(engine(url))
            for stream in (False, True):
                client = await world.chat("flm://e/m", stream=stream)
                assert (client.status, client.code) == (503, "engine_unavailable")
                assert b"retry-after" in client.headers

    run(test())


def test_an_engine_that_never_answers_is_504() -> None:
    client, _, _ = ask([receive(), stall()], stream=False, engine_first_byte_timeout_seconds=0.1)
    assert (client.status, client.code) == (504, "engine_timeout")
    assert client.headers[b"x-should-retry"] == b"false"


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ([fin()], None),
        ([rst()], "engine_error"),
        ([say(b"data: {broken\n\n"), fin()], None),
        ([say(b'data: {"error":{"message":"out of memory","type":"x","code":500}}\n\n'), say(DONE), fin()], None),
        ([stall()], "engine_timeout"),
    ],
    ids=["early end", "reset", "broken event", "its own error event", "silence"],
)
def test_a_fault_in_the_middle_of_a_stream_is_one_event_and_the_end(rest: list[Any], code: str | None) -> None:
    script = [receive(), say(STREAM_HEAD + event("a")), *rest]
    client, world, _ = ask(script, stream=True, engine_between_bytes_timeout_seconds=0.1)
    assert client.status == 200
    assert client.complete
    assert DONE not in client.body
    assert b'"finish_reason":"stop"' not in client.body
    errors = [json.loads(one[6:])["error"] for one in client.events if b'"error":{' in one]
    assert len(errors) == 1
    assert client.events[-1].startswith(b'data: {"error":{')
    assert errors[0]["request_id"].encode() == client.headers[b"x-request-id"]
    assert code is None or errors[0]["code"] == code
    assert world.lines[-1]["error_type"] == errors[0]["code"]
    assert world.lines[-1]["level"] == "error"


def test_an_engine_that_lingers_after_done_costs_the_client_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.proxy.inference.SETTLE_SECONDS", 0.05)
    client, world, scripted = ask([receive(), say(STREAM_HEAD + event("a", "stop") + DONE), stall()], stream=True)
    assert client.events[-1] == b"data: [DONE]"
    assert client.complete
    assert world.lines[-1]["error_type"] is None
    assert scripted.errors == []


def test_the_end_of_an_answer_is_not_taken_for_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.proxy.exchange.WATCH_AFTER_SECONDS", 0)

    async def test() -> None:
        going_on = asyncio.Event()
        script = [receive(), say(STREAM_HEAD + event("a", "stop") + DONE), until(going_on), fin()]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: c.complete and c.receives == 2)
            await asyncio.sleep(0)  # one turn of the loop, for the watch to be told
            going_on.set()
            await task
            assert world.lines[-1]["error_type"] is None
            await world.app.aclose()

    run(test())


def test_comments_keep_a_silent_stream_alive_and_stop_with_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0.001)

    async def test() -> None:
        loaded = asyncio.Event()
        script = [receive(), until(loaded), say(GOOD_STREAM), stall()]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url), engine_keepalive_comment_seconds=1)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: len(c.events) >= 2)
            loaded.set()
            await task
            kinds = [one[:1] for one in client.events]
            assert kinds == sorted(kinds)  # comments (`:`) first, then events (`d`), never mixed
            assert client.events[-1] == b"data: [DONE]"
            assert world.lines[-1]["ttft_ms"] is not None
            await world.app.aclose()

    run(test())


def test_nobody_comments_behind_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0.001)

    async def test() -> None:
        loaded, going_on = asyncio.Event(), asyncio.Event()
        rest = [say(event("b", "stop") + DONE), fin()]
        script = [receive(), until(loaded), say(STREAM_HEAD + event("a")), until(going_on), *rest]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: len(c.events) == 1)
            assert len(commenting()) == 1
            loaded.set()
            await client.until(lambda c: len(c.events) == 2)
            assert commenting() == []
            going_on.set()
            await task
            await world.app.aclose()

    def commenting() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if "KeepAlive" in repr(task.get_coro())]

    run(test())


def test_a_failure_after_a_comment_is_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0.001)

    async def test() -> None:
        failing = asyncio.Event()
        error = answer(404, b'{"error":{"message":"no such model"}}', JSON)
        async with ScriptedEngine([receive(), until(failing), say(error), stall()]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            task = client.start()
            await client.until(lambda c: len(c.events) == 1)
            failing.set()
            await task
            assert client.status == 200
            assert [one[:1] for one in client.events] == [b":", b"d"]
            assert b'"error":{' in client.events[1]
            assert client.complete
            assert world.lines[-1]["ttft_ms"] is None
            await world.app.aclose()

    run(test())


def test_no_comment_is_sent_to_a_request_that_does_not_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepAlive, "first_after", 0)
    client, _, _ = ask([receive(), say(GOOD_WHOLE), stall()], stream=False)
    assert json.loads(client.body)["object"] == "chat.completion"


def test_large_answers_go_in_small_frames() -> None:
    text = "x" * 300_000
    body = {
        **WHOLE,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }
    client, _, _ = ask([receive(), say(answer(200, json.dumps(body).encode(), JSON)), stall()], stream=False)
    assert json.loads(client.body)["choices"][0]["message"]["content"] == text
    assert len(client.messages) > 5  # the harness refuses frames over 64 KiB
    client, _, _ = ask([receive(), say(chunked(200, [event(text, "stop"), DONE], SSE)), stall()], stream=True)
    assert client.complete
    assert json.loads(client.events[0][6:])["choices"][0]["delta"]["content"] == text


def test_what_was_changed_on_the_way_in_is_said_in_a_header_and_the_log() -> None:
    async def test() -> None:
        message = {"role": "assistant", "content": "hi"}
        fields = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": True}
        line = json.dumps({**fields, "done_reason": "stop"}).encode() + b"\n"
        async with ScriptedEngine([receive(), say(answer(200, line, JSON)), stall()]) as scripted:
            world = World(engine(scripted.url, "ollama"))
            body = {**chat("flm://e/m"), "temperature": 3.5, "logit_bias": {"1": 2}}
            client = await world.ask("POST", CHAT, body)
            assert client.status == 200, client.body
            warnings = client.headers[b"x-flm-warnings"]
            assert b"temperature;action=clamped;value=2" in warnings
            assert b"logit_bias;action=dropped" in warnings
            assert sorted(world.lines[-1]["warnings"]) == ["logit_bias dropped", "temperature clamped"]
            assert world.lines[-1]["level"] == "warning"
            await world.app.aclose()

    run(test())


def test_more_requests_than_allowed_are_503_and_health_still_answers() -> None:
    async def test() -> None:
        going_on = asyncio.Event()
        asked = asyncio.Event()
        script = [receive(), mark(asked), until(going_on), say(GOOD_WHOLE), stall()]
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url), proxy_max_in_flight=1)
            first = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = first.start()
            await asked.wait()
            assert world.app.in_flight == 1
            second = await world.chat("flm://e/m")
            assert (second.status, second.code) == (503, "overloaded")
            assert second.headers[b"retry-after"] == b"1"
            assert (await world.ask("GET", "/health", key=None)).status == 200
            assert (await world.ask("GET", "/v1/models", key=None)).status == 401
            going_on.set()
            await task
            assert first.status == 200
            await world.app.aclose()

    run(test())


def test_pools_outlive_a_change_elsewhere_and_go_with_their_engine() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({CHAT: GOOD_WHOLE})]) as scripted:
            mine = engine(scripted.url)
            world = World(mine)
            assert (await world.chat("flm://e/m")).status == 200
            world.publish(mine, engine("http://127.0.0.1:9", name="other"))
            assert (await world.chat("flm://e/m")).status == 200
            assert len(scripted.peers) == 1
            world.publish()
            assert (await world.chat("flm://e/m")).code == "engine_not_found"
            await scripted.peers[0].closed.wait()

    run(test())


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (CHAT, {"messages": [{"role": "user"}] * 40_000}, 413),
        (CHAT, {"messages": [{"role": "user", "content": "," * 200_000}]}, 200),
        ("/v1/embeddings", {"input": [1] * 400_001}, 413),
    ],
)
def test_a_body_of_too_many_values_never_reaches_an_engine(path: str, fields: dict[str, Any], status: int) -> None:
    """Taking it apart would stop everybody else's requests for seconds."""

    async def main() -> None:
        whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
        async with ScriptedEngine([serve({}, answer(200, json.dumps(whole).encode()))]) as scripted:
            world = World(engine(scripted.url))
            client = await world.ask("POST", path, {"model": "m", **fields})
            assert client.status == status
            assert bool(scripted.peers) == (status == 200)
            await world.app.aclose()

    run(main())

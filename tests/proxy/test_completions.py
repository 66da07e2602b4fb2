"""POST /v1/completions through the data path: streamed and whole, from an engine that is translated and another."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from flm.snapshot import Engine, Model
from tests.proxy.harness import Client, World, engine, run
from tests.support.engine import ScriptedEngine, answer, serve

PATH = "/v1/completions"
NATIVE = b'{"response":"Hel","done":false}\n{"response":"lo","done":false}\n{"response":"","done":true}\n'
NATIVE_WHOLE = b'{"response":"Hello","done":true,"prompt_eval_count":2,"eval_count":3}'
CHUNK = {"id": "cmpl-9", "object": "text_completion", "created": 1, "model": "m"}


def chunk(text: str, finish: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


OPENAI = chunk("Hello", None) + chunk("", "stop") + b"data: [DONE]\n\n"
OPENAI_WHOLE = chunk("Hello", "stop")[6:]


def asked(kind: str, body: bytes, content_type: bytes, **fields: Any) -> tuple[Client, bytes, dict[str, Any]]:
    """The client after its request, what the engine got, and the log line."""
    seen: list[tuple[Client, bytes, dict[str, Any]]] = []

    async def main() -> None:
        async with ScriptedEngine([serve({}, answer(200, body, b"content-type: " + content_type))]) as scripted:
            world = World(engine(scripted.url, kind))
            client = await world.ask("POST", PATH, {"model": "m", "prompt": "Say", **fields})
            (peer,) = scripted.peers
            seen.append((client, peer.requests[0], world.lines[-1]))
            await world.app.aclose()

    run(main())
    return seen[0]


CASES = [
    pytest.param("ollama", NATIVE, b"application/x-ndjson", True, b"/api/generate", id="translated stream"),
    pytest.param("ollama", NATIVE_WHOLE, b"application/json", False, b"/api/generate", id="translated"),
    pytest.param("openai", OPENAI, b"text/event-stream", True, b"/v1/completions", id="passed stream"),
    pytest.param("openai", OPENAI_WHOLE, b"application/json", False, b"/v1/completions", id="passed"),
]


@pytest.mark.parametrize(("kind", "body", "content_type", "stream", "path"), CASES)
def test_a_text_is_continued(kind: str, body: bytes, content_type: bytes, stream: bool, path: bytes) -> None:
    client, sent, line = asked(kind, body, content_type, stream=stream)
    assert sent.startswith(b"POST " + path + b" HTTP/1.1\r\n")
    assert client.status == 200
    if stream:
        assert client.headers[b"content-type"].startswith(b"text/event-stream")
        assert client.events[-1] == b"data: [DONE]"
        answers = [json.loads(event[6:]) for event in client.events[:-1]]
    else:
        answers = [json.loads(client.body)]
    assert "".join(each["choices"][0]["text"] for each in answers) == "Hello"
    assert [each["choices"][0]["finish_reason"] for each in answers][-1] == "stop"
    assert {(each["object"], each["model"]) for each in answers} == {("text_completion", "m")}
    (id_,) = {each["id"] for each in answers}
    assert re.fullmatch(r"cmpl-\d{13}-[0-9a-f]{16}" if kind == "ollama" else "cmpl-9", id_)
    assert (line["endpoint"], line["status"], line["model"]) == (PATH, 200, "m")


def test_what_is_dropped_is_said_in_the_answer_and_in_the_log() -> None:
    client, sent, line = asked("ollama", NATIVE_WHOLE, b"application/json", n=2, logit_bias={"1": 5})
    assert client.headers[b"x-flm-warnings"] == b"n;action=changed;value=1, logit_bias;action=dropped"
    assert line["warnings"] == ["n changed", "logit_bias dropped"]
    assert b"logit_bias" not in sent


def test_a_stream_that_breaks_off_ends_with_one_error() -> None:
    client, _, line = asked("ollama", NATIVE[:40], b"application/x-ndjson", stream=True)
    assert b'"text":"Hel"' in client.body
    assert client.body.count(b'"error"') == 1
    assert b"[DONE]" not in client.body
    assert line["error_type"] == "engine_protocol_error"


def test_a_model_for_embeddings_is_not_asked() -> None:
    async def main() -> None:
        model = Model("m", capabilities=("embedding",))
        world = World(Engine("e", "ollama", "http://127.0.0.1:9", "RunningHealthy", models=(model,)))
        for path, body in ((PATH, {"prompt": "x"}), ("/v1/chat/completions", {"messages": [{"role": "user"}]})):
            client = await world.ask("POST", path, {"model": "m", **body})
            assert (client.status, client.code, client.error["param"]) == (400, "unsupported_parameter", "model")
        await world.app.aclose()

    run(main())


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("HEAD", 405), ("PUT", 405)])
def test_it_takes_post_only(method: str, status: int) -> None:
    async def main() -> None:
        client = await World().ask(method, PATH)
        assert (client.status, client.headers[b"allow"]) == (status, b"POST")

    run(main())

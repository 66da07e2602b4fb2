"""Request shapes of real programs, replayed as they send them: every dialect must give a good answer to each.

`shapes/NAME.json`: `client` (whose shape it is), `path` (chat by default), `headers`, `body` with an empty `model`, and
what to `expect`: `text` (the engine's reply, word for word), `calls` (a tool is called), `json` (an object with a
city), `any` of them; `vectors`, or `vectors or no token ids` where engines that read texts only refuse.
Raw HTTP: no SDK mends anything on the way.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai.types.chat import ChatCompletion

from flm.demo import script
from tests.clients.conftest import ODD_MODEL, Target
from tests.support.translating import chunks, is_done, payloads, read_embeddings

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SHAPES = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).with_name("shapes").glob("*.json"))}
BY_PATH = {
    path: [name for name, shape in SHAPES.items() if shape.get("path", CHAT) == path]
    for path in (CHAT, COMPLETIONS, EMBEDDINGS)
}
PROMPTS = ("Where is Lima", "sunny in Lima", "Where is\nLima")
READ_TEXTS_ONLY = frozenset({"ollama"})
ANSWERS = {script.reply(ODD_MODEL, prompt).text for prompt in PROMPTS}


def posted(target: Target, shape: dict[str, Any], model: str) -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(target.server.base)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
    own = {"content-type": "application/json", "authorization": f"Bearer {target.server.key}"}
    body = json.dumps({**shape["body"], "model": model})
    try:
        connection.request("POST", shape.get("path", CHAT), body, {**own, **shape["headers"]})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def answered(target: Target, shape: dict[str, Any], model: str) -> bytes:
    """The body of a good answer, in the form that was asked for."""
    status, headers, answer = posted(target, shape, model)
    assert status == 200, (shape["client"], answer)
    stream = shape["body"].get("stream") is True
    assert headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    if stream:
        wants_usage = (shape["body"].get("stream_options") or {}).get("include_usage") is True
        assert (b'"usage":{' in answer) == wants_usage
        assert is_done(answer)
    assert target.server.key not in json.dumps(target.engine.requests()), "the caller's key reached the engine"
    return answer


def said(body: bytes, *, stream: bool) -> tuple[str, list[str], str | None]:
    """Text, names of the tools called, finish reason."""
    if not stream:
        (choice,) = ChatCompletion.model_validate(json.loads(body)).choices
        calls = [call.function.name for call in choice.message.tool_calls or [] if call.type == "function"]
        return choice.message.content or "", calls, choice.finish_reason
    text, names, finish = "", [], None
    for chunk in chunks(body):
        for part in chunk.choices:
            text += part.delta.content or ""
            names += [
                call.function.name for call in part.delta.tool_calls or [] if call.function and call.function.name
            ]
            finish = part.finish_reason or finish
    return text, names, finish


@pytest.mark.parametrize("name", BY_PATH[CHAT])
def test_a_chat_gets_a_good_answer(target: Target, name: str) -> None:
    shape = SHAPES[name]
    stream = shape["body"].get("stream") is True
    text, calls, finish = said(answered(target, shape, target.chat), stream=stream)
    if shape["expect"] == "calls" or (shape["expect"] == "any" and calls):
        assert (calls, finish) == (["get_weather"], "tool_calls")
    elif shape["expect"] == "json":
        assert json.loads(text) == {"city": "Lima"}
        assert finish == "stop"
    else:
        assert (calls, finish) == ([], "stop")
        assert text in ANSWERS
    assert len(target.asked()) == 1


@pytest.mark.parametrize("name", BY_PATH[COMPLETIONS])
def test_a_text_is_continued(target: Target, name: str) -> None:
    shape = SHAPES[name]
    answer = answered(target, shape, target.chat)
    stream = shape["body"].get("stream") is True
    bodies = [each for each in payloads(answer) if each != b"[DONE]"] if stream else [answer]
    choices = [choice for each in bodies for choice in json.loads(each)["choices"]]
    assert len("".join(choice["text"] for choice in choices).split()) > 3
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]


@pytest.mark.parametrize("name", BY_PATH[EMBEDDINGS])
def test_vectors_come_for_each_input(target: Target, name: str) -> None:
    shape = SHAPES[name]
    if shape["expect"] == "vectors or no token ids" and target.kind in READ_TEXTS_ONLY:
        status, _, answer = posted(target, shape, target.embed)
        error = json.loads(answer)["error"]
        assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", "input")
        return
    answer = answered(target, shape, target.embed)
    raw = json.loads(answer)
    assert [item["index"] for item in raw["data"]] == list(range(len(shape["body"]["input"])))
    packed = shape["body"].get("encoding_format") == "base64"
    assert {type(item["embedding"]) for item in raw["data"]} == {str if packed else list}
    assert read_embeddings(answer.replace(target.embed.encode(), b"flm://engine/some-model")).data

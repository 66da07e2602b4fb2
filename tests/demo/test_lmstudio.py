"""The demo engine as LM Studio, as its documentation and bug tracker have it. Not verified against the product."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from flm.demo.dialect import Answer, Request
from flm.demo.registry import create

PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


def ask(
    method: str, path: str, fields: Any = None, *, version: str | None = None, key: str | None = None, **headers: str
) -> tuple[Answer, bytes]:
    engine = create("lmstudio", (), version, key)
    body = b"" if fields is None else msgspec.json.encode(fields)
    named = {name.encode(): value.encode() for name, value in headers.items()}
    answer = engine.answer(Request(method, path, {}, named, body, 7, 1795361334.0))
    return answer, answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)


def json(method: str, path: str, fields: Any = None, **more: Any) -> tuple[int, Any]:
    answer, body = ask(method, path, fields, **more)
    return answer.status, msgspec.json.decode(body)


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": messages or [{"role": "user", "content": "Hello"}], **fields}


def events(body: bytes) -> list[Any]:
    return [msgspec.json.decode(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


def test_its_greeting_and_its_head() -> None:
    answer, body = ask("GET", "/lmstudio-greeting")
    assert body == b'{"lmstudio":true}'
    head = create("lmstudio", (), None, None).head(answer, len(body), 0.0, True)
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-Powered-By: Express\r\n")
    assert b"\r\nKeep-Alive: timeout=5\r\n" in head
    assert b"Content-Length: 17" in head


@pytest.mark.parametrize("path", ["/health", "/version", "/", "/api/version", "/v1/models/demo"])
def test_a_path_it_does_not_have_is_200(path: str) -> None:
    assert json("GET", path) == (200, {"error": f"Unexpected endpoint or method. (GET {path})"})


@pytest.mark.parametrize(
    ("version", "native", "older"),
    [(None, True, True), ("0.4.0", True, True), ("0.3.6", False, True), ("0.3.5", False, False)],
)
def test_three_generations_of_lists(version: str | None, native: bool, older: bool) -> None:
    assert ("models" in json("GET", "/api/v1/models", version=version)[1]) is native
    assert ("data" in json("GET", "/api/v0/models", version=version)[1]) is older
    _, plain = json("GET", "/v1/models", version=version)
    assert plain["data"][0] == {"id": "demo", "object": "model", "owned_by": "organization_owner"}


def test_instances_and_quantizations() -> None:
    _, listed = json("GET", "/api/v1/models")
    models = {entry["key"]: entry for entry in listed["models"]}
    assert [one["id"] for one in models["lab/demo-think"]["loaded_instances"]] == ["lab/demo-think", "lab/demo-think:2"]
    assert models["demo-vision-cold"]["loaded_instances"] == []
    assert models["demo-vision-cold"]["capabilities"] == {"vision": True, "trained_for_tool_use": True}
    assert "capabilities" not in models["demo-embed"]
    assert models["demo"]["variants"] == ["demo@q4_k_m"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": {"type": "function"}}, "Invalid tool_choice type: 'object'"),
        ({"response_format": {"type": "json_object"}}, "'response_format.type' must be 'json_schema' or 'text'"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "[user, assistant, system, tool]. Got 'developer'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            "must be a base64 encoded image",
        ),
    ],
)
def test_what_it_refuses_is_refused_in_a_string(fields: dict[str, Any], words: str) -> None:
    status, told = json("POST", "/v1/chat/completions", chat(**fields))
    assert status == 400
    assert words in told["error"]


def test_an_unknown_model_and_a_missing_key_are_objects() -> None:
    status, told = json("POST", "/v1/chat/completions", chat(model="nobody"))
    assert (status, told["error"]["code"], told["error"]["param"]) == (400, "model_not_found", "model")
    status, told = json("GET", "/v1/models", key="sekret")
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    assert json("GET", "/v1/models", key="sekret", authorization="Bearer sekret")[0] == 200
    assert json("GET", "/lmstudio-greeting", key="sekret")[0] == 200


def test_a_failing_stream_is_a_200_with_an_event_called_error() -> None:
    answer, body = ask("POST", "/v1/chat/completions", chat({"role": "system", "content": "demo:error=0"}, stream=True))
    assert answer.status == 200
    assert body.startswith(b"event: error\ndata: "), "it comes before anything else"
    assert "greater than the context length" in events(body)[-1]["error"]["message"]
    later = ask("POST", "/v1/chat/completions", chat({"role": "system", "content": "demo:error=2"}, stream=True))[1]
    assert later.startswith(b"data: ")
    assert later.count(b"event: error\ndata: ") == 1
    assert b"[DONE]" not in body + later


def test_calls_have_numbers_for_ids_and_no_content() -> None:
    _, whole = json("POST", "/v1/chat/completions", chat(tools=[TOOL]))
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert "content" not in choice["message"]
    assert choice["message"]["tool_calls"][0]["id"].isdigit()
    assert whole["system_fingerprint"] == "demo"
    body = ask("POST", "/v1/chat/completions", chat(tools=[TOOL], stream=True))[1]
    calls = [
        event["choices"][0]["delta"]["tool_calls"][0]
        for event in events(body)
        if "tool_calls" in str(event["choices"][0]["delta"])
    ]
    assert calls[0] == {
        "index": 0,
        "id": "814890118",
        "type": "function",
        "function": {"name": "clock", "arguments": ""},
    }
    assert msgspec.json.decode("".join(call["function"]["arguments"] for call in calls)) == {}


def test_embeddings_are_arrays_whatever_was_asked() -> None:
    _, told = json("POST", "/v1/embeddings", {"model": "demo-embed", "input": "x", "encoding_format": "base64"})
    assert isinstance(told["data"][0]["embedding"], list)
    assert told["model"] == "demo-embed@q4_k_m"
    assert told["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_a_cold_model_is_loaded_in_silence() -> None:
    assert ask("POST", "/v1/chat/completions", chat(model="demo-vision-cold"))[0].directives.first > 0
    assert ask("POST", "/v1/chat/completions", chat())[0].directives.first == 0


def test_limits_and_images_it_takes() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a b"}, PIXEL]}
    _, told = json("POST", "/v1/chat/completions", chat(message, max_tokens=2, max_completion_tokens=1, n=3))
    assert len(told["choices"]) == 1
    assert told["usage"]["completion_tokens"] == 2
    assert json("POST", "/v1/chat/completions", chat(message, max_tokens=-1))[0] == 200
    assert json("POST", "/v1/chat/completions", {"model": "demo"})[0] == 400

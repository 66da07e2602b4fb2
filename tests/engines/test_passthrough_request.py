"""A request for an engine of OpenAI's own format passes unchanged, but for the model and what the engine lacks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines.base import Dialect
from flm.engines.call import Call, Change, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from flm.wire.openai import peek
from tests.support.belonging import PLAIN
from tests.support.translating import CREATED, RESPONSE_ID, call, chat

LLAMACPP, OPENAI = DIALECTS["llamacpp"], DIALECTS["openai"]
BOTH = [pytest.param(LLAMACPP, id="llamacpp"), pytest.param(OPENAI, id="openai")]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def sent(dialect: Dialect, body: dict[str, Any], **more: Any) -> tuple[dict[str, Any], tuple[Change, ...]]:
    translation = dialect.begin(call(body, **more))
    parsed: dict[str, Any] = json.loads(translation.request.body)
    return parsed, translation.changes


def refused(dialect: Dialect, body: dict[str, Any], **more: Any) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        dialect.begin(call(body, **more))
    return caught.value.status, caught.value.code, caught.value.param


@pytest.mark.parametrize("dialect", BOTH)
def test_bytes_pass_unread(dialect: Dialect) -> None:
    body = (
        b'{"model":"flm://e/m","messages":[ {"role":"user","content":"\\u00e9 \xc3\xa9","x": 1e0} ],'
        b'"unknown":{"deep":[1, 2 ]},"temperature":1.50,"stream":true}'
    )
    wanted = Call(Endpoint.CHAT, peek(body), "m", response_id=RESPONSE_ID, created=CREATED)
    translation = dialect.begin(wanted)
    assert translation.request.path == "/v1/chat/completions"
    assert translation.request.body == body.replace(b'"flm://e/m"', b'"m"')
    assert translation.streaming is True
    assert translation.changes == ()


@pytest.mark.parametrize("dialect", BOTH)
def test_temperature_is_clamped(dialect: Dialect) -> None:
    found, changes = sent(dialect, chat(temperature=9.5))
    assert found["temperature"] == 2
    assert changes == (Change("temperature", "clamped", 2),)


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, (400, "invalid_request", "messages")),
        ({"messages": [{"role": "user", "content": "x"}, 5]}, (400, "invalid_request", "messages")),
        ({"temperature": "hot"}, (400, "invalid_request", "temperature")),
        ({"max_tokens": 0}, (400, "invalid_request", "max_tokens")),
        ({"n": 10**9}, (400, "invalid_request", "n")),
        ({"tools": "x"}, (400, "invalid_request", "tools")),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, (400, "invalid_request", "tool_choice")),
        ({"tools": [{"type": "function"}]}, (400, "invalid_request", "tools")),
        ({"tools": [{"type": "function", "function": {"description": "?"}}]}, (400, "invalid_request", "tools")),
        ({"top_logprobs": 2}, (400, "invalid_request", "top_logprobs")),
        ({"top_logprobs": 2, "logprobs": False}, (400, "invalid_request", "top_logprobs")),
        ({"response_format": {"type": "yaml"}}, (400, "unsupported_parameter", "response_format")),
    ],
)
def test_what_is_malformed_never_reaches_the_engine(
    dialect: Dialect, fields: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    assert refused(dialect, chat(**fields)) == expected


EVERY = [pytest.param(dialect, id=kind) for kind, dialect in DIALECTS.items()]


@pytest.mark.parametrize("dialect", EVERY)
def test_alternatives_of_tokens_that_were_not_asked_for(dialect: Dialect) -> None:
    assert refused(dialect, chat(top_logprobs=2)) == (400, "invalid_request", "top_logprobs")
    dialect.begin(call(chat(top_logprobs=0)))


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize(("stop", "goes"), [("", {}), ([""], {}), (["", "END"], {"stop": ["END"]})])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_an_empty_stop_does_not_go(dialect: Dialect, stop: Any, goes: dict[str, Any], endpoint: Endpoint) -> None:
    found, changes = sent(dialect, {**PLAIN[endpoint], "stop": stop}, endpoint=endpoint)
    assert {name: value for name, value in found.items() if name == "stop"} == goes
    assert changes == (Change("stop", "dropped"),)


@pytest.mark.parametrize("kind", ["lmstudio", "vllm"])
def test_a_schema_beside_json_object_goes_where_it_is_read(kind: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    found, changes = sent(DIALECTS[kind], chat(response_format={"type": "json_object", "schema": schema}))
    assert found["response_format"]["type"] == "json_schema"
    assert found["response_format"]["json_schema"]["schema"] == schema
    assert changes == ()


@pytest.mark.parametrize("kind", ["llamacpp", "lmstudio"])
def test_a_tool_that_is_no_function(kind: str) -> None:
    body = chat(tools=[WEATHER, {"type": "custom", "custom": {"name": "sh"}}])
    assert refused(DIALECTS[kind], body) == (400, "unsupported_parameter", "tools")
    assert sent(OPENAI, body)[0]["tools"] == body["tools"]


@pytest.mark.parametrize("first", ["max_tokens", "max_completion_tokens"])
def test_of_two_limits_lm_studio_gets_the_newer(first: str) -> None:
    limits = {first: 0, "max_tokens": 99, "max_completion_tokens": 3}
    found, changes = sent(DIALECTS["lmstudio"], chat(**limits))
    assert found["max_tokens"] == 3
    assert "max_completion_tokens" not in found
    assert changes == (Change("max_tokens", "dropped"),)


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 1}, "input"),
        ({"input": []}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_malformed_embedding_request(dialect: Dialect, fields: dict[str, Any], param: str) -> None:
    assert refused(dialect, fields, endpoint=Endpoint.EMBEDDINGS) == (400, "invalid_request", param)


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_a_named_tool_is_required_and_alone_at_llama_server() -> None:
    found, changes = sent(LLAMACPP, chat(tools=[WEATHER, CLOCK], tool_choice=named("clock")))
    assert found["tools"] == [CLOCK]
    assert found["tool_choice"] == "required"
    assert changes == ()


@pytest.mark.parametrize(
    "choice", [named("nobody"), named(1), {"type": "function"}, {"type": "allowed_tools", "mode": "auto"}, {}]
)
def test_a_named_tool_that_is_none(choice: dict[str, Any]) -> None:
    assert refused(LLAMACPP, chat(tools=[WEATHER], tool_choice=choice)) == (400, "invalid_request", "tool_choice")


def test_a_registered_server_decides_about_tool_choice_itself() -> None:
    found, _ = sent(OPENAI, chat(tools=[WEATHER], tool_choice=named("nobody")))
    assert found["tool_choice"] == named("nobody")


def test_images_are_refused_where_the_model_is_known_to_see_nothing() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
    assert refused(LLAMACPP, body, capabilities=("completion",)) == (422, "unsupported_modalities", "messages")
    assert sent(LLAMACPP, body, capabilities=("completion", "vision"))[0]["messages"] == body["messages"]
    assert sent(LLAMACPP, body)[0]["messages"] == body["messages"]


def test_dimensions_where_they_would_be_ignored() -> None:
    body = {"input": "a", "dimensions": 4}
    assert refused(LLAMACPP, body, endpoint=Endpoint.EMBEDDINGS) == (400, "unsupported_parameter", "dimensions")
    assert json.loads(OPENAI.begin(call(body, endpoint=Endpoint.EMBEDDINGS)).request.body)["dimensions"] == 4


@pytest.mark.parametrize("input_", [[1, 2], [[1], [2, 3]]])
@pytest.mark.parametrize("dialect", BOTH)
def test_token_ids_pass(dialect: Dialect, input_: Any) -> None:
    for endpoint, name in ((Endpoint.EMBEDDINGS, "input"), (Endpoint.COMPLETIONS, "prompt")):
        translation = dialect.begin(call({name: input_}, endpoint=endpoint))
        assert json.loads(translation.request.body)[name] == input_
        assert translation.request.path == endpoint.value

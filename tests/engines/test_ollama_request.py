"""OpenAI requests become what Ollama was seen to accept, and what it cannot do is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines.call import Change, Endpoint
from flm.engines.ollama import DIALECT
from flm.engines.ollama_request import older
from flm.errors import RequestError
from tests.support.belonging import PLAIN
from tests.support.recordings import exchange
from tests.support.translating import call, chat

FOLDER = "ollama-0.34.4"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
GREEDY = {"temperature": 0, "seed": 1}


def sent(body: dict[str, Any], **more: Any) -> tuple[dict[str, Any], tuple[Change, ...]]:
    translation = DIALECT.begin(call(body, **more))
    assert translation.request.method == "POST"
    assert translation.request.headers == ((b"content-type", b"application/json"),)
    parsed: dict[str, Any] = json.loads(translation.request.body)
    return parsed, translation.changes


def refused(body: dict[str, Any], **more: Any) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        DIALECT.begin(call(body, **more))
    return caught.value.status, caught.value.code, caught.value.param


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("chat", GREEDY),
        ("chat_stream", {**GREEDY, "stream": True}),
        (
            "chat_options",
            {
                "temperature": 0.5,
                "seed": 7,
                "top_k": 10,
                "top_p": 0.8,
                "min_p": 0.05,
                "repeat_penalty": 1.1,
                "max_tokens": 3,
                "num_ctx": 2048,
                "stop": "zzz",
            },
        ),
        ("chat_stop", {**GREEDY, "stop": ["script"]}),
        ("chat_length", {**GREEDY, "max_completion_tokens": 3}),
        ("chat_logprobs", {**GREEDY, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}),
        (
            "chat_format_schema",
            {**GREEDY, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        ),
        (
            "chat_format_json",
            {
                **GREEDY,
                "response_format": {"type": "json_object"},
                "messages": [
                    {"role": "developer", "content": "script:json"},
                    {"role": "user", "content": [{"type": "text", "text": "Say hello to the proxy."}]},
                ],
            },
        ),
        ("chat_keep_alive_0", {**GREEDY, "keep_alive": 0}),
        (
            "chat_image_text_model",
            {
                **GREEDY,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what"},
                            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                        ],
                    }
                ],
            },
        ),
        ("chat_tools", {**GREEDY, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}),
    ],
)
def test_a_request_is_the_one_that_was_seen_to_work(case: str, fields: dict[str, Any]) -> None:
    expected = json.loads(exchange(FOLDER, case).request_body)
    found, changes = sent(chat(**fields), model=expected["model"])
    assert found == expected
    assert changes == ()


def test_a_tool_result_finds_its_name() -> None:
    expected = json.loads(exchange(FOLDER, "chat_tools_result").request_body)
    messages = [
        {"role": "user", "content": "Say hello to the proxy."},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    found, _ = sent({"messages": messages, "tools": [TOOL], **GREEDY}, model="scripted-tools")
    del expected["messages"][1]["tool_calls"][0]["function"]["index"]
    assert found == expected


def test_levels_of_thinking() -> None:
    expected = json.loads(exchange(FOLDER, "chat_think_level").request_body)
    messages = [{"role": "system", "content": "script:think"}, {"role": "user", "content": "Say hello to the proxy."}]
    body = {"messages": messages, "reasoning_effort": "high", **GREEDY}
    found, _ = sent(body, model="scripted-think", capabilities=("completion", "thinking"))
    assert found == expected


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "max")],
)
def test_efforts(effort: str, think: bool | str) -> None:
    found, changes = sent(chat(reasoning_effort=effort))
    assert found["think"] == think
    same = think in (effort, False)
    assert changes == (() if same else (Change("reasoning_effort", "changed", think),))
    found, changes = sent(chat(reasoning_effort=effort), capabilities=("completion",))
    assert "think" not in found
    assert changes == (() if effort == "none" else (Change("reasoning_effort", "dropped"),))


@pytest.mark.parametrize(
    ("effort", "version", "think"),
    [
        ("xhigh", "0.21.0", "high"),
        ("max", "0.21.0", "high"),
        ("max", "0.22.0", "max"),
        ("max", "0.11.4", True),
        ("minimal", "0.11.4", True),
        ("xhigh", "0.22.0", "max"),
        ("xhigh", "0.0.0", "max"),
        ("high", "0.11.4", True),
        ("none", "0.11.4", False),
        (None, "0.11.4", True),
        (None, "0.34.4", None),
    ],
)
def test_old_versions_think_differently(effort: str | None, version: str, think: bool | str | None) -> None:
    asked = chat(reasoning_effort=effort)
    found, changes = sent(asked, engine_version=version, capabilities=("completion", "thinking"))
    assert found.get("think") == think
    if effort in (None, "none", think):
        assert changes == ()
    else:
        assert changes == (Change("reasoning_effort", "changed", "true" if think is True else think),)


def test_an_effort_that_is_none_is_refused_by_old_versions_too() -> None:
    found = refused(chat(reasoning_effort="true"), engine_version="0.11.4")
    assert found == (400, "invalid_request", "reasoning_effort")


def test_of_two_limits_one_goes_and_the_other_is_told() -> None:
    found, changes = sent(chat(max_tokens=99, max_completion_tokens=3))
    assert found["options"] == {"num_predict": 3}
    assert changes == (Change("max_tokens", "dropped"),)
    assert sent(chat(max_tokens=99, max_completion_tokens=None))[1] == ()


@pytest.mark.parametrize(("stop", "goes"), [("", None), ([""], None), (["", "END", ""], ["END"])])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_an_empty_stop_does_not_go(stop: Any, goes: Any, endpoint: Endpoint) -> None:
    found, changes = sent({**PLAIN[endpoint], "stop": stop}, endpoint=endpoint)
    assert found.get("options") == ({"stop": goes} if goes else None)
    assert changes == (Change("stop", "dropped"),)


def test_a_schema_beside_json_object_goes() -> None:
    wanted = {"type": "json_object", "schema": SCHEMA}
    found, changes = sent(chat(response_format=wanted))
    assert (found["format"], changes) == (SCHEMA, ())
    assert sent(chat(response_format={"type": "json_object", "schema": None}))[0]["format"] == "json"
    assert refused(chat(response_format={"type": "json_object", "schema": [1]})) == (*BAD, "response_format")


def test_a_schema_that_a_call_need_not_follow() -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    found, changes = sent(chat(tools=[TOOL, strict]))
    assert (found["tools"], changes) == ([TOOL, strict], (Change("tools", "ignored", "strict"),))
    loose = {"type": "function", "function": {**TOOL["function"], "strict": False}}
    assert sent(chat(tools=[loose]))[1] == ()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.12.10", True),
        ("0.11", True),
        ("0.12.11", False),
        ("0.12.11-rc1", False),
        ("0.13", False),
        ("1.0.0", False),
        ("0.0.0", False),
        ("", False),
        ("x", False),
        (None, False),
    ],
)
def test_versions(version: str | None, expected: bool) -> None:
    assert older(version, (0, 12, 11)) is expected


def test_logprobs_on_a_version_without_them() -> None:
    found, changes = sent(chat(logprobs=True, top_logprobs=3), engine_version="0.11.4")
    assert "logprobs" not in found
    assert "top_logprobs" not in found
    assert changes == (Change("logprobs", "dropped"), Change("top_logprobs", "dropped"))


@pytest.mark.parametrize(
    ("fields", "option", "value", "changes"),
    [
        ({"temperature": 5}, "temperature", 2, (Change("temperature", "clamped", 2),)),
        ({"temperature": -5}, "temperature", 0, (Change("temperature", "clamped", 0),)),
        ({"temperature": 2}, "temperature", 2, ()),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5, ()),
        ({"frequency_penalty": -0.5}, "frequency_penalty", -0.5, ()),
        ({"n": 4}, None, None, (Change("n", "changed", 1),)),
        ({"n": 1}, None, None, ()),
        ({"logit_bias": {"1": 5}}, None, None, (Change("logit_bias", "dropped"),)),
        ({"logit_bias": {}}, None, None, ()),
        ({"parallel_tool_calls": False}, None, None, (Change("parallel_tool_calls", "dropped"),)),
        ({"functions": [{"name": "f"}]}, None, None, (Change("functions", "dropped"),)),
        ({"metadata": {}, "store": False, "service_tier": "auto", "user": None, "x": None}, None, None, ()),
        (
            {"user": "u", "store": True, "x": 1},
            None,
            None,
            (Change("user", "dropped"), Change("store", "dropped"), Change("x", "dropped")),
        ),
    ],
)
def test_what_is_changed_is_said(
    fields: dict[str, Any], option: str | None, value: Any, changes: tuple[Change, ...]
) -> None:
    found, made = sent(chat(**fields))
    assert made == changes
    assert found.get("options") == ({option: value} if option else None)
    assert set(found) <= {"model", "messages", "stream", "options"}


@pytest.mark.parametrize(("unknown", "last"), [(32, Change("x31", "dropped")), (35, Change("*", "dropped", 3))])
def test_however_many_changes_there_are_none_is_kept_quiet(unknown: int, last: Change) -> None:
    _, changes = sent(chat(**{f"x{number}": 1 for number in range(unknown)}))
    assert changes[:32] == tuple(Change(f"x{number}", "dropped") for number in range(32))
    assert changes[-1] == last
    assert len(changes) <= 33


@pytest.mark.parametrize(
    ("choice", "tools", "changes"),
    [
        ("none", None, ()),
        ("auto", ["get_weather", "other"], ()),
        ("required", ["get_weather", "other"], (Change("tool_choice", "changed", "auto"),)),
        (
            {"type": "function", "function": {"name": "other"}},
            ["other"],
            (Change("tool_choice", "changed", "auto"),),
        ),
    ],
)
def test_tool_choice(choice: Any, tools: list[str] | None, changes: tuple[Change, ...]) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    found, made = sent(chat(tools=[TOOL, other], tool_choice=choice))
    names = [tool["function"]["name"] for tool in found["tools"]] if "tools" in found else None
    assert names == tools
    assert made == changes


def test_no_tools_are_no_tools() -> None:
    assert "tools" not in sent(chat(tools=[]))[0]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user"}, {"role": "user", "content": ""}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "user", "content": 'a \u2028 é \\ "'}, {"role": "user", "content": 'a \u2028 é \\ "'}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
        (
            {"role": "assistant", "content": "x", "reasoning_content": "hm"},
            {"role": "assistant", "content": "x", "thinking": "hm"},
        ),
        (
            {"role": "assistant", "content": "x", "reasoning": "hm"},
            {"role": "assistant", "content": "x", "thinking": "hm"},
        ),
        ({"role": "assistant", "content": "x", "reasoning": None}, {"role": "assistant", "content": "x"}),
        (
            {"role": "tool", "tool_call_id": "nobody", "content": "x"},
            {"role": "tool", "content": "x", "tool_call_id": "nobody"},
        ),
        ({"role": "function", "name": "f", "content": "x"}, {"role": "tool", "content": "x", "tool_name": "f"}),
        (
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ),
    ],
)
def test_messages(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent({"messages": [message]})[0]["messages"] == [expected]


def with_content(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def image(url: Any) -> dict[str, Any]:
    return with_content({"type": "image_url", "image_url": {"url": url}})


def with_arguments(arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]}


BAD = 400, "invalid_request"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (*BAD, "messages")),
        ({"messages": []}, (*BAD, "messages")),
        ({"messages": None}, (*BAD, "messages")),
        ({"messages": "hello"}, (*BAD, "messages")),
        ({"messages": ["hello"]}, (*BAD, "messages")),
        ({"messages": [{"content": "x"}]}, (*BAD, "messages")),
        ({"messages": [{"role": 1}]}, (*BAD, "messages")),
        ({"messages": [{"role": "wizard", "content": "x"}]}, (*BAD, "messages[0].role")),
        ({"messages": [{"role": "user", "content": 1}]}, (*BAD, "messages[0].content")),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, (*BAD, "messages[0].content")),
        (with_content("x"), (*BAD, "messages[0].content")),
        (with_content({"text": "x"}), (*BAD, "messages[0].content")),
        (with_content({"type": "text"}), (*BAD, "messages[0].content")),
        (with_content({"type": "text", "text": 1}), (*BAD, "messages[0].content")),
        (with_content({"type": "file", "file": {}}), (422, "unsupported_modalities", "messages")),
        (with_content({"type": "input_audio", "input_audio": {}}), (422, "unsupported_modalities", "messages")),
        (with_content({"type": "hologram"}), (*BAD, "messages[0].content")),
        (image("http://169.254.169.254/"), (*BAD, "messages[0].content")),
        (image("https://example.com/a.png"), (*BAD, "messages[0].content")),
        (image("file:///etc/passwd"), (*BAD, "messages[0].content")),
        (image("data:image/png,raw"), (*BAD, "messages[0].content")),
        (image("data:image/png;base64,"), (*BAD, "messages[0].content")),
        (image(1), (*BAD, "messages[0].content.image_url")),
        (with_arguments("{"), (*BAD, "messages[0].tool_calls[0].function.arguments")),
        (with_arguments("[]"), (*BAD, "messages[0].tool_calls[0].function.arguments")),
        (with_arguments("{} {}"), (*BAD, "messages[0].tool_calls[0].function.arguments")),
        (with_arguments({"x": 1}), (*BAD, "messages[0].tool_calls")),
        (chat(temperature="hot"), (*BAD, "temperature")),
        (chat(temperature=True), (*BAD, "temperature")),
        (chat(top_p="x"), (*BAD, "top_p")),
        (chat(seed=1.5), (*BAD, "seed")),
        (chat(seed=2**70), (*BAD, "seed")),
        (chat(max_tokens=0), (*BAD, "max_tokens")),
        (chat(max_tokens=-1), (*BAD, "max_tokens")),
        (chat(max_tokens=10**12), (*BAD, "max_tokens")),
        (chat(max_completion_tokens=0), (*BAD, "max_completion_tokens")),
        (chat(n=0), (*BAD, "n")),
        (chat(n=10**9), (*BAD, "n")),
        (chat(stop=5), (*BAD, "stop")),
        (chat(stop=[5]), (*BAD, "stop")),
        (chat(logprobs="yes"), (*BAD, "logprobs")),
        (chat(logprobs=True, top_logprobs=21), (*BAD, "top_logprobs")),
        (chat(logit_bias=1), (*BAD, "logit_bias")),
        (chat(tools={}), (*BAD, "tools")),
        (chat(tools=["x"]), (*BAD, "tools")),
        (chat(tools=[{"type": "function"}]), (*BAD, "tools")),
        (chat(tools=[{"type": "function", "function": {"name": 1}}]), (*BAD, "tools")),
        (chat(tools=[{"type": "custom", "custom": {"name": "x"}}]), (400, "unsupported_parameter", "tools")),
        (chat(tools=[TOOL], tool_choice="sometimes"), (*BAD, "tool_choice")),
        (chat(tools=[TOOL], tool_choice=1), (*BAD, "tool_choice")),
        (chat(tools=[TOOL], tool_choice={"type": "allowed_tools"}), (*BAD, "tool_choice")),
        (
            chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "nobody"}}),
            (*BAD, "tool_choice"),
        ),
        (chat(response_format="json"), (*BAD, "response_format")),
        (chat(response_format={"type": "yaml"}), (400, "unsupported_parameter", "response_format")),
        (chat(response_format={"type": "json_schema"}), (*BAD, "response_format.json_schema")),
        (chat(response_format={"type": "json_schema", "json_schema": {"schema": []}}), (*BAD, "response_format")),
        (chat(reasoning_effort="huge"), (*BAD, "reasoning_effort")),
        (chat(keep_alive=[]), (*BAD, "keep_alive")),
        (chat(num_ctx="big"), (*BAD, "num_ctx")),
        (chat(parallel_tool_calls="x"), (*BAD, "parallel_tool_calls")),
    ],
)
def test_what_is_wrong_is_said_before_the_engine_is_asked(
    body: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    assert refused(body) == expected


def test_the_error_says_where() -> None:
    with pytest.raises(RequestError, match=r"`messages\[1\]\.role`"):
        DIALECT.begin(call({"messages": [{"role": "user"}, {"role": 5}]}))


def test_an_image_for_a_model_that_sees_nothing() -> None:
    body = image(f"data:image/png;base64,{PNG}")
    assert refused(body, capabilities=("completion",)) == (422, "unsupported_modalities", "messages")
    assert sent(body, capabilities=("completion", "vision"))[0]["messages"][0]["images"] == [PNG]
    assert sent(body)[0]["messages"][0]["images"] == [PNG]


def test_an_embedding_request() -> None:
    expected = json.loads(exchange(FOLDER, "embed_list").request_body)
    wanted = call(
        {"input": ["a", "b"], "dimensions": 4, "user": "u"}, endpoint=Endpoint.EMBEDDINGS, model="scripted-embed"
    )
    translation = DIALECT.begin(wanted)
    assert translation.request.path == "/api/embed"
    assert json.loads(translation.request.body) == {**expected, "truncate": False}
    assert translation.changes == (Change("user", "dropped"),)
    assert translation.streaming is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {}}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [None]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "encoding_format": 1}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "4"}, "dimensions"),
    ],
)
def test_a_wrong_embedding_request(body: dict[str, Any], param: str) -> None:
    assert refused(body, endpoint=Endpoint.EMBEDDINGS) == (*BAD, param)


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_are_not_embedded(tokens: Any) -> None:
    expected = (400, "unsupported_parameter", "input")
    assert refused({"input": tokens}, endpoint=Endpoint.EMBEDDINGS) == expected


def test_dimensions_on_a_version_that_ignores_them() -> None:
    body = {"input": "a", "dimensions": 4}
    old = refused(body, endpoint=Endpoint.EMBEDDINGS, engine_version="0.11.4")
    assert old == (400, "unsupported_parameter", "dimensions")
    for version in ("0.11.11", "0.34.4", "0.0.0", None):
        assert DIALECT.begin(call(body, endpoint=Endpoint.EMBEDDINGS, engine_version=version)).changes == ()


def test_the_fields_that_ollama_adds_to_embeddings() -> None:
    wanted = call({"input": "a", "truncate": True, "keep_alive": "5m"}, endpoint=Endpoint.EMBEDDINGS)
    sent = json.loads(DIALECT.begin(wanted).request.body)
    assert (sent["truncate"], sent["keep_alive"]) == (True, "5m")


@pytest.mark.parametrize(
    ("endpoint", "capabilities", "version", "param"),
    [
        (Endpoint.CHAT, ("embedding",), "0.34.4", "model"),
        (Endpoint.COMPLETIONS, ("tools", "embedding"), "0.11.4", "model"),
        (Endpoint.EMBEDDINGS, ("completion",), "0.34.4", "model"),
        (Endpoint.EMBEDDINGS, ("completion",), "0.24.0", None),  # every model embeds there
        (Endpoint.EMBEDDINGS, ("completion",), "0.0.0", None),
        (Endpoint.EMBEDDINGS, ("completion",), None, None),
        (Endpoint.EMBEDDINGS, (), "0.34.4", None),
        (Endpoint.CHAT, (), "0.34.4", None),
    ],
)
def test_a_model_asked_for_the_other_kind_of_work(
    endpoint: Endpoint, capabilities: tuple[str, ...], version: str | None, param: str | None
) -> None:
    wanted = call(PLAIN[endpoint], endpoint=endpoint, capabilities=capabilities, engine_version=version)
    if param is None:
        DIALECT.begin(wanted)
        return
    with pytest.raises(RequestError) as error:
        DIALECT.begin(wanted)
    assert (error.value.status, error.value.code, error.value.param) == (400, "unsupported_parameter", param)
    assert "GET /v1/models" in error.value.message

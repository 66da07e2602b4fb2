"""LM Studio: its lists, what it is asked, and its answers as documented. Not verified against the product.

The answers stand in tests/golden/engines/lmstudio-documented, written after its documentation and bug tracker.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from flm.engines.base import Answer, ListingError
from flm.engines.call import Change, Endpoint
from flm.engines.lmstudio import with_content
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from flm.policy.closing import closing_rule
from flm.snapshot import Model
from tests.support.probing import SILENCE, Answers, json_answer, recorded, run
from tests.support.recordings import exchange
from tests.support.translating import (
    CALLER_MODEL,
    Outcome,
    call,
    chat,
    every_way,
    is_done,
    payloads,
    read_completion,
    read_embeddings,
    read_stream,
)

LM = DIALECTS["lmstudio"]
FOLDER = "lmstudio-documented"
QWEN, GEMMA, NOMIC = "qwen/qwen3-4b-2507", "google/gemma-3-4b", "text-embedding-nomic-embed-text-v1.5"
UNKNOWN = recorded(FOLDER, "unknown_path")
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


# --- models -----------------------------------------------------------------------------------------------------------


def listed(answers: Answers) -> tuple[tuple[Model, ...], list[str]]:
    found, sent = run(LM.models(), answers, UNKNOWN)
    return found, [probe.path for probe in sent]


LISTS = {
    "/api/v1/models": recorded(FOLDER, "models_v1"),
    "/api/v0/models": recorded(FOLDER, "models_v0"),
    "/v1/models": recorded(FOLDER, "models"),
}


def test_the_native_list_says_all() -> None:
    found, asked = listed(LISTS)
    assert asked == ["/api/v1/models"]
    thinker = ("completion", "tools", "thinking")
    assert found == (
        Model(QWEN, 4096, 262144, True, thinker, other_names=(f"{QWEN}@q4_k_m",)),
        Model(f"{QWEN}:2", 16384, 262144, True, thinker),
        Model(f"{QWEN}@q8_0", None, 262144, False, thinker),
        Model(GEMMA, None, 131072, False, ("completion", "vision"), other_names=(f"{GEMMA}@4bit",)),
        Model(NOMIC, None, 2048, False, ("embedding",)),
    )


def test_the_older_list_is_next() -> None:
    found, asked = listed({**LISTS, "/api/v1/models": UNKNOWN})
    assert asked == ["/api/v1/models", "/api/v0/models"]
    assert found == (
        Model(QWEN, 4096, 262144, True, ("completion", "tools")),
        Model(GEMMA, None, 131072, False, ("completion", "vision")),
        Model(NOMIC, None, 2048, False, ("embedding",)),
    )


def test_the_plain_list_is_last_and_knows_names_only() -> None:
    found, asked = listed({"/v1/models": LISTS["/v1/models"]})
    assert asked == ["/api/v1/models", "/api/v0/models", "/v1/models"]
    assert found == (Model(QWEN), Model(GEMMA), Model(NOMIC))


@pytest.mark.parametrize(
    "answer", [json_answer('{"data":[]}'), json_answer("[]"), json_answer("{}", 404), json_answer("", 500)]
)
def test_a_list_of_another_shape_is_none(answer: Answer) -> None:
    assert listed({**LISTS, "/api/v1/models": answer})[1] == ["/api/v1/models", "/api/v0/models"]


def test_no_list_at_all() -> None:
    with pytest.raises(ListingError, match="/v1/models answered 200 without a model list"):
        listed({})


def test_a_refused_token_and_silence_end_the_asking() -> None:
    for answer, words in (
        (recorded(FOLDER, "auth_missing"), "refused FLM's credentials"),
        (SILENCE, "not answered in time"),
    ):
        with pytest.raises(ListingError, match=words):
            listed({**LISTS, "/api/v1/models": answer})


def entry(**fields: Any) -> Answer:
    whole = {"key": "k", "type": "llm", "loaded_instances": [], **fields}
    return json_answer(json.dumps({"models": [whole]}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [Model("k", loaded=False, capabilities=("completion",))]),
        ({"type": "whisper"}, [Model("k", loaded=False)]),
        ({"capabilities": {"reasoning": False}}, [Model("k", loaded=False, capabilities=("completion",))]),
        # Loaded under a name of the user's own: the key leads to it too.
        (
            {"loaded_instances": [{"id": "mine", "config": {"context_length": 512}}]},
            [
                Model("k", 512, loaded=True, capabilities=("completion",)),
                Model("mine", 512, loaded=True, capabilities=("completion",)),
            ],
        ),
        ({"loaded_instances": [{"id": "k"}]}, [Model("k", loaded=True, capabilities=("completion",))]),
        ({"variants": None, "selected_variant": None}, [Model("k", loaded=False, capabilities=("completion",))]),
    ],
)
def test_entries_of_the_native_list(fields: dict[str, Any], expected: list[Model]) -> None:
    assert list(listed({"/api/v1/models": entry(**fields)})[0]) == expected


def test_lists_are_bounded() -> None:
    many = [{"id": f"i{number}"} for number in range(10_000)]
    assert len(listed({"/api/v1/models": entry(loaded_instances=many)})[0]) <= 65
    plain = json_answer(json.dumps({"data": many * 2}))
    assert len(listed({"/v1/models": plain})[0]) == 10_000


# --- requests ---------------------------------------------------------------------------------------------------------


def sent(body: dict[str, Any], **more: Any) -> tuple[dict[str, Any], tuple[Change, ...]]:
    translation = LM.begin(call(body, **more))
    parsed: dict[str, Any] = json.loads(translation.request.body)
    return parsed, translation.changes


def refused(body: dict[str, Any], **more: Any) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        LM.begin(call(body, **more))
    return caught.value.status, caught.value.code, caught.value.param


def test_json_object_becomes_a_schema_of_any_object_and_the_caller_is_told() -> None:
    found, changes = sent(chat(response_format={"type": "json_object"}))
    assert found["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "object", "schema": {"type": "object"}},
    }
    assert changes == (Change("response_format", "changed", "json_schema"),)


@pytest.mark.parametrize(
    "format_", [{"type": "text"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}]
)
def test_other_formats_pass(format_: dict[str, Any]) -> None:
    assert sent(chat(response_format=format_)) == ({**chat(response_format=format_), "model": "scripted"}, ())


def test_a_named_tool_is_required_and_alone() -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    found, changes = sent(chat(tools=[WEATHER, CLOCK], tool_choice=choice))
    assert (found["tools"], found["tool_choice"], changes) == ([CLOCK], "required", ())
    assert refused(chat(tools=[WEATHER], tool_choice=choice)) == (400, "invalid_request", "tool_choice")


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_choices_that_are_words_pass(choice: str) -> None:
    assert sent(chat(tools=[WEATHER], tool_choice=choice))[0]["tool_choice"] == choice


def test_the_newer_name_of_the_limit_becomes_the_older_one_and_wins() -> None:
    for body in (
        chat(max_completion_tokens=9),
        chat(max_tokens=5, max_completion_tokens=9),
        chat(max_completion_tokens=9, max_tokens=5),
    ):
        found, changes = sent(body)
        assert (found["max_tokens"], "max_completion_tokens" in found) == (9, False)
        assert changes == ((Change("max_tokens", "dropped"),) if "max_tokens" in body else ())


def test_a_developer_is_the_system() -> None:
    messages = [{"role": "developer", "content": "Be brief.", "x": 1}, {"role": "user", "content": "developer"}]
    found, changes = sent({"messages": messages})
    assert found["messages"] == [{**messages[0], "role": "system"}, messages[1]]
    assert changes == ()


def test_images_pass_as_data_and_are_not_fetched() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, PIXEL]}]}
    assert sent(body)[0]["messages"] == body["messages"]
    assert sent(body, capabilities=("completion", "vision"))[0]["messages"] == body["messages"]
    assert refused(body, capabilities=("completion",)) == (422, "unsupported_modalities", "messages")
    for url in ("https://example.com/a.png", "file:///etc/passwd", "a.png", ""):
        part = {"type": "image_url", "image_url": {"url": url}}
        far = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [PIXEL, part]}]}
        assert refused(far) == (400, "invalid_request", "messages[1].content")
    broken = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
    assert refused(broken) == (400, "invalid_request", "messages[0].content.image_url")


def test_an_image_and_a_developer_in_one_request() -> None:
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": [PIXEL]}]
    assert sent({"messages": messages})[0]["messages"] == [{"role": "system", "content": "x"}, messages[1]]


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"n": 3}, (Change("n", "changed", 1),)),
        ({"n": 1}, ()),
        ({"logprobs": True}, (Change("logprobs", "ignored"),)),
        ({"parallel_tool_calls": False, "tools": [CLOCK]}, (Change("parallel_tool_calls", "ignored"),)),
        ({"temperature": 5.0}, (Change("temperature", "clamped", 2.0),)),
        ({"seed": 1, "stop": ["x"], "logit_bias": {"1": 2}, "presence_penalty": 1.0, "ttl": 300, "top_k": 5}, ()),
    ],
)
def test_what_it_does_not_know_is_told(fields: dict[str, Any], changes: tuple[Change, ...]) -> None:
    assert sent(chat(**fields))[1] == changes


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"max_tokens": 5, "stop": "x", "seed": 1}, ()),
        ({"n": 2}, (Change("n", "changed", 1),)),
        ({"suffix": "x"}, (Change("suffix", "ignored"),)),
        ({"echo": True, "logprobs": 2}, (Change("echo", "ignored"), Change("logprobs", "ignored"))),
    ],
)
def test_what_it_does_not_know_of_a_text_to_continue_is_told(
    fields: dict[str, Any], changes: tuple[Change, ...]
) -> None:
    assert sent({"prompt": "Once", **fields}, endpoint=Endpoint.COMPLETIONS)[1] == changes


def test_dimensions_it_would_ignore_are_refused() -> None:
    body = {"input": "a", "dimensions": 2}
    assert refused(body, endpoint=Endpoint.EMBEDDINGS) == (400, "unsupported_parameter", "dimensions")


def test_what_changes_its_models_is_closed() -> None:
    for method, path in (
        ("POST", "/api/v1/models/load"),
        ("POST", "/api/v1/models/unload"),
        ("POST", "/api/v1/models/download"),
        ("GET", "/api/v1/models/download/status/1"),
        ("POST", "/api/v1/chat"),
        ("POST", "/v1/responses"),
        ("DELETE", "/v1/models/x"),
    ):
        assert closed(method, path), (method, path)
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/api/v1/models"),
        ("GET", "/api/v0/models/a"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/api/v0/chat/completions"),
        ("GET", "/lmstudio-greeting"),
    ):
        assert not closed(method, path), (method, path)


def closed(method: str, path: str) -> bool:
    return closing_rule(LM.closed_routes, method, path) is not None


# --- answers ----------------------------------------------------------------------------------------------------------


def answered(case: str, **fields: Any) -> Outcome:
    """What a client gets for a documented answer, however it is cut."""
    found = exchange(FOLDER, case)
    stream = b"event-stream" in found.headers[b"content-type"] or case.endswith("_stream")
    return spoken(found.status, found.headers, found.body, stream=stream, **fields)


def spoken(
    status: int, headers: dict[bytes, bytes], body: bytes, *, stream: bool, usage: bool = False, model: str = QWEN
) -> Outcome:
    options: dict[str, Any] = {"stream": True} if stream else {}
    if usage:
        options["stream_options"] = {"include_usage": True}
    return every_way(LM, call(chat(**options), model=model), status, headers, body)


HELLO = "Hello, proxy! 👋 <b>&</b>"


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream(usage: bool) -> None:
    found = answered("chat_stream_usage", usage=usage)
    assert found.error is None
    assert is_done(found.data)
    reply = read_stream(found.data)  # one id, one time, one role, the caller's model
    assert (reply.text, reply.finish, reply.usage) == (HELLO, "stop", (14, 7) if usage else None)
    prints = {json.loads(each)["system_fingerprint"] for each in payloads(found.data) if each != b"[DONE]"}
    assert prints == {CALLER_MODEL}
    assert QWEN.encode() not in found.data


def test_why_a_stream_ended_is_its_own_word() -> None:
    assert read_stream(answered("chat_length_stream").data).finish == "length"


@pytest.mark.parametrize("case", ["chat_reasoning_stream", "chat_reasoning_content_stream"])
def test_thoughts_have_one_name(case: str) -> None:
    reply = read_stream(answered(case).data)
    assert (reply.reasoning, reply.text) == ("The user wants a greeting.", "Hello.")


@pytest.mark.parametrize("case", ["chat_reasoning", "chat_reasoning_content"])
def test_thoughts_of_a_whole_answer(case: str) -> None:
    reply = read_completion(answered(case).data)
    assert (reply.reasoning, reply.text) == ("The user wants a greeting.", "Hello.")


def test_a_whole_answer() -> None:
    found = answered("chat")
    reply = read_completion(found.data)
    assert (reply.text, reply.finish, reply.usage) == (HELLO, "stop", (14, 7))
    assert json.loads(found.data)["system_fingerprint"] == CALLER_MODEL


CALLS = [("get_current_time", {"zone": "Asia/Tokyo"}), ("get_current_time", {"zone": "Europe/Berlin"})]


def test_calls_without_content_get_a_null_and_keep_their_numbers() -> None:
    found = answered("chat_tools")
    message = json.loads(found.data)["choices"][0]["message"]
    assert "content" in message
    assert message["content"] is None
    reply = read_completion(found.data)
    assert reply.calls == [("365174485", *CALLS[0]), ("365174486", *CALLS[1])]
    assert (reply.text, reply.finish) == (None, "tool_calls")


def test_streamed_calls_keep_their_numbers() -> None:
    reply = read_stream(answered("chat_tools_stream").data)
    assert reply.calls == [("814890118", *CALLS[0]), ("814890119", *CALLS[1])]
    assert reply.finish == "tool_calls"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"tool_calls"', b'{"choices":5,"tool_calls":1}', b'{"choices":[{"tool_calls":1}]}']
)
def test_what_is_no_answer_is_left_to_its_reader(body: bytes) -> None:
    assert with_content(body) == body


TOO_LONG = "The number of tokens to keep from the initial prompt is greater than the context length. "


@pytest.mark.parametrize(
    ("case", "status", "code", "words", "param"),
    [
        ("chat_context_too_long", 400, "context_length_exceeded", TOO_LONG, "messages"),
        ("chat_context_too_long_stream", 400, "context_length_exceeded", TOO_LONG, "messages"),
        ("chat_string_error_stream", 502, "engine_error", "Model unloaded.", None),
        ("chat_tools_named", 400, "invalid_request", "Invalid tool_choice type: 'object'", None),
        ("chat_json_object", 400, "invalid_request", "'response_format.type' must be", None),
        ("chat_unknown_model", 400, "model_not_found", 'Invalid model identifier "nobody"', "model"),
        ("chat_no_model_loaded", 404, "model_not_found", "No models loaded", "model"),
        ("chat_unexpected_endpoint", 502, "engine_error", "Unexpected endpoint or method.", None),
        ("chat_unexpected_endpoint_stream", 502, "engine_error", "Unexpected endpoint or method.", None),
        ("auth_missing", 502, "engine_error", "An LM Studio API token is required", None),
    ],
)
def test_errors_get_their_status_before_any_byte(
    case: str, status: int, code: str, words: str, param: str | None
) -> None:
    found = answered(case)
    assert found.data == b""
    assert found.error is not None
    assert (found.error[0], found.error[1], found.error[3]) == (status, code, param)
    assert words in found.error[2]


@pytest.mark.parametrize(
    "after", [b"", b"data: [DONE]\n\n", b'data: {"error":{"message":"again"}}\n\n', b"data: {}\n\n"]
)
def test_a_stream_that_fails_later_ends_in_one_error_and_nothing_after_it(after: bytes) -> None:
    """Whether `[DONE]` follows is not documented."""
    told = exchange(FOLDER, "chat_failed_stream")
    found = spoken(200, told.headers, told.body + after, stream=True)
    assert found.error is not None
    assert (found.error[0], found.error[2][:21]) == (502, "The model has crashed")
    assert b"event:" not in found.data
    assert b"[DONE]" not in found.data
    assert b'"error"' not in found.data, "the proxy writes the one error event"
    assert read_stream(found.data).text == "Hello, proxy"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": QWEN, "system_fingerprint": QWEN}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + json.dumps({**fields, "choices": [choice], **more}).encode() + b"\n\n"


STREAM = {b"content-type": b"text/event-stream"}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "body",
    [
        DONE,
        chunk({"role": "assistant", "content": ""}) + DONE,
        chunk({"role": "assistant", "content": "Hi"}) + DONE,
        chunk({"content": '"finish_reason":"stop"'}) + DONE,
    ],
)
def test_a_stream_that_does_not_say_why_it_ended_is_an_error(body: bytes) -> None:
    """LMS#2339: well-formed, and empty."""
    found = spoken(200, STREAM, body, stream=True)
    assert found.error is not None
    assert (found.error[0], found.error[1]) == (502, "engine_protocol_error")
    assert "without saying why" in found.error[2]
    assert b"[DONE]" not in found.data
    assert b'"finish_reason":"' not in found.data


def test_a_stream_that_ends_early_is_an_error() -> None:
    found = spoken(200, STREAM, chunk({"content": "Hi"}, "stop"), stream=True)
    assert found.error is not None
    assert "early" in found.error[2]


def test_each_choice_has_its_role_once() -> None:
    def both(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return (
            b"data: %s\n\n"
            % json.dumps(
                {"model": QWEN, "choices": [{"index": n, "delta": delta, "finish_reason": finish} for n in (0, 1)]}
            ).encode()
        )

    body = (
        both({"role": "assistant", "content": "a"})
        + both({"role": "assistant", "content": "b"})
        + both({}, "stop")
        + DONE
    )
    found = spoken(200, STREAM, body, stream=True)
    events = [json.loads(each) for each in payloads(found.data) if each != b"[DONE]"]
    roles = [[choice["delta"].get("role") for choice in event["choices"]] for event in events]
    assert roles == [["assistant"] * 2, [None] * 2, [None] * 2]


@pytest.mark.parametrize("said", [QWEN, f"{QWEN}@q4_k_m"])
def test_the_echo_of_a_quantization_is_the_same_model(said: str) -> None:
    body = chunk({"content": "a"}, "stop", model=said, system_fingerprint=said) + DONE
    found = spoken(200, STREAM, body, stream=True)
    event = json.loads(next(payloads(found.data)))
    assert (event["model"], event["system_fingerprint"]) == (CALLER_MODEL, CALLER_MODEL)


@pytest.mark.parametrize("value", ["fp_44709d6fcb", "other/model", "", None])
def test_a_fingerprint_that_is_none_of_the_models_names_stays(value: str | None) -> None:
    body = chunk({"content": "a"}, "stop", system_fingerprint=value) + DONE
    found = spoken(200, STREAM, body, stream=True)
    assert json.loads(next(payloads(found.data)))["system_fingerprint"] == value


def test_words_of_the_model_that_look_like_fields_stay() -> None:
    text = f'"system_fingerprint":"{QWEN}" "role":"x" "model":"{QWEN}"'
    found = spoken(200, STREAM, chunk({"role": "assistant", "content": text}, "stop") + DONE, stream=True)
    assert read_stream(found.data).text == text


# --- embeddings -------------------------------------------------------------------------------------------------------


def embedded(case: str, **fields: Any) -> bytes:
    found = exchange(FOLDER, case)
    inputs = json.loads(found.request_body)["input"]
    wanted = call({"input": inputs, **fields}, endpoint=Endpoint.EMBEDDINGS, model=NOMIC)
    outcome = every_way(LM, wanted, found.status, found.headers, found.body)
    assert outcome.error is None, outcome.error
    return outcome.data


def test_embeddings_are_packed_by_flm_where_base64_is_asked_for() -> None:
    body = embedded("embeddings_base64", encoding_format="base64")
    assert read_embeddings(body).usage.total_tokens == 0
    (item,) = json.loads(body)["data"]
    assert struct.unpack("<3f", base64.b64decode(item["embedding"])) == pytest.approx((-0.016731, 0.02846, -0.140722))


def test_embeddings_as_numbers_under_the_callers_model() -> None:
    body = embedded("embeddings", encoding_format="float")
    assert [item.embedding for item in read_embeddings(body).data] == [[-0.016731, 0.02846, -0.140722], [1, 0, -0.001]]
    assert b"@q8_0" not in body


def test_an_error_in_the_place_of_embeddings_is_one() -> None:
    wanted = call({"input": "a"}, endpoint=Endpoint.EMBEDDINGS, model=NOMIC)
    body = b'{"error":"Unexpected endpoint or method. (POST /v1/embeddings)"}'
    outcome = every_way(LM, wanted, 200, {b"content-type": b"application/json"}, body)
    assert outcome.error is not None
    assert outcome.error[:2] == (502, "engine_error")

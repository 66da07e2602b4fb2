"""Every recorded answer of a real vLLM through its dialect: what a client must read, written down case by case.

`test_law` compares with an independent reading of the recordings; here the expectations stand as plain values, and a
recording that no table names is a failure. Then what no recording can hold: ends that are none, and dead engines.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any

import pytest

from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from tests.support.recordings import Exchange, cases, exchange
from tests.support.translating import (
    CALLER_MODEL,
    Outcome,
    Reply,
    call,
    chat,
    chunks,
    every_way,
    is_done,
    payloads,
    read_completion,
    read_embeddings,
    read_stream,
)

VLLM = DIALECTS["vllm"]
RANDOM, SCRIPTED = "vllm-0.32.0", "vllm-0.32.0/scripted"
VECTORS, SCRIPTED_VECTORS = "vllm-0.32.0/embedding", "vllm-0.32.0/scripted-embedding"
ADAPTER = "vllm-0.32.0/adapter"
FOLDERS = (RANDOM, SCRIPTED, ADAPTER, VECTORS, SCRIPTED_VECTORS)
HELLO = "Hello from the scripted model."
EIGHT = "ocument MODIF RE==ocument MODIF RE RE"
ESCAPED = '<b> & "quoted"\\back\n\n\u2028\t'


def weather(*cities: str) -> list[tuple[str, Any]]:
    return [("get_weather", {"city": city}) for city in cities]


def said(text: str | None, finish: str, usage: tuple[int, int], **more: Any) -> Reply:
    return Reply(text, finish=finish, usage=usage, **more)


WHOLE: dict[tuple[str, str], Reply] = {
    (RANDOM, "chat"): said(EIGHT, "length", (20, 8)),
    (RANDOM, "chat_bad_role"): said(" direringRE accor", "length", (13, 4)),
    (RANDOM, "chat_no_model"): said(" namstryour deriv", "length", (20, 4)),
    (RANDOM, "chat_unknown_field"): said("ocument MODIF RE==", "length", (20, 4)),
    (SCRIPTED, "chat"): said(HELLO, "stop", (4, 7)),
    (SCRIPTED, "chat_utf8"): said("日 😀", "stop", (16, 9)),
    (SCRIPTED, "chat_escape"): said(ESCAPED, "stop", (18, 8)),
    (SCRIPTED, "chat_empty"): said("", "stop", (17, 1)),
    (SCRIPTED, "chat_length"): said("Hello from the", "length", (4, 3)),
    (SCRIPTED, "chat_stop_text"): said("Hello from the scripted", "stop", (4, 5)),
    (SCRIPTED, "chat_json_object"): said("{}", "stop", (4, 3)),
    (SCRIPTED, "chat_json_schema"): said('{"ok":true}', "stop", (4, 9)),
    (SCRIPTED, "chat_think"): said("Then we speak", "stop", (17, 9), reasoning="First I ponder"),
    (SCRIPTED, "chat_think_only"): said(None, "length", (17, 3), reasoning="First I"),
    (SCRIPTED, "chat_think_hidden"): said("Then we speak", "stop", (17, 9)),
    (SCRIPTED, "chat_tools"): said(None, "tool_calls", (204, 2), calls=weather("Paris")),
    (SCRIPTED, "chat_tools_two"): said(None, "tool_calls", (220, 3), calls=weather("Tokyo", "Oslo")),
    (SCRIPTED, "chat_tools_one_of_two"): said(None, "tool_calls", (220, 2), calls=weather("Tokyo")),
    (SCRIPTED, "chat_tools_after_text"): said("Let me look.", "tool_calls", (220, 3), calls=weather("Rome")),
    (SCRIPTED, "chat_tools_in_pieces"): said(None, "tool_calls", (221, 7), calls=weather("Lima")),
    (SCRIPTED, "chat_tools_required"): said("", "tool_calls", (204, 2), calls=weather("Paris")),
    (SCRIPTED, "chat_tools_named"): said("", "stop", (204, 2), calls=weather("Paris")),
    (ADAPTER, "chat_adapter"): said(HELLO, "stop", (4, 7)),
}
"""(folder, case) -> what a client must read of a whole answer; the ids of calls are left out."""

# Where a stream says less than the whole answer: it has usage only where that was asked for.
STREAMED: dict[tuple[str, str], Reply] = {
    (RANDOM, "chat_stream"): Reply(EIGHT, finish="length"),
    (RANDOM, "chat_stream_usage"): said(EIGHT, "length", (20, 8)),
    (SCRIPTED, "chat_usage_stream"): said(HELLO, "stop", (4, 7)),
    (SCRIPTED, "chat_continuous_usage_stream"): said(HELLO, "stop", (4, 7)),
    **{
        (folder, f"{case}_stream"): Reply(
            reply.text or "", reasoning=reply.reasoning, calls=reply.calls, finish=reply.finish
        )
        for (folder, case), reply in WHOLE.items()
        if folder != RANDOM
    },
}

REFUSED: dict[tuple[str, str], tuple[int, str, str | None, str]] = {
    (RANDOM, "chat_bad_json"): (400, "invalid_request", "28", "1 validation error"),
    (RANDOM, "chat_context_too_long"): (400, "context_length_exceeded", "messages", "This model's maximum context"),
    (RANDOM, "chat_context_too_long_stream"): (400, "context_length_exceeded", "messages", "This model's maximum"),
    (RANDOM, "chat_empty_messages"): (400, "invalid_request", None, "Cannot apply chat template to an empty"),
    (RANDOM, "chat_image_part"): (422, "unsupported_modalities", "messages", "tiny-llama is not a multimodal model"),
    (RANDOM, "chat_no_messages"): (400, "invalid_request", "messages", "1 validation error"),
    (RANDOM, "chat_not_object"): (400, "invalid_request", "body", "1 validation error"),
    (RANDOM, "chat_response_format_unknown"): (400, "invalid_request", "response_format.type", "6 validation errors"),
    (RANDOM, "chat_temperature_negative"): (400, "invalid_request", "temperature", "temperature must be non-negative"),
    (RANDOM, "chat_temperature_out_of_range"): (400, "invalid_request", "temperature", "temperature must be in [0, 2]"),
    (RANDOM, "chat_unknown_model"): (404, "model_not_found", "model", "The model `no-such-model` does not exist."),
    (RANDOM, "embeddings"): (404, "not_found", None, "Not Found"),
    (RANDOM, "embeddings_base64"): (404, "not_found", None, "Not Found"),
    (RANDOM, "embeddings_batch"): (404, "not_found", None, "Not Found"),
    (SCRIPTED, "chat_file_part"): (400, "invalid_request", "type", "Unsupported chat content part type: 'file'"),
    (SCRIPTED, "chat_stream_options_without_stream"): (400, "invalid_request", "stream_options", "Stream options"),
    (SCRIPTED, "chat_tool_choice_without_tools"): (400, "invalid_request", "tool_choice", "When using `tool_choice`"),
    (SCRIPTED, "chat_tools_empty"): (400, "invalid_request", "tools", "`tools` must not be an empty array."),
    (SCRIPTED, "chat_wrong_type"): (400, "invalid_request", "temperature", "1 validation error"),
    (SCRIPTED, "core_killed"): (502, "engine_error", None, "EngineCore encountered an issue."),
    (ADAPTER, "chat_no_tool_parser"): (400, "unsupported_parameter", "tools", '"auto" tool choice requires --enable'),
    (ADAPTER, "chat_required_no_tool_parser"): (400, "unsupported_parameter", "tool_choice", 'tool_choice="required"'),
    (SCRIPTED, "completions_no_prompt"): (400, "invalid_request", "prompt", "Either prompt or prompt_embeds"),
    (SCRIPTED, "completions_suffix"): (400, "unsupported_parameter", "suffix", "suffix is only supported for models"),
    (SCRIPTED, "completions_too_long"): (400, "context_length_exceeded", "prompt", "This model's maximum context"),
    (SCRIPTED, "completions_unknown_model"): (404, "model_not_found", "model", "The model `no-such-model`"),
    (VECTORS, "chat_on_embedding_model"): (404, "not_found", None, "Not Found"),
    (VECTORS, "embeddings_dimensions"): (400, "unsupported_parameter", "dimensions", "Model 'tiny-embed' does not"),
    (VECTORS, "embeddings_empty"): (400, "invalid_request", None, "The decoder prompt cannot be empty"),
    (VECTORS, "embeddings_too_long"): (400, "context_length_exceeded", "input", "This model's maximum context"),
    (SCRIPTED_VECTORS, "completions_on_embedding_model"): (404, "not_found", None, "Not Found"),
    (SCRIPTED_VECTORS, "embeddings_dimensions"): (400, "unsupported_parameter", "dimensions", "Model 'scripted-embed'"),
    (SCRIPTED_VECTORS, "embeddings_empty_list"): (400, "invalid_request", None, "You must pass at least one prompt"),
    (SCRIPTED_VECTORS, "embeddings_normalize"): (400, "invalid_request", "normalize", "Parameter `normalize` was"),
    (SCRIPTED_VECTORS, "embeddings_unknown_model"): (
        404,
        "model_not_found",
        "model",
        "The model `nope` does not exist",
    ),
}
"""(folder, case) -> status, code, param, and how the message begins."""

# Judged by tests of their own below.
CORE_KILLED = ("core_killed_stream", "core_killed_completions_stream")
BY_THEMSELVES = {
    *((RANDOM, f"chat_{case}") for case in ("content_parts", "json_object", "json_schema", "logit_bias")),
    *((RANDOM, f"chat_{case}") for case in ("max_completion_tokens", "penalties", "stop")),
    *((RANDOM, f"chat_tools_{case}") for case in ("named", "named_stream", "required")),
    *((folder, f"chat_logprobs{end}") for folder in (RANDOM, SCRIPTED) for end in ("", "_stream")),
    *((RANDOM, f"chat_n2{end}") for end in ("", "_stream")),
    *((SCRIPTED, f"chat_two_choices{end}") for end in ("", "_stream")),
    *((SCRIPTED, f"chat_tools_{case}") for case in ("cut", "cut_stream", "none", "none_stream")),
}
NO_TRANSLATION = {"/v1/responses", "/v1/messages"}  # these go through `/engine/…` as they are


def asked(recorded: Exchange) -> Call:
    """The recorded request as a client's, or the least one of its form where FLM refuses to make it."""
    endpoint = Endpoint(recorded.path)
    plain: dict[Endpoint, dict[str, Any]] = {
        Endpoint.CHAT: chat(),
        Endpoint.COMPLETIONS: {"prompt": "x"},
        Endpoint.EMBEDDINGS: {"input": "x"},
    }
    try:
        body = json.loads(recorded.request_body)
    except ValueError:
        return call(plain[endpoint], endpoint=endpoint)
    if not isinstance(body, dict):
        return call(plain[endpoint], endpoint=endpoint)
    wanted = call({**body, "model": CALLER_MODEL}, endpoint=endpoint, model=body.get("model", "m"))
    if recorded.status != 200:
        try:
            VLLM.begin(wanted)
        except RequestError:  # FLM refuses before the engine is asked; its words are translated all the same
            return call(plain[endpoint], endpoint=endpoint)
    return wanted


def passed(folder: str, case: str) -> Outcome:
    recorded = exchange(folder, case)
    return every_way(VLLM, asked(recorded), recorded.status, recorded.headers, recorded.body)


def without_ids(reply: Reply) -> Reply:
    assert len({identity for identity, _, _ in reply.calls} - {"", None}) == len(reply.calls)
    return Reply(
        reply.text,
        reply.reasoning,
        [(name, arguments) for _, name, arguments in reply.calls],  # type: ignore[misc]
        reply.finish,
        reply.usage,
    )


def test_every_recording_has_its_expectation() -> None:
    known = {*WHOLE, *STREAMED, *REFUSED, *BY_THEMSELVES, *((SCRIPTED, case) for case in CORE_KILLED)}
    for folder in FOLDERS:
        for case in cases(folder):
            recorded = exchange(folder, case)
            if recorded.method != "POST" or recorded.path in NO_TRANSLATION or (folder, case) in known:
                continue
            assert recorded.status == 200, (folder, case)
            assert recorded.path in (Endpoint.COMPLETIONS.value, Endpoint.EMBEDDINGS.value), (folder, case)
    assert all(case in cases(folder) for folder, case in known)


@pytest.mark.parametrize(("folder", "case"), WHOLE)
def test_a_whole_answer(folder: str, case: str) -> None:
    found = passed(folder, case)
    assert found.error is None
    assert without_ids(read_completion(found.data)) == WHOLE[folder, case]


@pytest.mark.parametrize(("folder", "case"), STREAMED)
def test_a_stream(folder: str, case: str) -> None:
    found = passed(folder, case)
    assert found.error is None
    assert is_done(found.data)
    assert without_ids(read_stream(found.data)) == STREAMED[folder, case]


@pytest.mark.parametrize(("folder", "case"), REFUSED)
def test_a_refusal(folder: str, case: str) -> None:
    found = passed(folder, case)
    assert found.data == b""
    assert found.error is not None
    status, code, message, param, _ = found.error
    expected = REFUSED[folder, case]
    assert (status, code, param) == expected[:3]
    assert message.startswith(expected[3])


@pytest.mark.parametrize(("folder", "case"), sorted(BY_THEMSELVES))
def test_everything_else_passes_word_for_word(folder: str, case: str) -> None:
    """Choices, log probabilities and calls cut short are the engine's own, under the caller's model."""
    recorded, found = exchange(folder, case), passed(folder, case)
    assert found.error is None
    if case.endswith("_stream"):
        expected = [json.loads(data) for data in payloads(recorded.body) if data != b"[DONE]"]
        read = [json.loads(data) for data in payloads(found.data) if data != b"[DONE]"]
        chunks(found.data)
        assert is_done(found.data)
    else:
        expected, read = [json.loads(recorded.body)], [json.loads(found.data)]
    for one in expected:
        one["model"] = CALLER_MODEL
        for choice in one["choices"]:
            for piece in choice.get("delta", {}).get("tool_calls", []):
                if "name" in piece["function"]:
                    piece["function"].setdefault("arguments", "")
    assert read == expected


@pytest.mark.parametrize("case", CORE_KILLED)
def test_an_engine_that_dies_in_the_middle(case: str) -> None:
    """vLLM reports it in the stream and sends [DONE]; a client gets what was said, and then the error alone."""
    recorded, found = exchange(SCRIPTED, case), passed(SCRIPTED, case)
    before = recorded.body.partition(b'data: {"error"')[0].replace(b'"scripted"', f'"{CALLER_MODEL}"'.encode())
    assert found.data == before
    assert len(list(payloads(found.data))) > 3
    words = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    assert found.error == (502, "engine_error", words, None, "server_error")


def test_two_choices_end_each_for_itself() -> None:
    found = chunks(passed(SCRIPTED, "chat_two_choices_stream").data)
    texts = {0: "", 1: ""}
    reasons = []
    for chunk in found:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert texts == {0: HELLO, 1: HELLO}
    assert sorted(reasons) == [(0, "stop"), (1, "stop")]


@pytest.mark.parametrize("case", ["chat_tools_stream", "chat_tools_two_stream", "chat_tools_in_pieces_stream"])
def test_the_first_delta_of_a_call_names_it_once(case: str) -> None:
    """Clients take the list of calls in the first delta as it is: each call stands in it once, with its arguments."""
    for chunk in chunks(passed(SCRIPTED, case).data):
        pieces = [piece for choice in chunk.choices for piece in choice.delta.tool_calls or []]
        assert len({piece.index for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.function is not None
            assert piece.function.arguments is not None
            assert (piece.id is None) == (piece.function.name is None)


# --- completions and embeddings ---------------------------------------------------------------------------------------


def test_completions() -> None:
    whole = json.loads(passed(SCRIPTED, "completions").data)
    assert [(one["text"], one["finish_reason"]) for one in whole["choices"]] == [(HELLO, "stop")]
    assert whole["usage"]["completion_tokens"] == 7
    assert json.loads(passed(SCRIPTED, "completions_tokens").data)["choices"][0]["text"] == HELLO
    echoed = json.loads(passed(SCRIPTED, "completions_echo").data)["choices"][0]
    assert (echoed["text"], echoed["finish_reason"]) == ("<|user|>Hi<|assistant|>Hello from", "length")


def test_a_streamed_completion() -> None:
    found = passed(SCRIPTED, "completions_stream")
    assert is_done(found.data)
    read = [json.loads(data) for data in payloads(found.data) if data != b"[DONE]"]
    assert {(one["model"], one["object"]) for one in read} == {(CALLER_MODEL, "text_completion")}
    assert "".join(choice["text"] for one in read for choice in one["choices"]) == HELLO
    assert read[-1]["choices"] == []
    assert read[-1]["usage"]["total_tokens"] == 11
    assert "usage" not in read[0]


def test_completions_of_several_prompts() -> None:
    read = json.loads(passed(SCRIPTED, "completions_batch").data)["choices"]
    assert [(one["index"], one["text"]) for one in read] == [(index, "Hello from the") for index in range(4)]
    assert read[0]["logprobs"]["tokens"] == ["Hello", " from", " the"]


@pytest.mark.parametrize(
    ("folder", "case", "count"),
    [
        (VECTORS, "embeddings", 1),
        (VECTORS, "embeddings_batch", 2),
        (VECTORS, "embeddings_base64", 1),
        (VECTORS, "embeddings_tokens", 1),
        (SCRIPTED_VECTORS, "embeddings", 1),
        (SCRIPTED_VECTORS, "embeddings_batch", 2),
        (SCRIPTED_VECTORS, "embeddings_base64", 1),
        (SCRIPTED_VECTORS, "embeddings_tokens", 1),
        (SCRIPTED_VECTORS, "embeddings_token_arrays", 2),
        (SCRIPTED_VECTORS, "embeddings_user", 1),
    ],
)
def test_embeddings(folder: str, case: str, count: int) -> None:
    recorded, found = exchange(folder, case), passed(folder, case)
    assert found.error is None
    answer = read_embeddings(found.data)
    assert len(answer.data) == count
    told = [item["embedding"] for item in json.loads(recorded.body)["data"]]
    assert [item["embedding"] for item in json.loads(found.data)["data"]] == told


@pytest.mark.parametrize(("case", "form"), [("embeddings", "base64"), ("embeddings_base64", "float")])
def test_embeddings_in_the_other_form(case: str, form: str) -> None:
    recorded = exchange(SCRIPTED_VECTORS, case)
    wanted = call({"input": "Hi", "encoding_format": form}, endpoint=Endpoint.EMBEDDINGS)
    found = every_way(VLLM, wanted, 200, recorded.headers, recorded.body)
    (item,) = json.loads(found.data)["data"]
    numbers = item["embedding"]
    if form == "base64":
        numbers = struct.unpack("<512f", base64.b64decode(numbers, validate=True))
    assert [place for place, number in enumerate(numbers) if number] == [349], "the one-hot of the last token"


# --- what no recording holds ------------------------------------------------------------------------------------------

EVENTS = {b"content-type": b"text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"


def chunk(delta: str, finish: str | None = None, index: int = 0) -> bytes:
    choice = f'{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{json.dumps(finish)}}}'
    head = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":['
    return f"data: {head}{choice}]}}\n\n".encode()


def streamed(*events: bytes, **fields: Any) -> Outcome:
    return every_way(VLLM, call(chat(stream=True, **fields)), 200, EVENTS, b"".join(events))


ROLE, TEXT, STOP = chunk('{"role":"assistant","content":""}'), chunk('{"content":"Hi"}'), chunk("{}", "stop")
FAILED = b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}\n\n'


def test_a_whole_stream() -> None:
    assert is_done(streamed(ROLE, TEXT, STOP, DONE).data)


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        pytest.param([DONE], "engine_protocol_error", "without saying why", id="no reason (VLLM#27572)"),
        pytest.param([chunk("{}", "abort"), DONE], "engine_error", "aborted", id="abort"),
        pytest.param([chunk('{"content":"x"}', "error"), DONE], "engine_error", "failed", id="error"),
        pytest.param([FAILED, DONE], "engine_error", "EngineCore died", id="an error event"),
        pytest.param([STOP], "engine_protocol_error", "before [DONE]", id="no [DONE]"),
        pytest.param([], "engine_protocol_error", "before [DONE]", id="cut"),
        pytest.param(
            [chunk("{}", "stop", 1), DONE], "engine_protocol_error", "without saying why", id="another's reason"
        ),
    ],
)
def test_an_end_that_is_none_is_an_error(end: list[bytes], code: str, words: str) -> None:
    found = streamed(ROLE, TEXT, *end)
    assert found.data.startswith((ROLE + TEXT).replace(b'"m"', f'"{CALLER_MODEL}"'.encode()))
    assert b"[DONE]" not in found.data
    assert b"abort" not in found.data
    assert found.error is not None
    assert found.error[0] == 502
    assert found.error[1] == code
    assert words in found.error[2]


@pytest.mark.parametrize("reason", ["abort", "error", None])
@pytest.mark.parametrize("case", ["completions", "completions_stream", "completions_batch_stream"])
def test_a_text_that_has_no_end(case: str, reason: str | None) -> None:
    recorded = exchange(SCRIPTED, case)
    body = re.sub(rb'"finish_reason":"\w+"', b'"finish_reason":' + json.dumps(reason).encode(), recorded.body)
    found = every_way(VLLM, asked(recorded), 200, recorded.headers, body)
    assert b"[DONE]" not in found.data
    assert found.error is not None
    assert found.error[0] == 502


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_whole_answer_that_is_none(reason: str | None) -> None:
    body = json.loads(exchange(SCRIPTED, "chat").body)
    body["choices"][0]["finish_reason"] = reason
    found = every_way(VLLM, call(chat()), 200, {b"content-type": b"application/json"}, json.dumps(body).encode())
    assert found.data == b""
    assert found.error is not None
    assert found.error[0] == 502


def test_a_reason_that_the_caller_asked_for_passes() -> None:
    """`repetition` comes only where the request has vLLM's own parameter for it."""
    found = streamed(ROLE, TEXT, chunk("{}", "repetition"), DONE, repetition_detection={"max_pattern_size": 8})
    assert found.error is None
    assert b'"finish_reason":"repetition"' in found.data


def test_the_last_delta_may_say_something() -> None:
    reply = read_stream(streamed(ROLE, TEXT, chunk('{"content":" there"}', "length"), DONE).data)
    assert (reply.text, reply.finish) == ("Hi there", "length")


def test_both_names_of_thoughts_come_as_one() -> None:
    """Versions between VLLM#27752 and VLLM#33402 send both."""
    new, old = chunk('{"reasoning":"a"}'), chunk('{"reasoning_content":"b"}')
    both = chunk('{"reasoning":"c","reasoning_content":"c"}')
    found = streamed(ROLE, new, old, both, chunk('{"reasoning":null,"content":"d"}'), STOP, DONE)
    reply = read_stream(found.data)
    assert (reply.reasoning, reply.text) == ("abc", "d")
    assert found.data.count(b'"reasoning":') == 1  # the null


@pytest.mark.parametrize("case", ["auth_missing", "auth_wrong"])
def test_a_wrong_key_is_no_fault_of_the_caller(case: str) -> None:
    recorded = exchange(VECTORS, case)
    found = every_way(VLLM, call(chat()), recorded.status, recorded.headers, recorded.body)
    assert found.error is not None
    assert found.error[:3] == (502, "engine_error", "the engine refused FLM's own credentials (401): Unauthorized")


def test_a_busy_engine() -> None:
    body = b'{"error":{"message":"Too many requests are queued","type":"Service Unavailable","param":null,"code":503}}'
    found = every_way(VLLM, call(chat(stream=True)), 503, {b"content-type": b"application/json"}, body)
    assert found.error == (503, "engine_unavailable", "Too many requests are queued", None, "server_error")

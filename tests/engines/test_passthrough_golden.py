"""Recorded answers of engines that speak OpenAI's format come out as they were, but for the model id."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm.engines.base import Dialect
from flm.engines.call import Endpoint
from flm.engines.registry import DIALECTS
from tests.support.recordings import exchange
from tests.support.translating import (
    CALLER_MODEL,
    Outcome,
    call,
    chat,
    chunks,
    cut,
    every_way,
    is_done,
    outcome,
    read_completion,
    read_embeddings,
    read_stream,
)

LLAMA = "llama-server-b1-0c1e570"
VLLM = "vllm-0.32.0"
LLAMACPP, OPENAI = DIALECTS["llamacpp"], DIALECTS["openai"]
ENGINES = [pytest.param(LLAMACPP, LLAMA, id="llamacpp"), pytest.param(OPENAI, VLLM, id="openai")]
EIGHT_TOKENS = "ocument MODIF RE==ocument MODIF RE RE"


def expected_bytes(body: bytes, model: bytes = b"tiny-llama") -> bytes:
    """What must come out: the recorded bytes with the caller's model id."""
    old = b'"model":"' + model + b'"'
    assert old in body
    return body.replace(old, b'"model":"' + CALLER_MODEL.encode() + b'"')


def passed(dialect: Dialect, folder: str, case: str, **fields: Any) -> tuple[bytes, Outcome]:
    recorded = exchange(folder, case)
    body = expected_bytes(recorded.body) if recorded.status == 200 else recorded.body
    wanted = call(chat(**fields), model="tiny-llama")
    return body, every_way(dialect, wanted, recorded.status, recorded.headers, recorded.body)


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
@pytest.mark.parametrize(
    ("case", "usage", "text", "finish"),
    [
        ("chat_stream", False, EIGHT_TOKENS, "length"),
        ("chat_stream_usage", True, EIGHT_TOKENS, "length"),
        ("chat_logprobs_stream", False, "ocument MODIF RE", "length"),
    ],
)
def test_a_stream_passes_unchanged(
    dialect: Dialect, folder: str, case: str, usage: bool, text: str, finish: str
) -> None:
    body, found = passed(dialect, folder, case, stream=True, stream_options={"include_usage": usage})
    assert found == Outcome(body)
    reply = read_stream(found.data)
    assert (reply.text, reply.finish) == (text, finish)
    assert reply.usage == ((20, 8) if usage else None)
    assert is_done(found.data)


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
@pytest.mark.parametrize("case", ["chat", "chat_logprobs", "chat_json_schema", "chat_content_parts", "chat_stop"])
def test_a_whole_answer_passes_unchanged(dialect: Dialect, folder: str, case: str) -> None:
    body, found = passed(dialect, folder, case)
    assert found == Outcome(body)
    reply = read_completion(found.data)
    if case == "chat":
        assert (reply.text, reply.finish, reply.usage) == (EIGHT_TOKENS, "length", (20, 8))


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
def test_two_choices_pass(dialect: Dialect, folder: str) -> None:
    body, found = passed(dialect, folder, "chat_n2_stream", stream=True, n=2)
    assert found == Outcome(body)
    assert {choice.index for chunk in chunks(found.data) for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
def test_usage_nobody_asked_for_goes(dialect: Dialect, folder: str) -> None:
    body, found = passed(dialect, folder, "chat_stream_usage", stream=True)
    events = body.split(b"\n\n")
    kept = [event for event in events if b'"usage":{' not in event]
    assert len(kept) == len(events) - 1
    assert found == Outcome(b"\n\n".join(kept))


def test_usage_beside_a_choice_goes_alone() -> None:
    event = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"total_tokens":3},"x":1}\n\n'
    found = every_way(OPENAI, call(chat(stream=True)), 200, {}, event + b"data: [DONE]\n\n")
    expected = (
        b'data: {"model":"' + CALLER_MODEL.encode() + b'","choices":[{"index":0,"delta":{"content":"a"}}],"x":1}\n\n'
    )
    assert found == Outcome(expected + b"data: [DONE]\n\n")


CONTEXT = {
    LLAMA: "request (6014 tokens) exceeds the available context size (2048 tokens), try increasing it",
    VLLM: "This model's maximum context length is 1024 tokens.",
}


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
@pytest.mark.parametrize(("case", "stream"), [("chat_context_too_long", False), ("chat_context_too_long_stream", True)])
def test_a_prompt_that_is_too_long(dialect: Dialect, folder: str, case: str, stream: bool) -> None:
    _, found = passed(dialect, folder, case, stream=stream)
    assert found.data == b""
    assert found.error is not None
    status, code, message, param, kind = found.error
    assert (status, code, param, kind) == (400, "context_length_exceeded", "messages", "invalid_request_error")
    assert message.startswith(CONTEXT[folder])


@pytest.mark.parametrize(
    ("dialect", "folder", "case", "status", "code", "param", "message"),
    [
        (
            LLAMACPP,
            LLAMA,
            "chat_image_part",
            422,
            "unsupported_modalities",
            "messages",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        ),
        (LLAMACPP, LLAMA, "chat_no_messages", 400, "invalid_request", None, "'messages' is required"),
        (LLAMACPP, LLAMA, "chat_wrong_method", 404, "not_found", None, "File Not Found"),
        (
            LLAMACPP,
            f"{LLAMA}/embedding",
            "auth_wrong",
            502,
            "engine_error",
            None,
            "the engine refused FLM's own credentials (401): Invalid API Key",
        ),
        (
            OPENAI,
            f"{VLLM}/embedding",
            "auth_wrong",
            502,
            "engine_error",
            None,
            "the engine refused FLM's own credentials (401): Unauthorized",
        ),
        (
            OPENAI,
            VLLM,
            "chat_unknown_model",
            404,
            "model_not_found",
            "model",
            "The model `no-such-model` does not exist. Valid aliases: tiny-llama.",
        ),
        (OPENAI, VLLM, "unknown_path", 404, "not_found", None, "Not Found"),
    ],
)
def test_an_engines_refusal(
    dialect: Dialect, folder: str, case: str, status: int, code: str, param: str | None, message: str
) -> None:
    _, found = passed(dialect, folder, case)
    assert found.error is not None
    assert found.error[:4] == (status, code, message, param)


FIRST = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}],"model":"m"}\n\n'
FIRST_OUT = FIRST.replace(b'"m"', b'"' + CALLER_MODEL.encode() + b'"')
DONE = b"data: [DONE]\n\n"


def streamed(*events: bytes, dialect: Dialect = LLAMACPP, usage: bool = False) -> Outcome:
    wanted = call(chat(stream=True, stream_options={"include_usage": usage}))
    return every_way(dialect, wanted, 200, {b"content-type": b"text/event-stream"}, b"".join(events))


SERVER_ERROR = b'{"error":{"code":500,"message":"slot failed","type":"server_error"}}'


@pytest.mark.parametrize("dialect", [LLAMACPP, OPENAI])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(b"data: " + SERVER_ERROR + b"\n\n", id="error and end"),
        pytest.param(b"data: " + SERVER_ERROR + b"\n\n" + DONE, id="error and [DONE]"),
        pytest.param(b"event: error\ndata: " + SERVER_ERROR + b"\n\n", id="named event"),
        pytest.param(b'error: {"code":500,"message":"slot failed","type":"server_error"}\n\n', id="bare line"),
        pytest.param(b"error: " + SERVER_ERROR + b"\n\n", id="bare line, wrapped"),
        pytest.param(b"error: slot failed\n\n", id="bare line, text"),
        pytest.param(b'error: {"code":500,"message":"slot failed","type":"server_error"}', id="bare line cut off"),
        pytest.param(b'data: {"error":"slot failed"}\n\n', id="error as text"),
        pytest.param(b'data: {"error":{"message":"slot failed"},"choices":[]}\n\n' + FIRST, id="and more after it"),
    ],
)
def test_an_error_in_a_stream_ends_it(dialect: Dialect, error: bytes) -> None:
    before = streamed(error, dialect=dialect)
    assert before == Outcome(b"", (502, "engine_error", "slot failed", None, "server_error"))
    after = streamed(FIRST, error, dialect=dialect)
    assert after == Outcome(FIRST_OUT, before.error)


def test_an_error_with_its_own_status_before_the_first_byte() -> None:
    error = b'data: {"error":{"message":"too odd","type":"BadRequestError","param":"messages","code":400}}\n\n'
    assert streamed(error).error == (400, "invalid_request", "too odd", "messages", "invalid_request_error")


@pytest.mark.parametrize("tail", [b"", b"data: ", b"data: {", b": ping\n\n", b"event: x\n\n"])
def test_a_stream_without_its_end_is_an_error(tail: bytes) -> None:
    found = streamed(FIRST, tail)
    assert found.data.startswith(FIRST_OUT)
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")
    assert b"[DONE]" not in found.data


def test_done_comes_once_and_nothing_after_it() -> None:
    assert streamed(FIRST, DONE, DONE, FIRST) == Outcome(FIRST_OUT + DONE)


def test_done_without_its_empty_line() -> None:
    assert streamed(FIRST, b"data: [DONE]\n") == Outcome(FIRST_OUT + DONE)
    assert streamed(FIRST, b"data: [DONE]") == Outcome(FIRST_OUT + DONE)


def test_comments_pass_at_once() -> None:
    assert streamed(b":\n\n", FIRST, b": ping\n\n", DONE) == Outcome(b":\n\n" + FIRST_OUT + b": ping\n\n" + DONE)
    translation = LLAMACPP.begin(call(chat(stream=True)))
    translation.head(200, {})
    assert translation.feed(b":\n") == b":\n\n"


def test_other_lines_of_an_event_pass_where_a_client_knows_them() -> None:
    event = b"event: message\nid: 7\nodd: line\nretry: 5\n" + FIRST
    assert streamed(event, DONE) == Outcome(b"event: message\nid: 7\nretry: 5\n" + FIRST_OUT + DONE)


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends_become_lf(end: bytes) -> None:
    assert streamed((FIRST + DONE).replace(b"\n", end)) == Outcome(FIRST_OUT + DONE)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        pytest.param('{"model": "m", "choices": []}', '{"model": "flm", "choices": []}', id="blanks"),
        pytest.param('{"choices":[],"model" : "m"}', '{"choices":[],"model":"flm"}', id="blank before the colon"),
        pytest.param('{"choices":[]}', '{"choices":[],"model":"flm"}', id="no model"),
        pytest.param('{"model":null,"choices":[]}', '{"model":"flm","choices":[]}', id="null"),
        pytest.param(
            '{"choices":[{"delta":{"model":"m"}}],"model":"m"}',
            '{"choices":[{"delta":{"model":"m"}}],"model":"flm"}',
            id="the same key deeper",
        ),
        pytest.param(
            r'{"choices":[{"delta":{"content":"\"model\":\"m\""}}],"model":"m"}',
            r'{"choices":[{"delta":{"content":"\"model\":\"m\""}}],"model":"flm"}',
            id="inside a text",
        ),
        pytest.param('{"model":"m","model":"m","choices":[]}', '{"model":"flm","choices":[]}', id="twice"),
        pytest.param('{"model":"é","choices":["日"]}', '{"model":"flm","choices":["日"]}', id="not ascii"),
        pytest.param(
            '{"error":null,"model":"m","choices":[]}', '{"error":null,"model":"flm","choices":[]}', id="no error"
        ),
    ],
)
def test_only_the_model_is_rewritten(chunk: str, expected: str) -> None:
    found = streamed(f"data: {chunk}\n\n".encode(), DONE)
    assert found == Outcome(f"data: {expected}\n\n".replace('"flm"', f'"{CALLER_MODEL}"').encode() + DONE)


def test_a_chunk_of_several_lines() -> None:
    found = streamed(b'data: {"model":"m",\ndata: "choices":[]}\n\n', DONE)
    assert found == Outcome(f'data: {{"model":"{CALLER_MODEL}",\ndata: "choices":[]}}\n\n'.encode() + DONE)


@pytest.mark.parametrize(
    "event",
    [
        b"data: x\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices":{}}\n\n',
        b'data: {"choices":[],"model":"\xff"}\n\n',
        b'data: {"choices":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}\n\n",
        b"HTTP/1.1 400\n\ndata: no\n\n",
    ],
)
def test_garbage_in_a_stream(event: bytes) -> None:
    found = outcome(LLAMACPP.begin(call(chat(stream=True))), 200, {}, [event, DONE])
    assert found.data == b""
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":"Unexpected endpoint or method. (POST /x)"}', (502, "engine_error")),
        (b'{"choices":[],"model":"m"}', (502, "engine_protocol_error")),
        (b"<html>", (502, "engine_protocol_error")),
    ],
)
def test_a_whole_answer_where_a_stream_was_asked_for(body: bytes, expected: tuple[int, str]) -> None:
    headers = {b"content-type": b"application/json; charset=utf-8"}
    found = every_way(OPENAI, call(chat(stream=True)), 200, headers, body)
    assert found.data == b""
    assert found.error is not None
    assert found.error[:2] == expected


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", b'{"choices":1}', b'{"choices":[]', b'{"data":[]}', b"\xff"])
def test_garbage_for_a_whole_answer(body: bytes) -> None:
    found = every_way(OPENAI, call(chat()), 200, {}, body)
    assert found.data == b""
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")


@pytest.mark.parametrize("status", [200, 204, 301, 302, 101, 600, 999, 0])
def test_absurd_statuses(status: int) -> None:
    found = outcome(OPENAI.begin(call(chat())), status, {b"location": b"http://evil/"}, [b""])
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the engine answered 400 without a reason"),
        (b"<html><body>Bad</body></html>", "the engine answered 400 without a reason"),
        (b"plain words\nand more", "plain words"),
        (b'{"object":"error","message":"flat","code":40001}', "flat"),
        (b'{"error":{"message":"nested"}}', "nested"),
        (b'{"error":"text"}', "text"),
        (b'{"detail":"a detail"}', "a detail"),
        (b'{"error":"{\\"error\\":{\\"message\\":\\"twice wrapped\\"}}"}', "twice wrapped"),
        (b'{"error":{"no":"message"}}', "the engine answered 400 without a reason"),
        (b"x" * 5_000_000, "x" * 2000),
    ],
)
def test_the_words_of_an_error(body: bytes, message: str) -> None:
    found = outcome(OPENAI.begin(call(chat())), 400, {}, cut(body, range(0, len(body), 60_000)))
    assert found.error == (400, "invalid_request", message, None, "invalid_request_error")


def test_a_named_code_is_kept() -> None:
    body = b'{"error":{"message":"no","type":"x","param":"seed","code":"string_above_max_length"}}'
    found = outcome(OPENAI.begin(call(chat())), 400, {}, [body])
    assert found.error == (400, "string_above_max_length", "no", "seed", "invalid_request_error")


# --- embeddings ------------------------------------------------------------------------------------------------------


def embedded(dialect: Dialect, folder: str, case: str, **fields: Any) -> tuple[bytes, Outcome]:
    recorded = exchange(f"{folder}/embedding", case)
    wanted = call(fields, endpoint=Endpoint.EMBEDDINGS, model="tiny-embed")
    found = every_way(dialect, wanted, recorded.status, recorded.headers, recorded.body)
    return recorded.body, found


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
@pytest.mark.parametrize(
    ("case", "fields", "count"),
    [
        ("embeddings", {"input": "hello"}, 1),
        ("embeddings_batch", {"input": ["hello", "world"]}, 2),
        ("embeddings_base64", {"input": "hello", "encoding_format": "base64"}, 1),
        ("embeddings_tokens", {"input": [1, 5, 6]}, 1),
    ],
)
def test_embeddings_pass_unchanged(
    dialect: Dialect, folder: str, case: str, fields: dict[str, Any], count: int
) -> None:
    body, found = embedded(dialect, folder, case, **fields)
    assert found == Outcome(expected_bytes(body, b"tiny-embed"))
    answer = read_embeddings(found.data)
    assert len(answer.data) == count
    assert answer.usage.prompt_tokens == 3 * count


@pytest.mark.parametrize(("dialect", "folder"), ENGINES)
def test_numbers_become_base64_where_it_was_asked_for(dialect: Dialect, folder: str) -> None:
    recorded = json.loads(exchange(f"{folder}/embedding", "embeddings").body)["data"][0]["embedding"]
    _, found = embedded(dialect, folder, "embeddings", input="hello", encoding_format="base64")
    assert found.error is None
    read_embeddings(found.data)
    (item,) = json.loads(found.data)["data"]
    values = struct.unpack(f"<{len(recorded)}f", base64.b64decode(item["embedding"], validate=True))
    assert values == pytest.approx(recorded, rel=1e-6)
    assert (item["index"], item["object"]) == (0, "embedding")


@pytest.mark.parametrize(
    ("case", "status", "code", "param"),
    [
        ("embeddings_too_long", 400, "context_length_exceeded", "input"),
        ("embeddings_empty", 400, "invalid_request", None),
        ("auth_missing", 502, "engine_error", None),
    ],
)
def test_refused_embeddings(case: str, status: int, code: str, param: str | None) -> None:
    _, found = embedded(LLAMACPP, LLAMA, case, input="hello")
    assert found.data == b""
    assert found.error is not None
    assert (found.error[0], found.error[1], found.error[3]) == (status, code, param)


def test_an_engine_without_embeddings() -> None:
    recorded = exchange(LLAMA, "embeddings")
    wanted = call({"input": "hello"}, endpoint=Endpoint.EMBEDDINGS)
    found = outcome(LLAMACPP.begin(wanted), recorded.status, recorded.headers, [recorded.body])
    assert found.error is not None
    assert found.error[:2] == (400, "unsupported_parameter")
    assert found.error[3] == "model"
    assert "does not support embeddings" in found.error[2]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([LLAMA, VLLM]), st.sampled_from(["chat_stream_usage", "chat_n2_stream"]), st.data())
def test_random_cuts_change_nothing(folder: str, case: str, data: st.DataObject) -> None:
    recorded = exchange(folder, case)
    places = data.draw(st.lists(st.integers(0, len(recorded.body)), max_size=12))
    wanted = call(chat(stream=True, stream_options={"include_usage": True}))
    found = outcome(OPENAI.begin(wanted), 200, recorded.headers, cut(recorded.body, places))
    assert found == Outcome(expected_bytes(recorded.body))

"""Ollama's recorded answers, translated: the texts are those of the scripted model, written out here."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm.engines.call import Endpoint
from flm.engines.ollama import DIALECT
from tests.support.recordings import Exchange, exchange
from tests.support.translating import (
    CREATED,
    RESPONSE_ID,
    Outcome,
    Reply,
    call,
    chat,
    chunks,
    cut,
    every_way,
    is_done,
    outcome,
    payloads,
    read_completion,
    read_embeddings,
    read_stream,
)

NEW = "ollama-0.34.4"
NATIVE = "ollama-0.34.4/native"
MIDDLE = "ollama-0.24.0"
OLD = "ollama-0.11.4"

HELLO = "Hello from the scripted model."
ESCAPES = '<b> & "quoted"\\back\n\n\u2028\t'
COUNTING = "one two three four five six seven eight nine ten "
WEATHER = "get_weather"


def call_of(city: str, id_: str) -> tuple[str, str, dict[str, str]]:
    return (id_, WEATHER, {"city": city})


def made_id(number: int) -> str:
    """The id FLM gives a call the engine left without one."""
    return f"call_1700000000000-0123456789abcdef_{number}"


# folder, case, the reply a client must see
ANSWERS = [
    (NEW, "chat", Reply(HELLO, finish="stop", usage=(26, 7))),
    (NEW, "chat_stream", Reply(HELLO, finish="stop", usage=(26, 7))),
    (NEW, "http10_stream", Reply(HELLO, finish="stop", usage=(26, 7))),
    (NEW, "chat_cold", Reply(HELLO, finish="stop", usage=(26, 7))),
    (NEW, "chat_length", Reply("Hello from the", finish="length", usage=(26, 3))),
    (NEW, "chat_length_stream", Reply("Hello from the", finish="length", usage=(26, 3))),
    (NEW, "chat_stop", Reply("Hello from the ", finish="stop", usage=(26, 4))),
    (NEW, "chat_stop_stream", Reply("Hello from the ", finish="stop", usage=(26, 4))),
    (NEW, "chat_empty_reply", Reply("", finish="stop", usage=(39, 1))),
    (NEW, "chat_empty_reply_stream", Reply("", finish="stop", usage=(39, 1))),
    (NEW, "chat_escape_stream", Reply(ESCAPES, finish="stop", usage=(40, 8))),
    (NEW, "chat_utf8_stream", Reply("日 😀", finish="stop", usage=(38, 9))),
    (NEW, "chat_format_json", Reply('{"ok": true}', finish="stop", usage=(38, 6))),
    (NEW, "chat_format_json_stream", Reply('{"ok": true}', finish="stop", usage=(38, 6))),
    (NEW, "chat_format_schema", Reply('{"ok": true}', finish="stop", usage=(26, 7))),
    (NEW, "chat_reply_fills_context_stream", Reply(COUNTING * 4, finish="length", usage=(38, 40))),
    (NEW, "chat_think", Reply("Then we speak", "First I ponder", finish="stop", usage=(39, 9))),
    (NEW, "chat_think_stream", Reply("Then we speak", "First I ponder", finish="stop", usage=(39, 9))),
    (NEW, "chat_think_level", Reply("Then we speak", "First I ponder", finish="stop", usage=(39, 9))),
    (NEW, "chat_think_absent_stream", Reply("Then we speak", "First I ponder", finish="stop", usage=(39, 9))),
    (NEW, "chat_think_cut_stream", Reply("", "First I", finish="length", usage=(39, 3))),
    (NATIVE, "chat_think_false", Reply("Then we speak", "First I ponder", finish="stop", usage=(39, 9))),
    (OLD, "chat_think_absent", Reply("<think>First I ponder</think>Then we speak", finish="stop", usage=(39, 9))),
    (NEW, "chat_tools_result", Reply("It is sunny there.\n", finish="stop", usage=(283, 6))),
    (NEW, "chat_tools_unused_stream", Reply(HELLO, finish="stop", usage=(219, 7))),
    (NEW, "chat_tools_cut", Reply("", finish="length", usage=(219, 3))),
    (NEW, "chat_tools_cut_stream", Reply("", finish="length", usage=(219, 3))),
    (MIDDLE, "chat_too_long", Reply(HELLO, finish="stop", usage=(64, 7))),
    (OLD, "chat_too_long_no_truncate", Reply(HELLO, finish="stop", usage=(64, 7))),
    (
        NEW,
        "chat_logprobs",
        Reply("Hello from", finish="length", usage=(26, 2), logprobs=[("Hello", 0), (" from", 0)]),
    ),
    (
        NEW,
        "chat_logprobs_stream",
        Reply("Hello from", finish="length", usage=(26, 2), logprobs=[("Hello", 0), (" from", 0)]),
    ),
    (OLD, "chat_logprobs_stream", Reply("Hello from", finish="length", usage=(26, 2))),
]

# folder, case, text, calls with the id they must carry
TOOL_CALLS = [
    (NEW, "chat_tools", None, [call_of("Paris", "call_jy6mg2x5")]),
    (NEW, "chat_tools_stream", "", [call_of("Paris", "call_5c0q3y52")]),
    (NEW, "chat_tools_two_stream", "", [call_of("Tokyo", "call_syoouev4"), call_of("Oslo", "call_2g5acpra")]),
    (NEW, "chat_tools_after_text_stream", "Let me look.", [call_of("Rome", "call_6nr4xghu")]),
    (NEW, "chat_tools_split_stream", "", [call_of("Lima", "call_f9k7uo9a")]),
    (NATIVE, "chat_tools", None, [call_of("Paris", "fNVuWXZmeT9sbRtyg3iePKaYwWsAFcBM")]),
    (
        NATIVE,
        "chat_tools_two_stream",
        "",
        [call_of("Tokyo", "sS91TDAJI8qAuZhV8wy4YCmA0U6tB43t"), call_of("Oslo", "iqVhJSY7Lq9deAhC89hKkCLUuyUgH5On")],
    ),
    (NATIVE, "chat_tools_after_text_stream", "Let me look.", [call_of("Rome", "nR9R3DzsYxyZ2QOyshiF35EvH2fllG36")]),
    (OLD, "chat_tools", None, [call_of("Paris", made_id(0))]),
    (OLD, "chat_tools_stream", "", [call_of("Paris", made_id(0))]),
    (OLD, "chat_tools_two", None, [call_of("Tokyo", made_id(0)), call_of("Oslo", made_id(1))]),
    (OLD, "chat_tools_two_stream", "", [call_of("Tokyo", made_id(0)), call_of("Oslo", made_id(1))]),
    (OLD, "chat_tools_after_text_stream", "Let me look.", [call_of("Rome", made_id(0))]),
]

TOO_LONG = "exceeds the available context size (256 tokens), try increasing it"
NO_IMAGES = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
EARLY = "the engine ended its answer early, without saying that it is done"
FOUR = "one two three four "
ABORTED = "prediction aborted, token repeat limit reached"
KILLED = "an error was encountered while running the model: unexpected EOF"
BUSY = "server busy, please try again.  maximum pending requests exceeded"

# folder, case, status, code, param, message, text that came before
REFUSALS = [
    (NEW, "chat_unknown_model", 404, "model_not_found", "model", "model 'no-such-model' not found", None),
    (NEW, "chat_unknown_model_stream", 404, "model_not_found", "model", "model 'no-such-model' not found", None),
    (
        OLD,
        "chat_unknown_model",
        404,
        "model_not_found",
        "model",
        'model "no-such-model" not found, try pulling it first',
        None,
    ),
    (NEW, "chat_bad_model_name", 400, "invalid_request", None, "invalid model name", None),
    (NATIVE, "chat_too_long", 400, "context_length_exceeded", "messages", f"request (503 tokens) {TOO_LONG}", None),
    (
        NATIVE,
        "chat_too_long_stream",
        400,
        "context_length_exceeded",
        "messages",
        f"request (503 tokens) {TOO_LONG}",
        None,
    ),
    (
        NEW,
        "chat_too_long_no_truncate",
        400,
        "context_length_exceeded",
        "messages",
        f"request (504 tokens) {TOO_LONG}",
        None,
    ),
    (
        MIDDLE,
        "chat_too_long_no_truncate",
        400,
        "context_length_exceeded",
        "messages",
        "the input length exceeds the context length",
        None,
    ),
    (NATIVE, "chat_image_text_model", 422, "unsupported_modalities", "messages", NO_IMAGES, None),
    (
        NEW,
        "chat_image_text_model",
        422,
        "unsupported_modalities",
        "messages",
        "Multimodal data provided, but model does not support multimodal requests.",
        None,
    ),
    (
        NEW,
        "chat_tools_plain_model",
        400,
        "unsupported_parameter",
        "tools",
        "registry.ollama.ai/library/scripted:latest does not support tools",
        None,
    ),
    (
        NEW,
        "chat_think_plain_model",
        400,
        "unsupported_parameter",
        "reasoning_effort",
        '"scripted" does not support thinking',
        None,
    ),
    (
        NEW,
        "chat_embedding_model",
        400,
        "unsupported_parameter",
        "model",
        '"scripted-embed" does not support chat',
        None,
    ),
    (NEW, "queue_full", 503, "engine_unavailable", None, BUSY, None),
    (NEW, "queue_full_stream", 503, "engine_unavailable", None, BUSY, None),
    (NEW, "runner_killed", 502, "engine_error", None, KILLED, None),
    (
        NEW,
        "runner_killed_stream",
        502,
        "engine_error",
        None,
        KILLED,
        "one two three four five nine ten one two three four ",
    ),
    (MIDDLE, "runner_killed_stream", 502, "engine_error", None, KILLED, COUNTING + FOUR),
    (OLD, "runner_killed_stream", 502, "engine_error", None, KILLED, COUNTING * 2),
    (NEW, "chat_repeat", 502, "engine_error", None, ABORTED, None),
    (
        NEW,
        "chat_repeat_stream",
        502,
        "engine_error",
        None,
        "prediction aborted, token repeat limit reached",
        "na " * 101,
    ),
    (MIDDLE, "chat_repeat", 502, "engine_protocol_error", None, EARLY, None),
    (MIDDLE, "chat_repeat_stream", 502, "engine_protocol_error", None, EARLY, "na " * 31),
    (
        NATIVE,
        "chat_tools_cut_stream",
        502,
        "engine_error",
        None,
        'llama-server returned invalid tool call arguments for "get_weather": unexpected end of JSON input',
        None,
    ),
]


def request_of(recorded: Exchange, **more: Any) -> Any:
    """A client's request that fits the recorded answer: streamed or not, with usage."""
    stream = json.loads(recorded.request_body).get("stream", True)
    return call(chat(stream=stream, stream_options={"include_usage": True}, **more))


def translated(folder: str, case: str) -> tuple[Outcome, bool]:
    recorded = exchange(folder, case)
    wanted = request_of(recorded)
    return every_way(DIALECT, wanted, recorded.status, recorded.headers, recorded.body), wanted.peek.stream


@pytest.mark.parametrize(("folder", "case", "expected"), ANSWERS)
def test_an_answer(folder: str, case: str, expected: Reply) -> None:
    found, stream = translated(folder, case)
    assert found.error is None
    assert (read_stream if stream else read_completion)(found.data) == expected
    assert is_done(found.data) == stream


@pytest.mark.parametrize(("folder", "case", "text", "calls"), TOOL_CALLS)
def test_tool_calls(folder: str, case: str, text: str | None, calls: list[tuple[str, str, dict[str, str]]]) -> None:
    found, stream = translated(folder, case)
    assert found.error is None
    reply = (read_stream if stream else read_completion)(found.data)
    assert (reply.text, reply.calls, reply.finish) == (text, calls, "tool_calls")
    assert is_done(found.data) == stream


@pytest.mark.parametrize(("folder", "case", "status", "code", "param", "message", "text"), REFUSALS)
def test_an_error(
    folder: str, case: str, status: int, code: str, param: str | None, message: str, text: str | None
) -> None:
    found, _ = translated(folder, case)
    assert found.error is not None
    assert found.error[:4] == (status, code, message, param)
    if text is None:
        assert found.data == b"", "nothing was sent, so the client gets a real status"
    else:
        reply = read_stream(found.data)
        assert (reply.text, reply.finish) == (text, None)
        assert b"[DONE]" not in found.data


def test_the_bytes_of_a_stream() -> None:
    recorded = exchange(NEW, "chat_stream")
    found = outcome(DIALECT.begin(call(chat(stream=True))), recorded.status, recorded.headers, [recorded.body])
    head = (
        f'{{"id":"{RESPONSE_ID}","object":"chat.completion.chunk","created":{CREATED},'
        '"model":"flm://engine/some-model","choices":[{"index":0,"delta":'
    )
    deltas = ['{"role":"assistant","content":""}']
    deltas += [f'{{"content":{json.dumps(text)}}}' for text in ("Hello", " from", " the", " scripted", " model", ".")]
    expected = "".join(f'data: {head}{delta},"logprobs":null,"finish_reason":null}}]}}\n\n' for delta in deltas)
    expected += f'data: {head}{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\ndata: [DONE]\n\n'
    assert found.data.decode() == expected


def test_usage_stands_alone_at_the_end_and_only_when_asked() -> None:
    recorded = exchange(NEW, "chat_stream")
    asked = outcome(DIALECT.begin(request_of(recorded)), recorded.status, recorded.headers, [recorded.body])
    *before, last = chunks(asked.data)
    assert all(json.loads(payload)["usage"] is None for payload in list(payloads(asked.data))[:-2])
    assert all(chunk.choices for chunk in before)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 26,
        "completion_tokens": 7,
        "total_tokens": 33,
        "prompt_tokens_details": {"cached_tokens": 25},
    }
    silent = outcome(DIALECT.begin(call(chat(stream=True))), recorded.status, recorded.headers, [recorded.body])
    assert b"usage" not in silent.data


def test_what_follows_the_last_line_is_thrown_away() -> None:
    recorded = exchange(NEW, "chat_stream")
    translation = DIALECT.begin(call(chat(stream=True)))
    translation.head(recorded.status, recorded.headers)
    translation.feed(recorded.body[:-1])
    assert not translation.complete
    assert translation.feed(b"\n").endswith(b"data: [DONE]\n\n")
    assert translation.complete
    assert translation.feed(recorded.body + b"garbage\n") == b""
    assert translation.finish() == b""


def test_the_last_line_may_lack_its_end() -> None:
    recorded = exchange(NEW, "chat_stream")
    found = every_way(DIALECT, request_of(recorded), 200, {}, recorded.body.rstrip(b"\n"))
    assert found.error is None
    assert read_stream(found.data).text == HELLO
    assert is_done(found.data)


@pytest.mark.parametrize("case", ["chat_stream", "chat_tools_two_stream", "chat_think_stream", "chat_utf8_stream"])
def test_cut_off_anywhere_a_stream_ends_in_one_error(case: str) -> None:
    recorded = exchange(NEW, case)
    body = recorded.body.rstrip(b"\n")
    for end in range(0, len(body), 5):
        found = outcome(DIALECT.begin(request_of(recorded)), 200, recorded.headers, [body[:end]])
        assert found.error is not None
        assert found.error[:2] == (502, "engine_protocol_error")
        assert b"[DONE]" not in found.data
        assert read_stream(found.data).finish is None


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["chat_stream", "chat_tools_two_stream", "chat_escape_stream", "chat_repeat_stream"]), st.data())
def test_random_cuts_change_nothing(case: str, data: st.DataObject) -> None:
    recorded = exchange(NEW, case)
    places = data.draw(st.lists(st.integers(0, len(recorded.body)), max_size=12))
    wanted = request_of(recorded)
    whole = outcome(DIALECT.begin(wanted), 200, recorded.headers, [recorded.body])
    assert outcome(DIALECT.begin(wanted), 200, recorded.headers, cut(recorded.body, places)) == whole


# The scripted model's vectors are the mean of one-hot tokens: `<s>` is 1, printable characters begin at 276.
_TOKENS = {letter: 276 + ord(letter) - 32 for letter in "helo"}
HELLO_VECTOR = {
    1: 0.35355338,
    _TOKENS["h"]: 0.35355338,
    _TOKENS["e"]: 0.35355338,
    _TOKENS["l"]: 0.70710677,
    _TOKENS["o"]: 0.35355338,
}


def embedded(case: str, **fields: Any) -> Outcome:
    recorded = exchange(NEW, case)
    wanted = call(fields, endpoint=Endpoint.EMBEDDINGS)
    return every_way(DIALECT, wanted, recorded.status, recorded.headers, recorded.body)


def test_embeddings_as_numbers() -> None:
    found = embedded("embed", input="hello", encoding_format="float")
    assert found.error is None
    answer = read_embeddings(found.data)
    (item,) = answer.data
    assert len(item.embedding) == 512
    assert {index: value for index, value in enumerate(item.embedding) if value} == HELLO_VECTOR
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)


def test_embeddings_as_base64() -> None:
    found = embedded("embed", input="hello", encoding_format="base64")
    assert found.error is None
    read_embeddings(found.data)
    (item,) = json.loads(found.data)["data"]
    values = struct.unpack("<512f", base64.b64decode(item["embedding"], validate=True))
    assert {index for index, value in enumerate(values) if value} == set(HELLO_VECTOR)
    assert values[_TOKENS["l"]] == pytest.approx(0.70710677)


def test_a_list_of_texts() -> None:
    found = embedded("embed_list", input=["a", "b"], dimensions=4)
    assert found.error is None
    answer = read_embeddings(found.data)
    assert [item.embedding for item in answer.data] == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert answer.usage.prompt_tokens == 4


@pytest.mark.parametrize(
    ("case", "status", "code", "message"),
    [
        (
            "embed_plain_model",
            400,
            "unsupported_parameter",
            "This server does not support embeddings. Start it with `--embeddings`",
        ),
        ("embed_unknown_model", 404, "model_not_found", 'model "no-such-model" not found, try pulling it first'),
        ("embed_empty", 502, "engine_protocol_error", "the engine sent 0 vectors for 1 texts"),
    ],
)
def test_refused_embeddings(case: str, status: int, code: str, message: str) -> None:
    found = embedded(case, input="hello")
    assert found.data == b""
    assert found.error is not None
    assert found.error[:3] == (status, code, message)


def test_a_load_failure_is_the_engines_fault() -> None:
    recorded = exchange(NEW, "load_failure")
    found = outcome(DIALECT.begin(call(chat())), recorded.status, recorded.headers, [recorded.body])
    assert found.error is not None
    assert found.error[:2] == (502, "engine_error")
    assert found.error[2].startswith("llama-server process has terminated: exit status 1")


def test_a_printed_go_map_is_read() -> None:
    body = json.dumps(
        {"error": "llama-server chat error: map[code:400 message:request too odd type:invalid_request_error]"}
    )
    found = outcome(DIALECT.begin(call(chat())), 500, {}, [body.encode()])
    assert found.error is not None
    assert found.error[2] == "request too odd"

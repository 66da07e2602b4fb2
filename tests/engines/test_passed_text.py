"""Text completions of engines that speak OpenAI's format: passed, and mended where engines were seen to differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines import passed_text
from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from tests.support.recordings import exchange
from tests.support.translating import CALLER_MODEL, call, every_way, is_done, outcome, payloads

LLAMACPP, OPENAI = DIALECTS["llamacpp"], DIALECTS["openai"]
LLAMA = "llama-server-b1-0c1e570"
SSE = {b"content-type": b"text/event-stream"}
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def wanted(**fields: Any) -> Call:
    return call({"prompt": "Hello", **fields}, endpoint=Endpoint.COMPLETIONS)


def stream(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def chunk(text: str = "", finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], **more}


def read(body: bytes, **fields: Any) -> list[dict[str, Any]]:
    found = every_way(LLAMACPP, wanted(**fields), 200, SSE, body)
    assert found.error is None
    assert is_done(found.data)
    return [json.loads(each) for each in payloads(found.data) if each != b"[DONE]"]


# As llama-server writes them (the tree in llama-cpp-python 0.3.36): in the shape of chat's.
TOKENS = [
    {"id": 3, "token": "Hi", "bytes": [72, 105], "logprob": -0.5, "top_logprobs": [
        {"id": 3, "token": "Hi", "bytes": [72, 105], "logprob": -0.5},
        {"id": 4, "token": "Ho", "bytes": [72, 111], "logprob": -1.5},
    ]},
    {"id": 5, "token": "!", "bytes": [33], "logprob": -0.1, "top_logprobs": []},
]  # fmt: skip


def test_log_probabilities_get_the_shape_of_the_api() -> None:
    body = json.dumps(chunk("Hi!", "stop", logprobs={"content": TOKENS})).encode()
    found = json.loads(every_way(LLAMACPP, wanted(logprobs=2), 200, {}, body).data)
    assert found["choices"][0]["logprobs"] == {
        "tokens": ["Hi", "!"],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [{"Hi": -0.5, "Ho": -1.5}, {"!": -0.1}],
        "text_offset": [0, 2],
    }
    assert (found["model"], found["choices"][0]["text"]) == (CALLER_MODEL, "Hi!")
    none = json.loads(every_way(LLAMACPP, wanted(logprobs=0), 200, {}, body).data)
    assert none["choices"][0]["logprobs"]["top_logprobs"] is None


def test_offsets_of_each_choice_run_through_the_stream() -> None:
    pieces = [
        chunk("Hi", index=0, logprobs={"content": TOKENS[:1]}),
        chunk("!", index=1, logprobs={"content": TOKENS[1:]}),
        chunk("!", index=0, logprobs={"content": TOKENS[1:]}),
        chunk("", "stop", index=0),
    ]
    chunks = read(stream(*pieces), stream=True, logprobs=1, n=2)
    offsets = [each["choices"][0]["logprobs"]["text_offset"] for each in chunks[:3]]
    assert offsets == [[0], [0], [2]]
    assert chunks[3]["choices"][0]["logprobs"] is None


def test_an_engine_that_numbers_choices_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_text, "MAX_CHOICES", 2)
    pieces = [chunk("Hi", index=index, logprobs={"content": TOKENS[:1]}) for index in (0, 1, 0, 2)]
    found = every_way(LLAMACPP, wanted(stream=True, logprobs=1), 200, SSE, stream(*pieces))
    assert found.data.count(b'"text_offset"') == 3
    assert found.error is not None
    assert "more than 2 choices" in found.error[2]


def test_log_probabilities_in_the_right_shape_pass_untouched() -> None:
    right = {"tokens": ["content"], "token_logprobs": [-1], "top_logprobs": [{"content": -1}], "text_offset": [0]}
    body = json.dumps(chunk('"content"', "stop", logprobs=right)).encode()
    found = every_way(OPENAI, wanted(logprobs=1), 200, {}, body)
    assert found.data == body.replace(b'"model": "m"', b'"model": "%s"' % CALLER_MODEL.encode())


def test_a_text_that_mentions_content_passes() -> None:
    assert read(stream(chunk('{"content": 1}'), chunk("", "stop")), stream=True)[0]["choices"][0]["text"] == (
        '{"content": 1}'
    )


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_usage_beside_the_last_choice_gets_a_chunk_of_its_own() -> None:
    chunks = read(stream(chunk("a"), chunk("", "stop", usage=USAGE, timings={"x": 1})), **WITH_USAGE)
    assert [each.get("usage") for each in chunks] == [None, None, USAGE]
    assert [len(each["choices"]) for each in chunks] == [1, 1, 0]
    assert {(each["id"], each["model"]) for each in chunks} == {("c", CALLER_MODEL)}


def test_usage_that_is_set_apart_has_the_id_and_the_time_of_its_stream() -> None:
    chunks = read(stream(chunk("a"), chunk("", "stop", usage=USAGE, id="other", created=9)), **WITH_USAGE)
    assert {(each["id"], each["created"]) for each in chunks} == {("c", 1)}
    assert chunks[-1]["usage"] == USAGE


def test_usage_in_a_chunk_of_its_own_stays_the_only_one() -> None:
    last = {**chunk(usage=USAGE), "choices": []}
    zero = dict.fromkeys(USAGE, 0)
    chunks = read(stream(chunk("a", usage=zero), chunk("", "stop", usage=zero), last), **WITH_USAGE)
    assert [each.get("usage") for each in chunks] == [None, None, USAGE]


def test_usage_in_every_chunk_stays_where_it_was_asked_for_so() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = read(stream(chunk("a", usage=USAGE), chunk("", "stop", usage=USAGE)), stream=True, stream_options=options)
    assert [each["usage"] for each in chunks] == [USAGE, USAGE]


def test_usage_that_nobody_asked_for_goes() -> None:
    recorded = exchange(LLAMA, "completions_stream")
    assert b'"usage"' in recorded.body
    found = every_way(LLAMACPP, wanted(stream=True), 200, recorded.headers, recorded.body)
    assert b'"usage"' not in found.data
    assert found.data.count(b'"finish_reason":"length"') == 1


def test_the_null_that_opens_a_stream_of_several_prompts() -> None:
    body = b"data: null\n\n" + stream(chunk("a", index=1), chunk("b"), chunk("", "stop"))
    chunks = read(body, stream=True, prompt=["x", "y"])
    assert [each["choices"][0]["index"] for each in chunks] == [1, 0, 0]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'data: {"choices":[{"index":0,"text":"a"}],"model":"m"}\n\n', (502, "engine_protocol_error")),
        (b'data: {"error":{"message":"it broke","code":500}}\n\n', (502, "engine_error")),
        (b'data: {"choices":[{"logprobs":{"content":[{}]}}],"model":"m"}\n\n', (502, "engine_protocol_error")),
        (b"data: []\n\n", (502, "engine_protocol_error")),
    ],
)
def test_streams_that_end_badly(body: bytes, error: tuple[int, str]) -> None:
    found = every_way(OPENAI, wanted(stream=True), 200, SSE, body)
    assert b"[DONE]" not in found.data
    assert found.error is not None
    assert found.error[:2] == error


def test_what_is_no_completion() -> None:
    for body in (b'{"data":[]}', b'{"choices":{}}', b"[]", b"x"):
        found = outcome(OPENAI.begin(wanted()), 200, {}, [body])
        assert found.error is not None
        assert found.error[:2] == (502, "engine_protocol_error")


def test_a_prompt_that_is_too_long_is_named() -> None:
    body = b'{"error":{"code":400,"message":"request (6001 tokens) exceeds the available context size (1024 tokens)"}}'
    found = outcome(LLAMACPP.begin(wanted()), 400, {}, [body])
    assert found.error is not None
    assert (found.error[1], found.error[3]) == ("context_length_exceeded", "prompt")


def test_an_alternative_is_asked_for_where_none_would_give_nothing() -> None:
    assert json.loads(LLAMACPP.begin(wanted(logprobs=0)).request.body)["logprobs"] == 1
    assert json.loads(OPENAI.begin(wanted(logprobs=0)).request.body)["logprobs"] == 0


@pytest.mark.parametrize(
    ("fields", "param"), [({"suffix": "x"}, "suffix"), ({"echo": True}, "echo"), ({"prompt": []}, "prompt")]
)
def test_what_llama_server_would_overlook_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        LLAMACPP.begin(wanted(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)

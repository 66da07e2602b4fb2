"""Text completions by Ollama's native API: what is sent, and what becomes of recorded answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.call import Call, Change, Endpoint
from flm.engines.ollama import DIALECT
from flm.errors import RequestError
from tests.support.recordings import exchange
from tests.support.translating import (
    CALLER_MODEL,
    CREATED,
    RESPONSE_ID,
    call,
    cut,
    every_way,
    is_done,
    outcome,
    payloads,
)

FOLDER = "ollama-0.34.4"
HELLO = "Hello from the scripted model."


def wanted(**fields: Any) -> Call:
    more = {name: fields.pop(name) for name in ("engine_version", "capabilities") if name in fields}
    return call({"prompt": "x<|assistant|>", **fields}, endpoint=Endpoint.COMPLETIONS, **more)


def sent(**fields: Any) -> tuple[dict[str, Any], tuple[Change, ...]]:
    translation = DIALECT.begin(wanted(**fields))
    assert (translation.request.method, translation.request.path) == ("POST", "/api/generate")
    body: dict[str, Any] = json.loads(translation.request.body)
    return body, translation.changes


def refused(**fields: Any) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        DIALECT.begin(wanted(**fields))
    return caught.value.status, caught.value.code, caught.value.param


def test_the_recorded_request() -> None:
    expected = json.loads(exchange(FOLDER, "generate_raw").request_body)
    assert sent(temperature=0, seed=1) == ({**expected, "truncate": False}, ())


def test_every_option_in_its_words() -> None:
    body, changes = sent(
        temperature=0.5, top_p=0.9, max_tokens=5, stop="x", seed=7, presence_penalty=0.1, frequency_penalty=0.2,
        top_k=4, min_p=0.05, repeat_penalty=1.1, num_ctx=512, keep_alive="5m", stream=True,
    )  # fmt: skip
    assert body["options"] == {
        "temperature": 0.5, "top_p": 0.9, "num_predict": 5, "stop": ["x"], "seed": 7, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "top_k": 4, "min_p": 0.05, "repeat_penalty": 1.1, "num_ctx": 512,
    }  # fmt: skip
    assert (body["keep_alive"], body["stream"], body["raw"]) == ("5m", True, True)
    assert changes == ()
    assert "options" not in sent()[0]


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert sent(prompt=["é\n"])[0]["prompt"] == "é\n"


def test_a_suffix_goes_through_the_models_template() -> None:
    body, _ = sent(suffix="end", capabilities=("completion", "insert"))
    assert (body["suffix"], "raw" in body) == ("end", False)
    assert sent(suffix="end")[0]["suffix"] == "end"  # nothing is known of the model: the engine will say
    assert refused(suffix="end", capabilities=("completion",)) == (400, "unsupported_parameter", "suffix")
    body, changes = sent(suffix="", capabilities=("completion",))
    assert ("suffix" in body, body["raw"], changes) == (False, True, ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": ""}, (400, "invalid_request", "prompt")),
        ({"prompt": [""]}, (400, "invalid_request", "prompt")),
        ({"prompt": []}, (400, "invalid_request", "prompt")),
        ({"prompt": None}, (400, "invalid_request", "prompt")),
        ({"prompt": [1, 2]}, (400, "unsupported_parameter", "prompt")),
        ({"prompt": [[1], [2]]}, (400, "unsupported_parameter", "prompt")),
        ({"prompt": ["a", "b"]}, (400, "unsupported_parameter", "prompt")),
        ({"echo": True}, (400, "unsupported_parameter", "echo")),
        ({"logprobs": 21}, (400, "invalid_request", "logprobs")),
        ({"max_tokens": 0}, (400, "invalid_request", "max_tokens")),
        ({"temperature": "hot"}, (400, "invalid_request", "temperature")),
    ],
)
def test_what_is_refused(fields: dict[str, Any], expected: tuple[int, str, str]) -> None:
    assert refused(**fields) == expected


def test_what_is_altered_is_said() -> None:
    body, changes = sent(n=2, best_of=3, temperature=9, logit_bias={"1": 5}, user="u", unknown=1, echo=False)
    assert body["options"] == {"temperature": 2}
    assert set(changes) == {
        Change("n", "changed", 1),
        Change("best_of", "changed", 1),
        Change("temperature", "clamped", 2),
        Change("logit_bias", "dropped"),
        Change("user", "dropped"),
        Change("unknown", "dropped"),
    }


def test_log_probabilities_are_asked_for() -> None:
    body, _ = sent(logprobs=0)
    assert (body["logprobs"], "top_logprobs" in body) == (True, False)
    body, _ = sent(logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    body, changes = sent(logprobs=3, engine_version="0.11.4")
    assert ("logprobs" in body, changes) == (False, (Change("logprobs", "dropped"),))


def test_a_recorded_stream() -> None:
    recorded = exchange(FOLDER, "generate_stream")
    for usage in (False, True):
        found = every_way(
            DIALECT,
            wanted(stream=True, **({"stream_options": {"include_usage": True}} if usage else {})),
            recorded.status,
            recorded.headers,
            recorded.body,
        )
        assert found.error is None
        assert is_done(found.data)
        chunks = [json.loads(each) for each in payloads(found.data) if each != b"[DONE]"]
        assert {(each["id"], each["created"], each["model"], each["object"]) for each in chunks} == {
            (RESPONSE_ID, CREATED, CALLER_MODEL, "text_completion")
        }
        choices = [choice for each in chunks for choice in each["choices"]]
        assert "".join(choice["text"] for choice in choices) == HELLO
        assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["stop"]
        assert [each["usage"]["total_tokens"] for each in chunks if each.get("usage")] == [20] * usage
        assert (chunks[-1]["choices"] == []) is usage


def test_a_recorded_answer() -> None:
    recorded = exchange(FOLDER, "generate_raw")
    found = every_way(DIALECT, wanted(), recorded.status, recorded.headers, recorded.body)
    answer = json.loads(found.data)
    assert answer["choices"] == [{"text": HELLO, "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["completion_tokens"] == 7
    assert (answer["id"], answer["model"]) == (RESPONSE_ID, CALLER_MODEL)


@pytest.mark.parametrize(
    ("case", "status", "code", "param"),
    [
        ("generate_suffix_plain_model", 400, "unsupported_parameter", "suffix"),
        ("generate_unknown_model", 404, "model_not_found", "model"),
    ],
)
def test_recorded_refusals(case: str, status: int, code: str, param: str) -> None:
    recorded = exchange(FOLDER, case)
    for stream in (False, True):
        found = every_way(DIALECT, wanted(stream=stream), recorded.status, recorded.headers, recorded.body)
        assert found.data == b""
        assert found.error is not None
        assert (found.error[0], found.error[1], found.error[3]) == (status, code, param)


TOKEN = b'{"response":"a","done":false}\n'
END = b'{"response":"","done":true,"done_reason":"stop"}\n'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (TOKEN, 502, "engine_protocol_error"),
        (TOKEN + b'{"response":1,"done":true}\n', 502, "engine_protocol_error"),
        (TOKEN + b'{"done":true}\n', 502, "engine_protocol_error"),
        (TOKEN + b'{"error":"it broke"}\n', 502, "engine_error"),
        (TOKEN + b"nonsense\n" + END, 502, "engine_protocol_error"),
    ],
)
def test_an_answer_that_breaks_off(body: bytes, status: int, code: str) -> None:
    found = every_way(DIALECT, wanted(stream=True), 200, {}, body)
    assert found.data.count(b'"text":"a"') == 1
    assert b"[DONE]" not in found.data
    assert b'"finish_reason":"' not in found.data
    assert found.error is not None
    assert found.error[:2] == (status, code)


def test_a_whole_answer_that_is_not_done() -> None:
    found = outcome(DIALECT.begin(wanted()), 200, {}, [TOKEN.strip()])
    assert found.error is not None
    assert found.error[:2] == (502, "engine_protocol_error")


def test_a_text_cut_by_its_length() -> None:
    body = b'{"response":"a","done":true,"done_reason":"length","eval_count":1}'
    answer = json.loads(outcome(DIALECT.begin(wanted()), 200, {}, [body]).data)
    assert answer["choices"][0]["finish_reason"] == "length"


PIECES = st.lists(st.text(max_size=6), max_size=8)


@given(PIECES, st.lists(st.integers(0, 2000), max_size=8), st.booleans())
def test_any_text_comes_through_however_it_is_cut(pieces: list[str], places: list[int], ascii_: bool) -> None:
    lines = [json.dumps({"response": piece, "done": False}, ensure_ascii=ascii_) for piece in pieces]
    body = "\n".join([*lines, END.decode()]).encode(errors="surrogatepass")
    found = outcome(DIALECT.begin(wanted(stream=True)), 200, {}, cut(body, places))
    assert found.error is None
    texts = [
        choice["text"] for each in payloads(found.data) if each != b"[DONE]" for choice in json.loads(each)["choices"]
    ]
    assert "".join(texts) == "".join(pieces)

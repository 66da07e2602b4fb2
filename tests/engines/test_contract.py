"""What every dialect promises, whatever its engine sends: the contract of `flm.engines.base`.

Arbitrary bytes give bytes a client can read or a RequestError, the same for any cutting, within bounds. A dialect
takes part by being there: its routes are those it begins, its recordings those of the engines it recognises; one
without recordings is judged by the formats that engines commonly speak.
"""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types import Completion

from flm.config import MAX_ANSWER_BYTES
from flm.engines.call import Call, Endpoint
from flm.engines.passthrough import PassThrough
from flm.engines.registry import DIALECTS
from flm.engines.translation import AnswerTranslation
from flm.errors import RequestError
from tests.support.belonging import Recorded, begun, packed, recorded
from tests.support.translating import (
    CALLER_MODEL,
    Outcome,
    chunks,
    cut,
    outcome,
    payloads,
    read_completion,
    read_embeddings,
    single_bytes,
)

KINDS = sorted(DIALECTS)
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
MODES: dict[str, tuple[Endpoint, dict[str, Any]]] = {
    "stream": (Endpoint.CHAT, {"stream": True}),
    "stream with usage": (Endpoint.CHAT, WITH_USAGE),
    "whole": (Endpoint.CHAT, {}),
    "completions stream": (Endpoint.COMPLETIONS, WITH_USAGE),
    "completions": (Endpoint.COMPLETIONS, {}),
    "floats": (Endpoint.EMBEDDINGS, {"encoding_format": "float"}),
    "base64": (Endpoint.EMBEDDINGS, {"encoding_format": "base64"}),
}
# What is translated for every engine that comes with FLM; a new dialect may have less.
BUILT_IN = frozenset({"llamacpp", "lmstudio", "ollama", "openai", "vllm"})


def calls(kind: str) -> dict[str, Call]:
    """The modes a dialect has, each with the least request for it."""
    found = {mode: begun(DIALECTS[kind], endpoint, **more) for mode, (endpoint, more) in MODES.items()}
    return {mode: wanted for mode, wanted in found.items() if wanted is not None}


CALLS = {(kind, mode): wanted for kind in KINDS for mode, wanted in calls(kind).items()}
PAIRS = sorted(CALLS)
CHATS = [(kind, mode) for kind, mode in PAIRS if mode in ("stream", "whole")]
STREAMS = [kind for kind, mode in PAIRS if mode == "stream"]
NATIVE = frozenset(kind for kind in KINDS if not isinstance(DIALECTS[kind], PassThrough))  # they write every byte

# What bytes are bent where an engine was not recorded: OpenAI's format, and lines of JSON.
_CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"a\\u00e9"},"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
_TEXT = (
    b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"a",'
    b'"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_VECTORS = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1]}],"model":"m"}'
SAMPLES: dict[Endpoint, tuple[bytes, bytes]] = {
    Endpoint.CHAT: (_CHUNK, b'{"model":"m","message":{"role":"assistant","content":"a"},"done":true}\n'),
    Endpoint.COMPLETIONS: (_TEXT, b'{"model":"m","response":"a","done":true,"done_reason":"stop"}\n'),
    Endpoint.EMBEDDINGS: (_VECTORS, b'{"model":"m","embeddings":[[0.5,-1]],"prompt_eval_count":1}'),
}
# One recording of each mode is bent for each of these that is found in one: they lead into other code.
FEATURES = (b"", b'"tool_calls"', b'"logprobs":{', b'"logprobs":[', b'"thinking"', b'"reasoning', b"data: [DONE]")


def mode_of(one: Recorded) -> str:
    """The mode a recording belongs to."""
    peek = one.call.peek
    if one.call.endpoint is Endpoint.EMBEDDINGS:
        return "base64" if packed(one.call) else "floats"
    if one.call.endpoint is Endpoint.COMPLETIONS:
        return "completions stream" if peek.stream else "completions"
    return "stream with usage" if peek.include_usage else "stream" if peek.stream else "whole"


def beginnings(kind: str) -> dict[str, tuple[str, bytes]]:
    """By a name for people: a mode, and an answer to begin from when bytes are bent."""
    found: dict[str, tuple[str, bytes]] = {}
    for mode in calls(kind):
        good = [one for one in recorded(kind) if one.exchange.status == 200 and mode_of(one) == mode]
        for feature in FEATURES:
            one = next((one for one in good if feature in one.exchange.body), None)
            if one is not None:
                found[f"{kind} {mode} {one.exchange.name}"] = (mode, one.exchange.body)
        if not good:
            for number, sample in enumerate(SAMPLES[MODES[mode][0]]):
                found[f"{kind} {mode} sample {number}"] = (mode, sample)
    return found


BENT = [pytest.param(kind, *rest, id=name) for kind in KINDS for name, rest in beginnings(kind).items()]


def test_the_built_in_dialects_take_part_in_full() -> None:
    assert set(KINDS) >= BUILT_IN
    for kind in BUILT_IN:
        assert set(calls(kind)) == set(MODES), kind
        assert {mode_of(one) for one in recorded(kind)} >= {"stream", "whole", "floats", "base64"} - (
            {"stream"} if kind in NATIVE else set()  # its recordings are read as if usage had been asked for
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_dialect_chats(kind: str) -> None:
    assert {"stream", "stream with usage", "whole"} <= set(calls(kind))


def run(kind: str, mode: str, status: int, pieces: list[bytes]) -> Outcome:
    headers = {b"content-type": b"text/event-stream" if "stream" in mode else b"application/json"}
    return outcome(DIALECTS[kind].begin(CALLS[kind, mode]), status, headers, pieces)


def check_readable(kind: str, mode: str, found: Outcome) -> None:
    """What came out can be read by a client; what a native dialect wrote, by the official client's types."""
    if found.error is not None:
        status, code, message, _, _ = found.error
        assert 400 <= status <= 599
        assert code
        assert message
    if "stream" in mode:
        for payload in payloads(found.data):
            if payload != b"[DONE]":
                parsed = json.loads(payload)
                assert parsed["model"] == CALLER_MODEL
                assert isinstance(parsed["choices"], list)
        if kind in NATIVE and mode != "completions stream":
            chunks(found.data)
        assert (found.error is None) == found.data.endswith(b"data: [DONE]\n\n")
    elif found.error is not None:
        assert found.data == b"", "a whole answer is given whole or not at all"
    else:
        assert json.loads(found.data)["model"] == CALLER_MODEL
        if kind in NATIVE:
            READERS[mode](found.data)


READERS = {
    "whole": read_completion,
    "completions": lambda body: Completion.model_validate(json.loads(body)),
    "floats": read_embeddings,
    "base64": read_embeddings,
}


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
@settings(deadline=None, max_examples=60)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"data: ",
                    b"\n",
                    b"\r\n",
                    b"[DONE]",
                    b'{"error":',
                    b'"x"',
                    b"}",
                    b'{"choices":[]}',
                    b'{"message":{"content":"a"},"done":false}',
                    b'{"message":{"content":1}}',
                    b'{"message":{"tool_calls":[{}]}}',
                    b'{"done":true}',
                    b"\xff",
                    b":",
                    b"event: error",
                    b"error: ",
                    b"[" * 5000,
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    places=st.lists(st.integers(0, 100_000), max_size=6),
)
@example(body=b"", places=[])
@example(body=b"\n\n\n", places=[])
@example(body=b"data: [DONE]", places=[3])
@example(body=b'{"embeddings":[["x"]]}', places=[])
@example(body=b'{"embeddings":["x"]}', places=[])
@example(body=b'{"message":{"content":"\\ud800"},"done":true}', places=[])
@example(body=b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":null}}]},"done":true}', places=[])
@example(body=b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},"done":true}', places=[])
@example(body=b'{"message":{},"done":true,"eval_count":-5}', places=[])
def test_any_bytes_give_an_answer_or_an_error(kind: str, mode: str, body: bytes, places: list[int]) -> None:
    whole = run(kind, mode, 200, [body])
    check_readable(kind, mode, whole)
    assert run(kind, mode, 200, cut(body, places)) == whole


@pytest.mark.parametrize(("kind", "mode", "answer"), BENT)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_bent_recordings_give_an_answer_or_an_error(kind: str, mode: str, answer: bytes, data: st.DataObject) -> None:
    body = bytearray(answer)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(body)))
        length = data.draw(st.integers(0, 20))
        body[at : at + length] = data.draw(st.binary(max_size=5) | st.sampled_from([b'"', b"}", b"\n", b"\\", b"null"]))
    found = run(kind, mode, 200, [bytes(body)])
    check_readable(kind, mode, found)
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    assert run(kind, mode, 200, cut(bytes(body), places)) == found


@pytest.mark.parametrize("kind", STREAMS)
@settings(deadline=None, max_examples=60)
@given(status=st.integers(400, 599), body=st.binary(max_size=200))
def test_any_error_body_gives_an_error(kind: str, status: int, body: bytes) -> None:
    found = run(kind, "stream", status, single_bytes(body))
    assert found.data == b""
    assert found.error is not None
    assert 400 <= found.error[0] <= 599


@pytest.mark.parametrize(("kind", "mode"), CHATS)
def test_an_error_comes_in_the_engines_own_words(kind: str, mode: str) -> None:
    translation = DIALECTS[kind].begin(CALLS[kind, mode])
    translation.head(500, {})
    translation.feed(b'{"error":"first"}')
    with pytest.raises(RequestError) as caught:
        translation.finish()
    if isinstance(translation, AnswerTranslation):
        assert caught.value.message == "first"


@pytest.mark.parametrize("kind", STREAMS)
def test_a_failed_stream_stays_failed(kind: str) -> None:
    translation = DIALECTS[kind].begin(CALLS[kind, "stream"])
    translation.head(200, {})
    with pytest.raises(RequestError) as first:
        translation.feed(b"data: nonsense\n\n")
    for again in (lambda: translation.feed(b"data: [DONE]\n\n"), translation.finish):
        with pytest.raises(RequestError) as second:
            again()
        assert second.value is first.value


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_nothing_is_no_answer(kind: str, mode: str) -> None:
    """An engine that says 200 and then nothing has failed; no finish reason is invented for it."""
    found = run(kind, mode, 200, [])
    assert found.data == b""
    assert found.error is not None
    assert found.error[0] == 502


def endless(kind: str, mode: str, piece: bytes, times: int) -> int:
    """Peak memory while an engine sends `piece` over and over; the translation may refuse at any time."""
    translation = DIALECTS[kind].begin(CALLS[kind, mode])
    tracemalloc.start()
    try:
        translation.head(200, {})
        for _ in range(times):
            translation.feed(piece)
    except RequestError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize(("kind", "mode"), [pair for pair in PAIRS if pair[1] in ("stream", "completions stream")])
@pytest.mark.parametrize(
    ("piece", "total"),
    [
        pytest.param(b"x" * 65_536, 32_000_000, id="one line"),
        pytest.param(b"data: " + b"y" * 1000, 32_000_000, id="one data line"),
        pytest.param(b"data:\n" * 10_000, 4_000_000, id="empty data lines"),
        pytest.param(b": ping\n\n" * 1000, 1_000_000, id="comments"),
    ],
)
def test_memory_is_bounded_on_a_stream_without_end(kind: str, mode: str, piece: bytes, total: int) -> None:
    assert endless(kind, mode, piece, total // len(piece)) < 28_000_000


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, mode in PAIRS if "stream" not in mode])
def test_a_whole_answer_is_bounded(kind: str, mode: str) -> None:
    translation = DIALECTS[kind].begin(CALLS[kind, mode])
    translation.head(200, {})
    piece = b" " * (1 << 20)
    for _ in range(MAX_ANSWER_BYTES // len(piece)):
        translation.feed(piece)
    with pytest.raises(RequestError):
        translation.feed(b" ")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_body_is_bounded(kind: str) -> None:
    translation = DIALECTS[kind].begin(CALLS[kind, "whole"])
    tracemalloc.start()
    try:
        translation.head(400, {})
        for _ in range(1000):
            translation.feed(b"x" * 65_536)
        with pytest.raises(RequestError) as caught:
            translation.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) <= 4000
    assert peak < 12_000_000


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_requests_are_sent_as_json_to_a_path(kind: str, mode: str) -> None:
    translation = DIALECTS[kind].begin(CALLS[kind, mode])
    request = translation.request
    assert translation.streaming == ("stream" in mode)
    assert not translation.complete
    assert request.method == "POST"
    assert request.path.startswith("/")
    sent: dict[str, Any] = json.loads(request.body)
    if kind in BUILT_IN:
        assert sent["model"] == "scripted"
        assert sent.get("stream", False) is translation.streaming
    assert b"scripted" in request.path.encode() + request.body
    assert CALLER_MODEL.encode() not in request.body

"""What every dialect promises, whatever its engine sends: the contract of `flm.engines.base`.

Arbitrary bytes give bytes a client can read or a RequestError, the same for any cutting, within bounds.
"""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flm.engines import passthrough, translation
from flm.engines.base import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from tests.support.recordings import exchange
from tests.support.translating import (
    CALLER_MODEL,
    Outcome,
    call,
    chat,
    chunks,
    cut,
    outcome,
    payloads,
    read_completion,
    read_embeddings,
    single_bytes,
)

KINDS = sorted(DIALECTS)
MODES: dict[str, Call] = {
    "stream": call(chat(stream=True)),
    "stream with usage": call(chat(stream=True, stream_options={"include_usage": True})),
    "whole": call(chat()),
    "floats": call({"input": "a", "encoding_format": "float"}, endpoint=Endpoint.EMBEDDINGS),
    "base64": call({"input": "a", "encoding_format": "base64"}, endpoint=Endpoint.EMBEDDINGS),
}
NATIVE = frozenset({"ollama"})  # dialects that write every byte of an answer themselves

# Recordings to begin from when bytes are bent; a new dialect adds its own.
BEGINNINGS: dict[str, list[tuple[str, str, str]]] = {
    "ollama": [
        ("stream", "ollama-0.34.4", "chat_tools_after_text_stream"),
        ("stream with usage", "ollama-0.34.4", "chat_think_stream"),
        ("stream", "ollama-0.34.4", "chat_logprobs_stream"),
        ("whole", "ollama-0.34.4", "chat_tools_two"),
        ("floats", "ollama-0.34.4", "embed_dimensions"),
        ("base64", "ollama-0.34.4", "embed_dimensions"),
    ],
    "llamacpp": [
        ("stream", "llama-server-b1-0c1e570", "chat_stream_usage"),
        ("whole", "llama-server-b1-0c1e570", "chat"),
        ("base64", "llama-server-b1-0c1e570/embedding", "embeddings_base64"),
    ],
    "openai": [
        ("stream with usage", "vllm-0.32.0", "chat_stream_usage"),
        ("whole", "vllm-0.32.0", "chat_logprobs"),
        ("base64", "vllm-0.32.0/embedding", "embeddings_base64"),
    ],
}


def test_every_dialect_takes_part() -> None:
    assert set(BEGINNINGS) == set(DIALECTS), "a new dialect needs recordings here"


def run(kind: str, mode: str, status: int, pieces: list[bytes]) -> Outcome:
    headers = {b"content-type": b"text/event-stream" if "stream" in mode else b"application/json"}
    return outcome(DIALECTS[kind].begin(MODES[mode]), status, headers, pieces)


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
        if kind in NATIVE:
            chunks(found.data)
        assert (found.error is None) == found.data.endswith(b"data: [DONE]\n\n")
    elif found.error is not None:
        assert found.data == b"", "a whole answer is given whole or not at all"
    else:
        assert json.loads(found.data)["model"] == CALLER_MODEL
        if kind in NATIVE:
            (read_completion if mode == "whole" else read_embeddings)(found.data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
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


@pytest.mark.parametrize(("kind", "mode", "folder", "case"), [(k, *rest) for k in KINDS for rest in BEGINNINGS[k]])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_bent_recordings_give_an_answer_or_an_error(
    kind: str, mode: str, folder: str, case: str, data: st.DataObject
) -> None:
    body = bytearray(exchange(folder, case).body)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(body)))
        length = data.draw(st.integers(0, 20))
        body[at : at + length] = data.draw(st.binary(max_size=5) | st.sampled_from([b'"', b"}", b"\n", b"\\", b"null"]))
    found = run(kind, mode, 200, [bytes(body)])
    check_readable(kind, mode, found)
    assert run(kind, mode, 200, cut(bytes(body), range(0, len(body), 61))) == found


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(status=st.integers(400, 599), body=st.binary(max_size=200))
def test_any_error_body_gives_an_error(kind: str, status: int, body: bytes) -> None:
    found = run(kind, "stream", status, single_bytes(body))
    assert found.data == b""
    assert found.error is not None
    assert 400 <= found.error[0] <= 599


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["stream", "whole"])
def test_nothing_comes_back_after_an_error(kind: str, mode: str) -> None:
    begun = DIALECTS[kind].begin(MODES[mode])
    begun.head(500, {})
    begun.feed(b'{"error":"first"}')
    with pytest.raises(RequestError, match="first"):
        begun.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_stream_stays_failed(kind: str) -> None:
    begun = DIALECTS[kind].begin(MODES["stream"])
    begun.head(200, {})
    with pytest.raises(RequestError) as first:
        begun.feed(b"data: nonsense\n\n")
    for again in (lambda: begun.feed(b"data: [DONE]\n\n"), begun.finish):
        with pytest.raises(RequestError) as second:
            again()
        assert second.value is first.value


def endless(kind: str, mode: str, piece: bytes, times: int) -> int:
    """Peak memory while an engine sends `piece` over and over; the translation may refuse at any time."""
    begun = DIALECTS[kind].begin(MODES[mode])
    tracemalloc.start()
    try:
        begun.head(200, {})
        for _ in range(times):
            begun.feed(piece)
    except RequestError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("piece", "total"),
    [
        pytest.param(b"x" * 65_536, 32_000_000, id="one line"),
        pytest.param(b"data: " + b"y" * 1000, 32_000_000, id="one data line"),
        pytest.param(b"data:\n" * 10_000, 4_000_000, id="empty data lines"),
        pytest.param(b": ping\n\n" * 1000, 1_000_000, id="comments"),
    ],
)
def test_memory_is_bounded_on_a_stream_without_end(kind: str, piece: bytes, total: int) -> None:
    assert endless(kind, "stream", piece, total // len(piece)) < 28_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_answer_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "MAX_ANSWER_BYTES", 1000)
    begun = DIALECTS[kind].begin(MODES["whole"])
    begun.head(200, {})
    begun.feed(b" " * 1000)
    with pytest.raises(RequestError, match="larger than 1000 bytes"):
        begun.feed(b" ")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_body_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "MAX_ERROR_BODY_BYTES", 10)
    monkeypatch.setattr(passthrough, "MAX_ERROR_BODY_BYTES", 10)
    found = run(kind, "whole", 400, [b"0123456789abc", b"def"])
    assert found.error is not None
    assert found.error[2] == "0123456789"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_requests_are_sent_as_json_to_a_path(kind: str, mode: str) -> None:
    begun = DIALECTS[kind].begin(MODES[mode])
    assert begun.streaming == ("stream" in mode)
    assert not begun.complete
    assert begun.request.method == "POST"
    assert begun.request.path.startswith("/")
    sent: dict[str, Any] = json.loads(begun.request.body)
    assert sent["model"] == "scripted"
    if MODES[mode].endpoint is Endpoint.CHAT:
        assert sent.get("stream", False) is begun.streaming

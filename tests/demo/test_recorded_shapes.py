"""The native dialects against what real engines put on the wire: the same headers and fields in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from flm.demo.delivery import pieces_of
from flm.demo.dialect import Request
from flm.demo.registry import create
from tests.support.recordings import Exchange, exchange

LLAMA, OLLAMA = "llama-server-b1-0c1e570", "ollama-0.34.4"
EMBEDDING = f"{LLAMA}/embedding"


def ask(dialect: str, recorded: Exchange, model: str, version: str | None = None) -> tuple[list[bytes], bytes]:
    """The head's lines and the body's bytes the demo engine gives to the recorded request, model apart."""
    body = recorded.request_body
    if body.endswith(b"}"):
        fields = msgspec.json.decode(body)
        body = msgspec.json.encode(fields | {"model": model} if "model" in fields else fields)
    engine = create(dialect, (), version, None)
    request = Request(
        recorded.method, recorded.path, {}, {b"host": b"127.0.0.1"}, body, 7, 1795361334.5, keep_alive=False
    )
    answer = engine.answer(request)
    whole = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
    length = len(whole) if isinstance(answer.body, bytes) else None
    assert list(pieces_of(answer))
    head = engine.head(answer, length, request.created, request.keep_alive)
    assert head.endswith(b"\r\n\r\n")
    return head.removesuffix(b"\r\n\r\n").split(b"\r\n"), whole


def shape(value: Any) -> Any:
    """Names in their order and kinds of values; of a list, the shapes that occur."""
    if isinstance(value, Mapping):
        return [(name, shape(part)) for name, part in value.items()]
    if isinstance(value, list):
        shapes: list[Any] = []
        for part in value:
            if shape(part) not in shapes:
                shapes.append(shape(part))
        return shapes
    return type(value).__name__ if value is not None else None


# What only a real one can know: timings in detail, cached tokens.
IGNORED = {"timings", "prompt_eval_cached_count"}


def pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: pruned(part) for name, part in value.items() if name not in IGNORED}
    return [pruned(part) for part in value] if isinstance(value, list) else value


def documents(body: bytes) -> list[Any]:
    """The JSON documents of a body: one, or one per line or event."""
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.strip()]
    return [line if line == b"[DONE]" else pruned(msgspec.json.decode(line)) for line in lines]


def header_names(head: list[bytes]) -> list[bytes]:
    return [line.split(b":")[0].lower() for line in head[1:]]


CASES = [
    ("llamacpp", LLAMA, "chat"),
    ("llamacpp", LLAMA, "chat_stream"),
    ("llamacpp", LLAMA, "chat_stream_usage"),
    ("llamacpp", LLAMA, "chat_no_messages"),
    ("llamacpp", LLAMA, "chat_bad_json"),
    ("llamacpp", LLAMA, "chat_unknown_model"),
    ("llamacpp", LLAMA, "chat_wrong_method"),
    ("llamacpp", LLAMA, "unknown_path"),
    ("llamacpp", LLAMA, "health"),
    ("llamacpp", EMBEDDING, "embeddings_batch"),
    ("llamacpp", EMBEDDING, "embeddings_base64"),
    ("llamacpp", EMBEDDING, "embeddings_empty"),
    ("ollama", OLLAMA, "version"),
    ("ollama", OLLAMA, "root"),
    ("ollama", OLLAMA, "chat"),
    ("ollama", OLLAMA, "chat_stream"),
    ("ollama", OLLAMA, "chat_length_stream"),
    ("ollama", OLLAMA, "chat_tools"),
    ("ollama", OLLAMA, "chat_tools_stream"),
    ("ollama", OLLAMA, "chat_load"),
    ("ollama", OLLAMA, "chat_no_model"),
    ("ollama", OLLAMA, "chat_content_parts"),
    ("ollama", OLLAMA, "chat_stop_string"),
    ("ollama", OLLAMA, "chat_wrong_method"),
    ("ollama", OLLAMA, "unknown_path"),
    ("ollama", OLLAMA, "v1_models"),
]


@pytest.mark.parametrize(("dialect", "folder", "case"), CASES, ids=[f"{one}/{case}" for one, _, case in CASES])
def test_like_the_recording(dialect: str, folder: str, case: str) -> None:
    recorded = exchange(folder, case)
    head, body = ask(dialect, recorded, "demo")
    assert int(head[0].split(b" ")[1]) == recorded.status
    names = header_names(head)
    assert names == list(recorded.headers)
    if b"json" not in recorded.headers[b"content-type"] and b"event" not in recorded.headers[b"content-type"]:
        assert body == recorded.body
        return
    assert recorded.headers[b"content-type"].split(b";")[0] in b"\n".join(head)
    ours, theirs = documents(body), documents(recorded.body)
    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize("case", ["chat_think", "chat_think_stream"])
def test_thinking_like_the_recording(case: str) -> None:
    recorded = exchange(OLLAMA, case)
    _, body = ask("ollama", recorded, "demo-think")
    assert shape(documents(body)) == shape(documents(recorded.body))


def test_unknown_models_are_refused_in_the_same_words() -> None:
    for case in ("chat_unknown_model", "embed_unknown_model"):
        recorded = exchange(OLLAMA, case)
        assert ask("ollama", recorded, "no-such-model")[1] == recorded.body


def test_old_versions_give_calls_no_id() -> None:
    recorded = exchange("ollama-0.11.4", "chat_tools")
    _, body = ask("ollama", recorded, "demo", "0.11.4")
    call = msgspec.json.decode(body)["message"]["tool_calls"][0]
    assert list(call) == ["function"]
    _, body = ask("ollama", recorded, "demo", "0.12.10")
    assert list(msgspec.json.decode(body)["message"]["tool_calls"][0]) == ["id", "function"]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (b"127.0.0.1:1", None, 200),
        (b"localhost", None, 200),
        (b"[::1]:80", None, 200),
        (b"", None, 200),
        (b"10.0.0.7:11434", None, 200),
        (b"evil.example", None, 403),
        (b"8.8.8.8", None, 403),
        (b"localhost", b"https://evil.example", 403),
        (b"localhost", b"null", 403),
    ],
)
def test_host_and_origin_are_guarded(host: bytes, origin: bytes | None, status: int) -> None:
    headers = {b"host": host} | ({} if origin is None else {b"origin": origin})
    answer = create("ollama", (), None, None).answer(Request("GET", "/api/version", {}, headers, b"", 1, 0.0))
    assert (answer.status, answer.body == b"") == (status, status == 403)


def test_a_wrong_key_is_refused_as_recorded() -> None:
    recorded = exchange(EMBEDDING, "auth_wrong")
    engine = create("llamacpp", (), None, "sekret")
    for header, status in ((b"Bearer wrong", 401), (b"Bearer sekret", 200)):
        headers = {b"authorization": header}
        answer = engine.answer(Request("GET", "/v1/models", {}, headers, b"", 1, 0.0))
        assert answer.status == status
        assert (answer.body == recorded.body) == (status == 401)
    assert engine.answer(Request("GET", "/health", {}, {}, b"", 1, 0.0)).status == 200

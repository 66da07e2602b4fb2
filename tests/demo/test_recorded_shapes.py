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

LLAMA, OLLAMA, VLLM = "llama-server-b1-0c1e570", "ollama-0.34.4", "vllm-0.32.0"
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


# What only a real one can know: timings in detail, cached tokens, and which parser it was started with.
IGNORED = {"timings", "prompt_eval_cached_count", "completion_tokens_details"}


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
    ("llamacpp", LLAMA, "completions"),
    ("llamacpp", LLAMA, "completions_stream"),
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
    ("ollama", OLLAMA, "generate_load"),
    ("ollama", OLLAMA, "generate_raw"),
    ("ollama", OLLAMA, "generate_suffix_plain_model"),
    ("ollama", OLLAMA, "chat_no_model"),
    ("ollama", OLLAMA, "chat_content_parts"),
    ("ollama", OLLAMA, "chat_stop_string"),
    ("ollama", OLLAMA, "chat_wrong_method"),
    ("ollama", OLLAMA, "unknown_path"),
    ("ollama", OLLAMA, "v1_models"),
    ("vllm", VLLM, "version"),
    ("vllm", VLLM, "health"),
    ("vllm", VLLM, "models"),
    ("vllm", VLLM, "chat"),
    ("vllm", VLLM, "chat_stream"),
    ("vllm", VLLM, "chat_stream_usage"),
    ("vllm", VLLM, "chat_no_messages"),
    ("vllm", VLLM, "chat_empty_messages"),
    ("vllm", VLLM, "chat_bad_json"),
    ("vllm", VLLM, "chat_not_object"),
    ("vllm", VLLM, "chat_no_model"),
    ("vllm", VLLM, "chat_wrong_method"),
    ("vllm", VLLM, "unknown_path"),
    ("vllm", VLLM, "embeddings"),
    ("vllm", VLLM, "completions"),
    ("vllm", VLLM, "completions_stream"),
    ("vllm", f"{VLLM}/scripted", "chat_tools"),
    ("vllm", f"{VLLM}/scripted", "chat_tools_stream"),
    ("vllm", f"{VLLM}/scripted", "chat_tools_empty"),
    ("vllm", f"{VLLM}/scripted", "chat_tool_choice_without_tools"),
    ("vllm", f"{VLLM}/scripted", "chat_stream_options_without_stream"),
    ("vllm", f"{VLLM}/scripted", "completions_stream"),
    ("vllm", f"{VLLM}/scripted", "completions_no_prompt"),
]


IDS = [f"{dialect}/{folder.rpartition('/')[2]}/{case}" for dialect, folder, case in CASES]


@pytest.mark.parametrize(("dialect", "folder", "case"), CASES, ids=IDS)
def test_like_the_recording(dialect: str, folder: str, case: str) -> None:
    recorded = exchange(folder, case)
    head, body = ask(dialect, recorded, "demo")
    assert int(head[0].split(b" ")[1]) == recorded.status
    names = header_names(head)
    assert names == list(recorded.headers)
    kind = recorded.headers.get(b"content-type", b"")
    if b"json" not in kind and b"event" not in kind:
        assert body == recorded.body
        return
    assert kind.split(b";")[0] in b"\n".join(head)
    ours, theirs = documents(body), documents(recorded.body)
    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize("case", ["chat_think", "chat_think_stream"])
def test_thinking_like_the_recording(case: str) -> None:
    recorded = exchange(OLLAMA, case)
    _, body = ask("ollama", recorded, "demo-think")
    assert shape(documents(body)) == shape(documents(recorded.body))


@pytest.mark.parametrize("case", ["chat_think", "chat_think_stream"])
def test_vllm_thinks_like_the_recording(case: str) -> None:
    recorded = exchange(f"{VLLM}/scripted", case)
    engine = create("vllm", ("demo-think",), None, None)
    fields = msgspec.json.decode(recorded.request_body) | {"model": "demo-think"}
    answer = engine.answer(Request("POST", recorded.path, {}, {}, msgspec.json.encode(fields), 7, 1.0))
    body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
    assert shape(documents(body)) == shape(documents(recorded.body))


VECTORS = ("embeddings", "embeddings_base64", "embeddings_batch", "embeddings_tokens", "embeddings_token_arrays")
NO_VECTORS = (
    "embeddings_dimensions",
    "embeddings_empty_list",
    "embeddings_unknown_model",
    "completions_on_embedding_model",
)


@pytest.mark.parametrize("case", VECTORS + NO_VECTORS)
def test_vllm_embeds_like_the_recording(case: str) -> None:
    recorded = exchange(f"{VLLM}/scripted-embedding", case)
    name = "nope" if case == "embeddings_unknown_model" else "scripted-embed"
    engine = create("vllm", ("scripted-embed",), None, "sekret")
    body = msgspec.json.encode(msgspec.json.decode(recorded.request_body) | {"model": name})
    headers = {b"authorization": b"Bearer sekret"}
    answer = engine.answer(Request("POST", recorded.path, {}, headers, body, 7, 1.0))
    assert isinstance(answer.body, bytes)
    assert (answer.status, shape(documents(answer.body))) == (recorded.status, shape(documents(recorded.body)))
    if recorded.status >= 400:
        assert answer.body == recorded.body


def test_vllm_guards_v1_and_nothing_else() -> None:
    recorded = exchange(f"{VLLM}/scripted-embedding", "models_without_key")
    engine = create("vllm", (), None, "sekret")
    refused = engine.answer(Request("GET", "/v1/models", {}, {}, b"", 1, 0.0))
    assert (refused.status, refused.body) == (recorded.status, recorded.body)
    assert header_names(engine.head(refused, 1, 0.0, False).split(b"\r\n")[:-2]) == list(recorded.headers)
    for path in ("/version", "/health", "/openapi.json"):
        assert engine.answer(Request("GET", path, {}, {}, b"", 1, 0.0)).status == 200


def test_vllm_refuses_an_unknown_model_in_the_same_words() -> None:
    recorded = exchange(VLLM, "chat_unknown_model")
    engine = create("vllm", ("tiny-llama",), None, None)
    for path in (recorded.path, "/v1/completions"):
        answer = engine.answer(Request("POST", path, {}, {}, recorded.request_body, 1, 0.0))
        assert (answer.status, answer.body) == (404, recorded.body)


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

"""Runs a translation over an answer cut in any way, and reads the result as OpenAI's own client types do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from flm.engines.base import Dialect, Translation
from flm.engines.call import Call, Endpoint
from flm.errors import RequestError
from flm.wire.openai import peek

CALLER_MODEL = "flm://engine/some-model"
RESPONSE_ID = "chatcmpl-1700000000000-0123456789abcdef"
CREATED = 1_700_000_000


class Outcome(msgspec.Struct, frozen=True):
    """What a client would get: bytes, and the error that ended them if one did."""

    data: bytes
    error: tuple[int, str, str, str | None, str | None] | None = None


class Reply(msgspec.Struct, frozen=True):
    """A chat answer as a client sees it, streamed or not."""

    text: str | None
    reasoning: str = ""
    calls: list[tuple[str, str, Any]] = []
    finish: str | None = None
    usage: tuple[int, int] | None = None
    logprobs: list[tuple[str, float]] = []


def call(body: Mapping[str, Any], *, endpoint: Endpoint = Endpoint.CHAT, model: str = "scripted", **more: Any) -> Call:
    """A peeked request as the proxy would hand it to a dialect; `model` is the engine's own name."""
    peeked = peek(json.dumps({"model": CALLER_MODEL, **body}).encode())
    return Call(endpoint, peeked, model, response_id=RESPONSE_ID, created=CREATED, **more)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say hello to the proxy."}], **fields}


def outcome(translation: Translation, status: int, headers: Mapping[bytes, bytes], pieces: Iterable[bytes]) -> Outcome:
    """Everything the translation returns for an answer that comes in `pieces`."""
    out = bytearray()
    try:
        translation.head(status, headers)
        for piece in pieces:
            out += translation.feed(piece)
            if translation.complete:
                break
        else:
            out += translation.finish()
    except RequestError as error:
        return Outcome(bytes(out), (error.status, error.code, error.message, error.param, error.type))
    return Outcome(bytes(out))


def single_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` cut at `places`, which may be in any order and beyond its end."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def every_way(dialect: Dialect, call: Call, status: int, headers: Mapping[bytes, bytes], body: bytes) -> Outcome:
    """The outcome for the body fed whole, after proving that one byte at a time gives the same."""
    whole = outcome(dialect.begin(call), status, headers, [body])
    assert outcome(dialect.begin(call), status, headers, single_bytes(body)) == whole
    assert outcome(dialect.begin(call), status, headers, cut(body, range(7, len(body), 97))) == whole
    return whole


def payloads(stream: bytes) -> Iterator[bytes]:
    """The data of each event of a stream as FLM writes it: `data: …` and an empty line, or a comment."""
    assert stream == b"" or stream.endswith(b"\n\n")
    for event in stream.split(b"\n\n")[:-1]:
        if event.startswith(b":"):
            continue
        lines = [line for line in event.split(b"\n") if not line.startswith((b"event:", b"id:", b"retry:"))]
        assert all(line.startswith(b"data: ") for line in lines), event
        yield b"\n".join(line[6:] for line in lines)


def chunks(stream: bytes) -> list[ChatCompletionChunk]:
    """The chunks of a stream, each validated by the official client's types; `[DONE]` may only come last."""
    found = list(payloads(stream))
    if b"[DONE]" in found:
        assert found.index(b"[DONE]") == len(found) - 1
        found.pop()
    return [ChatCompletionChunk.model_validate(json.loads(payload)) for payload in found]


def is_done(stream: bytes) -> bool:
    return stream.count(b"data: [DONE]\n\n") == 1 and stream.endswith(b"data: [DONE]\n\n")


def read_stream(stream: bytes) -> Reply:
    """The reply a streaming client puts together. Every chunk must carry the same id, time and the caller's model."""
    text, reasoning, finish, usage = "", "", None, None
    calls: dict[int, list[Any]] = {}
    tokens: list[tuple[str, float]] = []
    found = chunks(stream)
    assert {chunk.model for chunk in found} <= {CALLER_MODEL}
    assert len({(chunk.id, chunk.created) for chunk in found}) <= 1
    roles = 0
    for chunk in found:
        if chunk.usage is not None:
            usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            delta = choice.delta
            roles += delta.role is not None
            text += delta.content or ""
            reasoning += (delta.model_extra or {}).get("reasoning_content") or ""
            for piece in delta.tool_calls or []:
                entry = calls.setdefault(piece.index, [piece.id, "", ""])
                assert piece.function is not None
                entry[1] += piece.function.name or ""
                entry[2] += piece.function.arguments or ""
            if choice.logprobs is not None:
                tokens += [(token.token, token.logprob) for token in choice.logprobs.content or []]
            if choice.finish_reason is not None:
                assert finish is None, "a second finish_reason"
                finish = choice.finish_reason
    assert roles == (1 if found else 0)
    assert list(calls) == list(range(len(calls)))
    return Reply(
        text, reasoning, [(id_, name, json.loads(text_)) for id_, name, text_ in calls.values()], finish, usage, tokens
    )


def read_completion(body: bytes) -> Reply:
    """The reply of a whole answer."""
    completion = ChatCompletion.model_validate(json.loads(body))
    assert completion.model == CALLER_MODEL
    assert completion.usage is not None
    (choice,) = completion.choices
    message = choice.message
    calls = [
        (each.id, each.function.name, json.loads(each.function.arguments))
        for each in message.tool_calls or []
        if each.type == "function"
    ]
    tokens = choice.logprobs.content if choice.logprobs is not None else None
    return Reply(
        message.content,
        (message.model_extra or {}).get("reasoning_content") or "",
        calls,
        choice.finish_reason,
        (completion.usage.prompt_tokens, completion.usage.completion_tokens),
        [(token.token, token.logprob) for token in tokens or []],
    )


def read_embeddings(body: bytes) -> CreateEmbeddingResponse:
    raw = json.loads(body)
    for item in raw["data"]:
        if isinstance(item["embedding"], str):
            item["embedding"] = []  # the client decodes it itself; the types know only numbers
    found = CreateEmbeddingResponse.model_validate(raw)
    assert found.model == CALLER_MODEL
    assert [item.index for item in found.data] == list(range(len(found.data)))
    return found

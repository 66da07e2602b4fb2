"""Chunks as OpenAI writes them, and as its client reads them."""

from __future__ import annotations

import json

import msgspec
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from flm.wire.chunks import (
    ChatMessage,
    ChunkWriter,
    Function,
    Logprob,
    ToolCall,
    TopLogprob,
    completion,
    usage,
)

WRITER = ChunkWriter("chatcmpl-1", 5, 'a "model"', include_usage=False)
CALL = ToolCall("call_1", "function", Function("f", '{"x": "é"}'))


def chunk(event: bytes) -> ChatCompletionChunk:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    found = ChatCompletionChunk.model_validate(json.loads(event[6:]))
    assert (found.id, found.created, found.model, found.object) == (
        "chatcmpl-1",
        5,
        'a "model"',
        "chat.completion.chunk",
    )
    return found


def test_deltas() -> None:
    assert chunk(WRITER.role()).choices[0].delta.to_dict() == {"role": "assistant", "content": ""}
    assert chunk(WRITER.content(b'"a\\u003c"')).choices[0].delta.to_dict() == {"content": "a<"}
    assert chunk(WRITER.reasoning(b'"a"')).choices[0].delta.to_dict() == {"reasoning_content": "a"}
    call = {"index": 2, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}
    assert chunk(WRITER.tool_call(2, CALL)).choices[0].delta.to_dict() == {"tool_calls": [call]}


def test_only_the_last_chunk_has_a_reason() -> None:
    assert chunk(WRITER.content(b'"a"')).choices[0].finish_reason is None
    last = chunk(WRITER.finish("stop")).choices[0]
    assert (last.finish_reason, last.delta.to_dict()) == ("stop", {})


def test_logprobs_have_what_clients_want() -> None:
    tokens = [Logprob("a", -0.5), Logprob("b", -1, [98], [TopLogprob("c", -2, [99])])]
    found = chunk(WRITER.content_with_logprobs(b'"ab"', tokens)).choices[0].logprobs
    assert found is not None
    assert [token.to_dict() for token in found.content or []] == [
        {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []},
        {
            "token": "b",
            "logprob": -1.0,
            "bytes": [98],
            "top_logprobs": [{"token": "c", "logprob": -2.0, "bytes": [99]}],
        },
    ]


def test_usage_is_null_until_the_end_when_asked_for() -> None:
    assert b"usage" not in WRITER.content(b'"a"')
    asked = ChunkWriter("chatcmpl-1", 5, 'a "model"', include_usage=True)
    assert json.loads(asked.content(b'"a"')[6:])["usage"] is None
    last = chunk(asked.usage(usage(3, 4, None)))
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.to_dict() == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_whole_answer() -> None:
    message = ChatMessage("assistant", msgspec.Raw(b"null"), tool_calls=[CALL])
    body = completion("chatcmpl-1", 5, "m", message, "tool_calls", usage(3, 4, 2), None)
    found = ChatCompletion.model_validate(json.loads(body))
    assert found.choices[0].message.content is None
    assert found.choices[0].finish_reason == "tool_calls"
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == 2

"""Chat answers as OpenAI writes them: stream chunks, the end of a stream, and the whole JSON answer.

Everything of a chunk that does not change within a stream is rendered once; a chunk then costs two concatenations.
Texts come in as JSON strings (`Raw` or bytes) and are copied, never decoded. Knows no engine and no policy.
"""

from __future__ import annotations

import msgspec

Raw = msgspec.Raw
DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """One finished call; `arguments` is JSON in a string, as OpenAI has it."""

    id: str
    type: str
    function: Function


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: Raw
    refusal: None = None
    reasoning_content: Raw | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class _Choice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: Raw | None
    finish_reason: str


class _Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class Logprob(msgspec.Struct, frozen=True):
    """One token's log probability; engines leave out `top_logprobs` and `bytes`, clients want them there."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[Logprob]
    refusal: None = None


def logprobs(tokens: list[Logprob]) -> bytes:
    """The value of a choice's `logprobs`."""
    return _encoder.encode(_Logprobs(tokens))


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None) -> Usage:
    details = None if cached_tokens is None else PromptDetails(cached_tokens)
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details)


class ChunkWriter:
    """The chunks of one stream: one id, one time, one model. Each method returns one whole event."""

    __slots__ = ("_end", "_finish", "_head", "_opening")

    def __init__(self, id: str, created: int, model: str, *, include_usage: bool) -> None:  # noqa: A002 - the field's name
        fixed = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._opening = b"data: " + _encoder.encode(fixed)[:-1] + b',"choices":['
        self._head = self._opening + b'{"index":0,"delta":'
        # Asked for usage, OpenAI says `"usage":null` on every chunk but the last.
        self._finish = b"]}\n\n" if not include_usage else b'],"usage":null}\n\n'
        self._end = b',"logprobs":null,"finish_reason":null}' + self._finish

    def role(self) -> bytes:
        return self._head + b'{"role":"assistant","content":""}' + self._end

    def content(self, text: bytes) -> bytes:
        return self._head + b'{"content":' + text + b"}" + self._end

    def content_with_logprobs(self, text: bytes, tokens: list[Logprob]) -> bytes:
        values = logprobs(tokens)
        return self._head + b'{"content":' + text + b'},"logprobs":' + values + b',"finish_reason":null}' + self._finish

    def reasoning(self, text: bytes) -> bytes:
        return self._head + b'{"reasoning_content":' + text + b"}" + self._end

    def tool_call(self, index: int, call: ToolCall) -> bytes:
        delta = b'{"tool_calls":[{"index":%d,' % index + _encoder.encode(call)[1:] + b"]}"
        return self._head + delta + self._end

    def finish(self, reason: str) -> bytes:
        return self._head + b'{},"logprobs":null,"finish_reason":"' + reason.encode() + b'"}' + self._finish

    def usage(self, counts: Usage) -> bytes:
        return self._opening + b'],"usage":' + _encoder.encode(counts) + b"}\n\n"


def completion(
    id: str,  # noqa: A002 - the field's name
    created: int,
    model: str,
    message: ChatMessage,
    finish_reason: str,
    counts: Usage,
    tokens: list[Logprob] | None,
) -> bytes:
    """The whole answer to a request that did not stream."""
    choice = _Choice(0, message, None if tokens is None else Raw(logprobs(tokens)), finish_reason)
    return _encoder.encode(_Completion(id, "chat.completion", created, model, [choice], counts))

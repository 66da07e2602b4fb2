"""Ollama's native answers as OpenAI's: NDJSON lines become chunks, one object becomes a completion or a list.

Thoughts go out under one name, `reasoning_content` (the one most clients read; llama.cpp
uses it too), not under `reasoning` as well: each token would travel twice. Texts are copied as the JSON strings they
came as. Tool calls are numbered here, since old versions number them all 0, and get an id where the engine gave none;
an id that is there is kept as it is.

Does not know how the request was made (`ollama_request`) nor how an Ollama is found (`ollama`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.refusals import reported, unreadable
from flm.engines.translation import LineStream, WholeAnswer, unfinished
from flm.errors import UpstreamProtocolError
from flm.wire.chat import MALFORMED, QUOTE, first_byte
from flm.wire.chunks import (
    DONE,
    ChatMessage,
    ChunkWriter,
    Function,
    Logprob,
    ToolCall,
    Usage,
    completion,
    usage,
)
from flm.wire.embeddings import EmbeddingParameters, answer, base64_vector, check_dimensions, is_vector
from flm.wire.framing import readable

Raw = msgspec.Raw
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType

_EMPTY = b'""'
_Count = Annotated[int, msgspec.Meta(ge=0)]
_encoder = msgspec.json.Encoder()


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: Raw = Raw(b"{}")


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: Raw = Raw(_EMPTY)
    thinking: Raw = Raw(_EMPTY)
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct, gc=False):
    """One line of a stream, or the whole answer. Counts that are 0 are left out by the engine."""

    message: _Message | None = None
    done: bool = False
    done_reason: str | None = None
    error: Raw | UnsetType = UNSET
    logprobs: list[Logprob] | None = None
    prompt_eval_count: _Count = 0
    prompt_eval_cached_count: _Count | None = None
    eval_count: _Count = 0


class _Embeddings(msgspec.Struct):
    embeddings: list[Raw] = []
    error: Raw | UnsetType = UNSET
    prompt_eval_count: _Count = 0


_line = msgspec.json.Decoder(_Line)
_embeddings = msgspec.json.Decoder(_Embeddings)


def _decoded(data: bytes) -> _Line:
    """A line, or the error it reports. Raises RequestError."""
    try:
        line = _line.decode(readable(data))
    except MALFORMED:
        raise unreadable("a line of a chat answer", data) from None
    if not isinstance(line.error, UnsetType):
        raise reported(bytes(line.error), "messages")
    if line.message is None:
        raise unreadable("a line of a chat answer", data)
    return line


def _string(value: Raw, data: bytes) -> bytes:
    """The JSON string a text field holds; null counts as empty."""
    text = bytes(value)
    if first_byte(value) == QUOTE:
        return text
    if text == b"null":
        return _EMPTY
    raise unreadable("a line of a chat answer", data)


def _usage(line: _Line) -> Usage:
    return usage(line.prompt_eval_count, line.eval_count, line.prompt_eval_cached_count)


class _Calls:
    """Numbers the tool calls of one answer, and names those without an id after the answer."""

    __slots__ = ("_answer", "count")

    def __init__(self, response_id: str) -> None:
        self._answer = response_id.removeprefix("chatcmpl-")
        self.count = 0

    def next(self, call: _Call) -> ToolCall:
        arguments = bytes(call.function.arguments)
        if arguments.startswith(b'"'):
            text = msgspec.json.decode(arguments, type=str)  # not seen, but the meaning would be clear
        else:
            text = "{}" if arguments == b"null" else arguments.decode()
        identity = call.id or f"call_{self._answer}_{self.count}"
        self.count += 1
        return ToolCall(identity, "function", Function(call.function.name, text))

    def finish_reason(self, line: _Line) -> str:
        if line.done_reason == "length":
            return "length"
        return "tool_calls" if self.count else "stop"


class ChatStream(LineStream):
    """A streamed chat answer."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        include_usage = call.peek.include_usage
        self._include_usage = include_usage
        self._chunks = ChunkWriter(call.response_id, call.created, call.peek.model, include_usage=include_usage)
        self._calls = _Calls(call.response_id)
        self._begun = False

    def _line(self, data: bytes, out: bytearray) -> None:
        line = _decoded(data)
        message = line.message
        assert message is not None  # as _decoded has seen
        if not self._begun:
            self._begun = True
            out += self._chunks.role()
        thinking = _string(message.thinking, data)
        if thinking != _EMPTY:
            out += self._chunks.reasoning(thinking)
        content = _string(message.content, data)
        if line.logprobs:
            out += self._chunks.content_with_logprobs(content, line.logprobs)
        elif content != _EMPTY:
            out += self._chunks.content(content)
        for call in message.tool_calls or ():
            index = self._calls.count
            out += self._chunks.tool_call(index, self._calls.next(call))
        if line.done:
            self._finish(line, out)

    def _finish(self, line: _Line, out: bytearray) -> None:
        out += self._chunks.finish(self._calls.finish_reason(line))
        if self._include_usage:
            out += self._chunks.usage(_usage(line))
        out += DONE
        self._complete = True


class ChatAnswer(WholeAnswer):
    """A chat answer in one object."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        self._call = call

    def _whole(self, body: bytes) -> bytes:
        line = _decoded(body)
        message = line.message
        assert message is not None  # as _decoded has seen
        if not line.done:
            raise unfinished()
        calls = _Calls(self._call.response_id)
        tool_calls = [calls.next(call) for call in message.tool_calls or ()]
        content = _string(message.content, body)
        thinking = _string(message.thinking, body)
        return completion(
            self._call.response_id,
            self._call.created,
            self._call.peek.model,
            ChatMessage(
                "assistant",
                Raw(b"null" if tool_calls and content == _EMPTY else content),
                reasoning_content=Raw(thinking) if thinking != _EMPTY else UNSET,
                tool_calls=tool_calls or UNSET,
            ),
            calls.finish_reason(line),
            _usage(line),
            line.logprobs,
        )


class EmbeddingAnswer(WholeAnswer):
    """Vectors, as many as there were texts."""

    long_field = "input"

    def __init__(
        self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, wanted: EmbeddingParameters
    ) -> None:
        super().__init__(request, changes)
        self._model = call.peek.model
        self._wanted = wanted

    def _whole(self, body: bytes) -> bytes:
        wanted = self._wanted
        packed = wanted.encoding_format == "base64"
        try:
            found = _embeddings.decode(readable(body))
            if wanted.dimensions is not None:
                check_dimensions(wanted.dimensions, found.embeddings)
            vectors = [base64_vector(vector) for vector in found.embeddings] if packed else found.embeddings
        except (*MALFORMED, ValueError):
            raise unreadable("an embedding answer", body) from None
        if not isinstance(found.error, UnsetType):
            raise reported(bytes(found.error), "input")
        if not packed and not all(map(is_vector, vectors)):
            raise unreadable("an embedding answer", body)
        count = 1 if isinstance(wanted.input, str) else len(wanted.input)
        if len(vectors) != count:
            raise UpstreamProtocolError(f"the engine sent {len(vectors)} vectors for {count} texts")
        return answer(vectors, self._model, found.prompt_eval_count)

"""A chat or embedding request in the words of Ollama's native API.

Decisions that Ollama's API leaves open: sampling parameters the caller left out stay out, so that the
model's own defaults hold; `truncate` is not sent either, so Ollama goes on dropping the oldest messages of a long
conversation; a `tool_choice` that cannot be enforced is best effort with a warning (`required` as `auto`, a named
function by offering only that one). Texts, schemas and tools are copied, not decoded.

Does not know how the answer is translated (`ollama_answer`) nor how an Ollama is found (`ollama`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.capabilities import older
from flm.engines.ollama_leftovers import leftovers
from flm.engines.ollama_options import Options, options
from flm.engines.ollama_table import CHAT_TABLE, EMBEDDING_TABLE
from flm.engines.requests import check_chat
from flm.errors import ErrorKind, RequestError, shown
from flm.wire.chat import (
    BRACE,
    LETTER_N,
    QUOTE,
    ChatParameters,
    Message,
    Part,
    Tool,
    content_parts,
    decoded,
    first_byte,
    invalid,
    modalities,
    parameters,
)
from flm.wire.embeddings import EmbeddingParameters, embedded

Raw = msgspec.Raw
THINKS_BY_ITSELF_SINCE: Final = (0, 12, 0)  # before, a silent request left the thoughts in the text, with their tags

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_THINKS: Final = {"none": False, "true": True}  # other levels go by their names


class NativeParameters(ChatParameters, frozen=True, kw_only=True):
    """A chat request with the extra fields that Ollama's users write into it."""

    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    num_ctx: int | None = None
    keep_alive: str | int | float | None = None


class NativeEmbedding(EmbeddingParameters, frozen=True, kw_only=True):
    """An embedding request with the extra fields that Ollama's users write into it."""

    truncate: bool | None = None
    keep_alive: str | int | float | None = None


class _GivenFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str = ""


class _GivenCall(msgspec.Struct, frozen=True):
    function: _GivenFunction
    id: str | None = None
    type: str = "function"


class _Schema(msgspec.Struct, frozen=True):
    schema: Raw


class _ImageUrl(msgspec.Struct, frozen=True):
    url: str


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: Raw


class _Call(msgspec.Struct, frozen=True, omit_defaults=True):
    function: _Function
    id: str | None = None


class _NativeMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: Raw
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    messages: list[_NativeMessage]
    stream: bool
    tools: tuple[Tool, ...] | None = None
    format: Raw | None = None
    options: Options | None = None
    keep_alive: str | int | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    input: Raw
    truncate: bool
    dimensions: int | None = None
    keep_alive: str | int | float | None = None


_encoder = msgspec.json.Encoder()
_calls = msgspec.json.Decoder(tuple[_GivenCall, ...] | None)
_object = msgspec.json.Decoder(dict[str, Raw])
_schema = msgspec.json.Decoder(_Schema)
_image_url = msgspec.json.Decoder(_ImageUrl)
_text = msgspec.json.Decoder(str)


def chat(call: Call) -> tuple[UpstreamRequest, tuple[Change, ...]]:
    """`/api/chat` for this call, and what could not be passed on. Raises RequestError."""
    wanted = parameters(call.peek.fields, NativeParameters)
    check_chat(wanted)
    if wanted.reasoning_effort not in (None, *_EFFORTS):
        raise invalid(f"`reasoning_effort` must be one of {', '.join(_EFFORTS)}", "reasoning_effort")
    decided = CHAT_TABLE.decide(call, modalities(wanted.messages))
    if decided.changes or decided.fields != call.peek.fields:
        wanted = parameters(decided.fields, NativeParameters)
    request = _ChatRequest(
        call.model,
        _messages(wanted.messages),
        call.peek.stream,
        tools=wanted.tools or None,
        format=_format(wanted),
        options=options(wanted, wanted.max_completion_tokens or wanted.max_tokens),
        keep_alive=wanted.keep_alive,
        think=_think(wanted, call),
        logprobs=wanted.logprobs or None,
        top_logprobs=_top_logprobs(wanted),
    )
    for name in leftovers(decided.fields):
        if (change := Change(name, "dropped")) not in decided.changes:
            decided.tell(change)
    return UpstreamRequest("/api/chat", _encoder.encode(request)), decided.told()


def embed(call: Call) -> tuple[UpstreamRequest, tuple[Change, ...], EmbeddingParameters]:
    """`/api/embed` for this call, what could not be passed on, and what was asked for. Raises RequestError.

    `truncate` is sent: without it a text that is too long is cut in silence, and the caller gets the vector of another.
    """
    wanted = parameters(call.peek.fields, NativeEmbedding)
    embedded(wanted.input)
    decided = EMBEDDING_TABLE.decide(call)
    request = _EmbedRequest(
        call.model,
        call.peek.fields["input"],
        truncate=bool(wanted.truncate),
        dimensions=wanted.dimensions,
        keep_alive=wanted.keep_alive,
    )
    return UpstreamRequest("/api/embed", _encoder.encode(request)), decided.told(), wanted


def _top_logprobs(wanted: NativeParameters) -> int | None:
    if wanted.top_logprobs is not None and not 0 <= wanted.top_logprobs <= 20:
        raise invalid("`top_logprobs` must be from 0 to 20", "top_logprobs")
    return wanted.top_logprobs if wanted.logprobs else None


def _format(wanted: NativeParameters) -> Raw | None:
    kind = wanted.response_format
    if kind is None or kind.type == "text":
        return None
    schema, where = kind.schema, "response_format.schema"
    if kind.type == "json_schema":
        where = "response_format.json_schema"
        schema = decoded(_schema, kind.json_schema, where).schema
        where += ".schema"
    elif first_byte(schema) == LETTER_N:
        return Raw(b'"json"')
    if first_byte(schema) != BRACE:
        raise invalid(f"`{where}` must be an object", "response_format")
    return schema


def _think(wanted: NativeParameters, call: Call) -> bool | str | None:
    effort = wanted.reasoning_effort
    if effort is None:
        able = "thinking" in call.capabilities
        return True if able and older(call.engine_version, THINKS_BY_ITSELF_SINCE) else None
    if call.capabilities and "thinking" not in call.capabilities:
        return None  # asked not to think, it would refuse; a wish to think has been dropped before
    return _THINKS.get(effort, effort)


def _messages(messages: tuple[Message, ...]) -> list[_NativeMessage]:
    called: dict[str, str] = {}  # tool_call_id -> the function's name, for the tool messages that follow
    return [_message(message, f"messages[{index}]", called) for index, message in enumerate(messages)]


def _message(message: Message, where: str, called: dict[str, str]) -> _NativeMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(f"`{where}.role` must be one of {', '.join(_ROLES)}, not {shown(message.role)}", f"{where}.role")
    content, images = _content(message.content, f"{where}.content")
    return _NativeMessage(
        role,
        content,
        thinking=_thinking(message) if role == "assistant" else None,
        images=images or None,
        tool_calls=_tool_calls(message.tool_calls, f"{where}.tool_calls", called) if role == "assistant" else None,
        tool_name=_tool_name(message, called) if role == "tool" else None,
        tool_call_id=message.tool_call_id if role == "tool" else None,
    )


def _thinking(message: Message) -> str | None:
    if not message.reasoning_content and first_byte(message.reasoning) == QUOTE:
        text: str = decoded(_text, message.reasoning, "messages")
        return text or None
    return message.reasoning_content or None


def _tool_name(message: Message, called: dict[str, str]) -> str | None:
    return called.get(message.tool_call_id or "") or message.name


def _content(content: Raw, where: str) -> tuple[Raw, list[str]]:
    """The text as one JSON string, and the images as bare base64."""
    if first_byte(content) == QUOTE:
        return content, []
    texts: list[str] = []
    images: list[str] = []
    for part in content_parts(content, where):
        if part.type == "image_url":
            images.append(_image(part, where))
        else:
            texts.append(_part_text(part, where))
    return Raw(_encoder.encode("\n".join(texts))), images


def _part_text(part: Part, where: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is not None:
        return text
    if part.type in ("text", "refusal"):
        raise invalid(f"`{where}` has a part of type {part.type} without its text", where)
    kind = ErrorKind.UNSUPPORTED_MODALITIES if part.type in ("input_audio", "video_url") else ErrorKind.INVALID_REQUEST
    raise RequestError(
        kind, f"`{where}` has a part of type {shown(part.type)}, which this engine does not take", param=where
    )


def _image(part: Part, where: str) -> str:
    url: str = decoded(_image_url, part.image_url, f"{where}.image_url").url
    head, comma, data = url.partition(",")
    if head[:5].lower() == "data:" and head[-7:].lower() == ";base64" and comma and data:
        return data
    message = f"`{where}` has an image that is not a `data:…;base64,…` URL; this engine fetches no images"
    raise invalid(message, where)


def _tool_calls(raw: Raw, where: str, called: dict[str, str]) -> list[_Call] | None:
    calls: list[_Call] = []
    given: tuple[_GivenCall, ...] | None = decoded(_calls, raw, where)
    for index, call in enumerate(given or ()):
        name = call.function.name
        if call.id:
            called[call.id] = name
        arguments = call.function.arguments.strip().encode() or b"{}"
        spot = f"{where}[{index}].function.arguments"
        decoded(_object, Raw(arguments), spot)
        calls.append(_Call(_Function(name, Raw(arguments)), call.id or None))
    return calls or None

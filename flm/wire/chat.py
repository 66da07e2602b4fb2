"""What a chat request must look like: the typed view of the fields FLM knows, decoded out of a peeked request.

Decodes only the fields that are there, one by one, so that an error names its field; values that FLM only hands on
stay `Raw`. Unknown fields are nobody's business here. Knows no engine and no policy: bounds are those of the API.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from flm.errors import ErrorKind, RequestError

Raw = msgspec.Raw
NULL = Raw(b"null")
# The first byte of a JSON value tells its type.
QUOTE, BRACKET, BRACE, LETTER_N = b'"[{n'

# Engines hold these counts in 32 bits; the API's own bound of `n` is 128.
Count = Annotated[int, msgspec.Meta(ge=1, le=2_147_483_647)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Message(msgspec.Struct, frozen=True):
    """One message; `content` is a string, an array of parts or null, which `content_parts` looks into."""

    role: str
    content: Raw = NULL
    tool_calls: Raw = NULL
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: Raw = NULL


class Tool(msgspec.Struct, frozen=True):
    """One entry of `tools`; `function` is there when `type` is `function`."""

    type: str = "function"
    function: Raw = NULL


class ResponseFormat(msgspec.Struct, frozen=True):
    type: str
    json_schema: Raw = NULL
    schema: Raw = NULL


class ChatParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a chat request that FLM knows; null counts as absent."""

    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Choices | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Raw] | tuple[Raw, ...] | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | dict[str, Raw] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    user: str | None = None


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Raw = NULL


class _ToolChoice(msgspec.Struct, frozen=True):
    class Function(msgspec.Struct, frozen=True):
        name: str

    type: str
    function: Function


class _ToolName(msgspec.Struct, frozen=True):
    name: str


_Shape = TypeVar("_Shape", bound=msgspec.Struct)
_parts = msgspec.json.Decoder(tuple[Part, ...])
_tool_name = msgspec.json.Decoder(_ToolName)

_MAX_REASON = 200  # characters of what is wrong with a value: some of it repeats the value
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON may raise for bad input."""


def invalid(message: str, param: str) -> RequestError:
    """A 400 that names the field."""
    return RequestError(ErrorKind.INVALID_REQUEST, message, param=param)


@functools.cache
def _decoders(shape: type[msgspec.Struct]) -> dict[str, msgspec.json.Decoder[Any]]:
    return {field.encode_name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(shape)}


@functools.cache
def _required(shape: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(shape) if field.required)


def parameters(fields: Mapping[str, Raw], shape: type[_Shape]) -> _Shape:
    """The known fields of a request, typed. Raises INVALID_REQUEST with `param` for a wrong or missing one."""
    decoders = _decoders(shape)
    values: dict[str, Any] = {}
    for name, raw in fields.items():
        decoder = decoders.get(name)
        if decoder is not None:
            values[name] = decoded(decoder, raw, name)
    for name in _required(shape):
        if name not in values:
            raise invalid(f"`{name}` is missing", name)
    return shape(**values)


def decoded(decoder: msgspec.json.Decoder[Any], raw: Raw, param: str) -> Any:
    """A field's value. Raises INVALID_REQUEST that says where inside the field what is wrong."""
    try:
        return decoder.decode(raw)
    except MALFORMED as error:
        reason = str(error)[:_MAX_REASON].replace("`$", f"`{param}")
        raise invalid(f"`{param}` is not valid: {reason}", param) from None


def first_byte(value: Raw) -> int:
    """The byte that tells a JSON value's type, without copying the value."""
    return memoryview(value)[0]


def content_parts(content: Raw, where: str) -> tuple[Part, ...]:
    """The parts of a message's content: one text part for a string, none for null. Raises INVALID_REQUEST."""
    first = first_byte(content)
    if first == QUOTE:
        return (Part("text", decoded(_text, content, where)),)
    if first == LETTER_N:
        return ()
    if first != BRACKET:
        raise invalid(f"`{where}` must be a string, an array of parts or null", where)
    parts: tuple[Part, ...] = decoded(_parts, content, where)
    return parts


_text = msgspec.json.Decoder(str)
_MODALITIES = {
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "video_url": "video",
    "audio_url": "audio",
    "file": "file",
}


def modalities(messages: Sequence[Message]) -> frozenset[str]:
    """What the messages hold besides text: `image`, `audio`, `video`, `file`, the `name` of who speaks, a `developer`.

    Raises INVALID_REQUEST for malformed parts.
    """
    found = set()
    for index, message in enumerate(messages):
        if message.name and message.role not in ("tool", "function"):
            found.add("name")
        if message.role == "developer":
            found.add("developer")
        if first_byte(message.content) == BRACKET:
            for part in content_parts(message.content, f"messages[{index}].content"):
                if part.type in _MODALITIES:
                    found.add(_MODALITIES[part.type])
    return frozenset(found)


def tool_name(tool: Tool) -> str | None:
    """The name of a function tool; None for another type of tool. Raises INVALID_REQUEST."""
    if tool.type != "function":
        return None
    name: str = decoded(_tool_name, tool.function, "tools").name
    return name


def named_tool(choice: dict[str, Raw]) -> str:
    """The function that a `tool_choice` object names. Raises INVALID_REQUEST for any other object."""
    try:
        named = msgspec.convert(msgspec.json.decode(msgspec.json.encode(choice)), _ToolChoice)
    except MALFORMED:
        named = None
    if named is None or named.type != "function":
        text = '`tool_choice` must be a string or {"type": "function", "function": {"name": …}}'
        raise invalid(text, "tool_choice")
    return named.function.name

"""The rows of the chat table: every parameter of OpenAI's chat API, and the classes of its values that matter.

The list follows the official client (openai-python 3.54, `CompletionCreateParamsBase`); a test demands that it is
whole. Beside it stand the rules that hold for all engines. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from flm.engines.capabilities import Act, Asks, Case, Rule, Rules
from flm.errors import ErrorKind
from flm.wire.chat import LETTER_N, NULL, Tool, first_byte

Raw = msgspec.Raw

_number = msgspec.json.Decoder(float)
_type = msgspec.json.Decoder(dict[str, Any])
_object = msgspec.json.Decoder(dict[str, Raw])
_tools = msgspec.json.Decoder(tuple[Tool, ...])
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
_TOOLS: Final = {"tools": [_TOOL]}
# One red pixel.
_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TEXT_FORMATS: Final = frozenset({"text", "json_object", "json_schema"})


def is_not(*values: Any) -> Asks:
    """Any value but these, which ask for what happens anyway."""
    return lambda raw: msgspec.json.decode(raw) not in values


def equals(value: Any) -> Asks:
    return lambda raw: bool(msgspec.json.decode(raw) == value)


def outside(low: float, high: float) -> Asks:
    return lambda raw: not low <= _number.decode(raw) <= high


def _of_type(*names: str) -> Asks:
    return lambda raw: _type.decode(raw).get("type") in names


def _of_other_type(known: Collection[str]) -> Asks:
    return lambda raw: _type.decode(raw).get("type") not in known


def is_object(raw: Raw) -> bool:
    return memoryview(raw)[0] == ord("{")


def _json_with_schema(raw: Raw) -> bool:
    fields = _object.decode(raw)
    return bytes(fields.get("type", NULL)) == b'"json_object"' and first_byte(fields.get("schema", NULL)) != LETTER_N


def _tools_of_other_type(raw: Raw) -> bool:
    return any(tool.type != "function" for tool in _tools.decode(raw))


def _strict_tools(raw: Raw) -> bool:
    if b'"strict"' not in bytes(raw):
        return False
    return any(
        _type.decode(tool.function).get("strict") is True for tool in _tools.decode(raw) if tool.function != NULL
    )


def empty_stop(raw: Raw) -> bool:
    stop = msgspec.json.decode(raw)
    return "" in stop if isinstance(stop, list) else bool(stop == "")


def without_empty_stops(stop: Raw, _fields: Mapping[str, Raw]) -> dict[str, Any]:
    """A `stop` without its empty texts, which end an answer at once at some engines and are an error at others."""
    texts = msgspec.json.decode(stop)
    return {"stop": [text for text in texts if text != ""] or msgspec.UNSET}  # a lone empty text has none


def _user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]


CHAT_CASES: Final[tuple[Case, ...]] = (
    Case("temperature outside 0..2", "temperature", 3.5, outside(0, 2)),
    Case("temperature", "temperature", 0.5),
    Case("top_p", "top_p", 0.9),
    Case("max_tokens", "max_tokens", 16),
    Case("max_completion_tokens", "max_completion_tokens", 16),
    Case("n > 1", "n", 2, is_not(1)),
    Case("an empty stop", "stop", "", empty_stop),
    Case("stop", "stop", ["END"]),
    Case("seed", "seed", 7),
    Case("presence_penalty", "presence_penalty", 0.5, is_not(0)),
    Case("frequency_penalty", "frequency_penalty", 0.5, is_not(0)),
    Case("logit_bias", "logit_bias", {"50": -100}, is_not({}, [])),
    Case("logprobs", "logprobs", True, equals(True)),
    Case("top_logprobs", "top_logprobs", 2, beside={"logprobs": True}),
    Case("stream_options", "stream_options", {"include_usage": True}, beside={"stream": True}),
    Case("tools of another type", "tools", [{"type": "custom", "custom": {"name": "sh"}}], _tools_of_other_type),
    Case(
        "tools with strict: true",
        "tools",
        [{"type": "function", "function": {**_TOOL["function"], "strict": True}}],
        _strict_tools,
    ),
    Case("tools", "tools", [_TOOL], is_not([])),
    Case("tools: []", "tools", [], equals([])),
    Case('tool_choice "none"', "tool_choice", "none", equals("none"), beside=_TOOLS),
    Case('tool_choice "auto"', "tool_choice", "auto", equals("auto"), beside=_TOOLS),
    Case('tool_choice "required"', "tool_choice", "required", equals("required"), beside=_TOOLS),
    Case(
        "tool_choice of one function",
        "tool_choice",
        {"type": "function", "function": {"name": "get_weather"}},
        is_object,
        beside=_TOOLS,
    ),
    Case("parallel_tool_calls: false", "parallel_tool_calls", False, equals(False), beside=_TOOLS),
    Case("response_format text", "response_format", {"type": "text"}, _of_type("text")),
    Case(
        "response_format json_object with a schema",
        "response_format",
        {"type": "json_object", "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
        _json_with_schema,
    ),
    Case("response_format json_object", "response_format", {"type": "json_object"}, _of_type("json_object")),
    Case(
        "response_format json_schema",
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        _of_type("json_schema"),
    ),
    Case("response_format structural_tag", "response_format", {"type": "structural_tag"}, _of_type("structural_tag")),
    Case(
        "response_format of another type",
        "response_format",
        {"type": "yaml"},
        _of_other_type(TEXT_FORMATS | {"structural_tag"}),
    ),
    Case('reasoning_effort "none"', "reasoning_effort", "none", equals("none")),
    Case('reasoning_effort "minimal"', "reasoning_effort", "minimal", equals("minimal")),
    Case('reasoning_effort "xhigh"', "reasoning_effort", "xhigh", equals("xhigh")),
    Case('reasoning_effort "max"', "reasoning_effort", "max", equals("max")),
    Case("reasoning_effort", "reasoning_effort", "low"),
    Case("verbosity", "verbosity", "low", is_not("medium")),
    Case("modalities with audio", "modalities", ["text", "audio"], is_not(["text"], [])),
    Case("audio", "audio", {"voice": "alloy", "format": "wav"}),
    Case("prediction", "prediction", {"type": "content", "content": "Hello"}),
    Case("web_search_options", "web_search_options", {}),
    Case("functions", "functions", [_TOOL["function"]], is_not([])),
    Case("function_call", "function_call", "auto"),
    Case("user", "user", "somebody", is_not("")),
    Case("safety_identifier", "safety_identifier", "somebody"),
    Case("metadata", "metadata", {"team": "blue"}, is_not({})),
    Case("store: true", "store", True, equals(True)),
    Case("service_tier", "service_tier", "flex", is_not("auto", "default")),
    Case("prompt_cache_key", "prompt_cache_key", "blue"),
    Case("prompt_cache_retention", "prompt_cache_retention", "24h"),
    Case("prompt_cache_options", "prompt_cache_options", {"mode": "explicit"}),
    Case("moderation", "moderation", {"model": "omni-moderation-latest"}),
    Case("image parts", "messages", _user({"type": "image_url", "image_url": {"url": _PIXEL}}), modality="image"),
    Case(
        "name of a message",
        "messages.name",
        "Ada",
        modality="name",
        beside={"messages": [{"role": "user", "name": "Ada", "content": "Who am I?"}]},
    ),
    Case(
        "role developer",
        "messages.role",
        "developer",
        modality="developer",
        beside={"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
    ),
    Case(
        "audio parts",
        "messages",
        _user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        modality="audio",
    ),
    Case(
        "video parts",
        "messages",
        _user({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}),
        modality="video",
    ),
    Case(
        "file parts",
        "messages",
        _user({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}),
        modality="file",
    ),
)


EFFORTS: Final = tuple(case.label for case in CHAT_CASES if case.parameter == "reasoning_effort")


def _refused(what: str, lacking: str) -> tuple[Rule, ...]:
    words = f"this model takes no {what}"
    return (Rule(Act.REFUSE, words, kind=ErrorKind.UNSUPPORTED_MODALITIES, lacking=lacking),)


_FORMATS: Final = "`response_format.type` must be text, json_object or json_schema for this engine"

NO_EMPTY_STOP: Final = (Rule(Act.DROP, "the empty ones; others go", make=without_empty_stops),)
FUNCTIONS_ONLY: Final = (Rule(Act.REFUSE, "only tools of type function are supported by this engine"),)

COMMON: Final[Rules] = {
    "an empty stop": NO_EMPTY_STOP,
    "temperature outside 0..2": (Rule(Act.CLAMP, bounds=(0, 2)),),
    "response_format structural_tag": (Rule(Act.REFUSE, _FORMATS),),
    "response_format of another type": (Rule(Act.REFUSE, _FORMATS),),
    "image parts": _refused("image input", "vision"),
    "audio parts": _refused("audio input", "audio"),
    "video parts": _refused("video input", "video"),
    "file parts": _refused("file input", "file"),
}
"""What holds for every engine."""

_NO_ONE_LOCAL_HAS: Final = (
    "audio",
    "prediction",
    "web_search_options",
    "functions",
    "function_call",
    "verbosity",
    "user",
    "safety_identifier",
    "metadata",
    "store: true",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "moderation",
)
NO_SPEECH: Final = (Rule(Act.REFUSE, 'this engine gives no audio output: ask for `modalities` ["text"] only'),)

LOCAL: Final[Rules] = {
    **COMMON,
    "modalities with audio": NO_SPEECH,
    **{label: (Rule(Act.IGNORED),) for label in _NO_ONE_LOCAL_HAS},
}
"""What holds for engines that speak OpenAI's format and are known to take no notice of what only OpenAI itself has."""

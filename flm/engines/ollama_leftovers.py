"""What stands inside the messages, tools and response format of a request and has no place in Ollama's native API.

The translation (`ollama_request`) takes what it knows; here the rest is named, so that the caller can be told. Objects
are decoded to their keys alone, values stay as they came. null and what is empty ask for nothing: clients send answers
of before back with all their fields.

Does not know what the values mean, nor what is told of a request's own fields (`ollama_table`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from flm.engines.capabilities import MAX_NAME
from flm.wire.chat import BRACKET, LETTER_N, NULL, first_byte

Raw = msgspec.Raw

_EMPTY: Final = frozenset({b"null", b'""', b"[]", b"{}"})
_EVERY: Final = frozenset({"role", "content", "name"})  # the name of who speaks is told by the table
_RESULT: Final = _EVERY | {"tool_call_id"}
_MESSAGE: Final = {
    "assistant": _EVERY | {"tool_calls", "reasoning_content", "reasoning"},
    "tool": _RESULT,
    "function": _RESULT,
}
_PART: Final = {"text": "text", "refusal": "refusal", "image_url": "image_url"}
_CALL: Final = frozenset({"id", "type", "function", "index"})
_CALLED: Final = frozenset({"name", "arguments"})
_TOOL: Final = frozenset({"type", "function"})
_FORMAT: Final = {"json_object": {"type", "schema"}, "json_schema": {"type", "json_schema"}}
_SCHEMA: Final = frozenset({"name", "schema", "strict"})  # it never answers against a schema, strict or not

_object = msgspec.json.Decoder(dict[str, Raw])
_objects = msgspec.json.Decoder(list[dict[str, Raw]] | None)
_text = msgspec.json.Decoder(str)


def leftovers(fields: Mapping[str, Raw]) -> tuple[str, ...]:
    """The names of what does not go, each once: `messages.refusal`, `tools.cache_control`.

    `fields` are those of a request that could be translated: the shapes of what the translation reads are right.
    """
    found = [f"messages.{key}" for key in _of_messages(_objects.decode(fields["messages"]) or ())]
    for tool in _objects.decode(fields.get("tools", NULL)) or ():
        found += [f"tools.{key}" for key in _beside(tool, _TOOL)]
    wanted = fields.get("response_format", NULL)
    if first_byte(wanted) != LETTER_N:
        found += [f"response_format.{key}" for key in _of_format(_object.decode(wanted))]
    return tuple(dict.fromkeys(name[:MAX_NAME] for name in found))


def _beside(given: Mapping[str, Raw], known: frozenset[str] | set[str]) -> Iterator[str]:
    """The keys that are not known and ask for something."""
    return (key for key in given if key not in known and not _is_empty(given[key]))


def _is_empty(value: Raw) -> bool:
    return len(memoryview(value)) <= 4 and bytes(value) in _EMPTY


def _word(value: Raw) -> str:
    return str(_text.decode(value))


def _of_messages(messages: list[dict[str, Raw]] | tuple[()]) -> Iterator[str]:
    names: dict[bytes, bytes] = {}  # of the functions that were called, by the call
    for message in messages:
        role = _word(message["role"])
        yield from _beside(message, _MESSAGE.get(role, _EVERY))
        content = message.get("content", NULL)
        if first_byte(content) == BRACKET:
            for part in _objects.decode(content) or ():
                yield from _of_part(part)
        if role == "assistant":
            yield from _of_answer(message, names)
        elif role in _MESSAGE and (used := names.get(bytes(message.get("tool_call_id", NULL)))) is not None:
            given = message.get("name", NULL)
            if not _is_empty(given) and bytes(given) != used:
                yield "name"


def _of_answer(message: dict[str, Raw], names: dict[bytes, bytes]) -> Iterator[str]:
    thoughts, again = (message.get(key, NULL) for key in ("reasoning_content", "reasoning"))
    if not _is_empty(thoughts) and not _is_empty(again) and bytes(thoughts) != bytes(again):
        yield "reasoning"
    for call in _objects.decode(message.get("tool_calls", NULL)) or ():
        yield from _beside(call, _CALL)
        if bytes(call.get("type", b'"function"')) != b'"function"':
            yield "type"
        function = _object.decode(call["function"])
        yield from _beside(function, _CALLED)
        names[bytes(call.get("id", NULL))] = bytes(function["name"])
    names.pop(b"null", None)


def _of_part(part: dict[str, Raw]) -> Iterator[str]:
    used = _PART.get(_word(part["type"]), "type")
    yield from _beside(part, {"type", used})
    if used == "image_url":
        image = _object.decode(part[used])
        known = {"url", "detail"} if bytes(image.get("detail", NULL)) == b'"auto"' else {"url"}
        yield from _beside(image, known)


def _of_format(wanted: dict[str, Raw]) -> Iterator[str]:
    kind = _word(wanted["type"])
    yield from _beside(wanted, _FORMAT.get(kind, {"type"}))
    if kind == "json_schema":
        yield from _beside(_object.decode(wanted["json_schema"]), _SCHEMA)

"""LM Studio, by its OpenAI-compatible API. Not verified against the product, which cannot be had as a package.

Facts: its documentation (0.3.6 to 0.4.21), its command line tool's sources and its bug tracker (LMS#…). It answers 200
with `{"error": "Unexpected endpoint or method. …"}` to paths it does not have and logs each as an error (LMS#618,
#1323, #2085), so it is asked nothing but its own greeting, and every list is judged by its shape.

The request is passed through. What it refuses is reworded (`developer`, LMS#669; a `tool_choice` of one function,
LMS#670; `max_completion_tokens`, which is not documented) or changed and told (`json_object`, LMS#189: any object is
what an open schema asks for too, so the caller gets what was wanted). It fetches no images. On the way back errors
inside a 200 become errors, the model id is also its `system_fingerprint`, a missing `content` becomes null, and a
stream that never says why it ended (LMS#2339) is an error: a finish_reason is never invented.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from flm.engines import completion_cases, embedding_cases, lmstudio_places
from flm.engines.base import Identifying, Identity, Listing, Probe, UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES, COMMON, EFFORTS, FUNCTIONS_ONLY, LOCAL
from flm.engines.closed import ClosedRoute
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES, NO_DIMENSIONS
from flm.engines.passed import PassedAnswer, PassedStream
from flm.engines.passthrough import PassThrough
from flm.engines.probing import MAX_MODELS, RECOGNISED, body_of, dismissed, foreign, listed, shaped
from flm.engines.requests import as_json_schema, only_named_tool
from flm.errors import UpstreamProtocolError
from flm.snapshot import Model
from flm.wire.chat import BRACKET, MALFORMED, content_parts, decoded, first_byte, invalid
from flm.wire.framing import Event

Raw = msgspec.Raw
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType

GREETING: Final = "/lmstudio-greeting"
NATIVE: Final = "/api/v1/models"  # 0.4.0 and later
OLDER: Final = "/api/v0/models"  # 0.3.6 and later
OPENAI: Final = "/v1/models"
MAX_INSTANCES: Final = 64  # of one model that are listed by their own names
OPEN_OBJECT: Final = {"type": "json_schema", "json_schema": {"name": "object", "schema": {"type": "object"}}}


class _Config(msgspec.Struct, frozen=True):
    context_length: int | None = None


class _Instance(msgspec.Struct, frozen=True):
    id: str
    config: _Config = _Config()


class _Abilities(msgspec.Struct, frozen=True):
    vision: bool = False
    trained_for_tool_use: bool = False
    reasoning: Raw = Raw(b"null")


class _Native(msgspec.Struct, frozen=True):
    """One model of the native list; `variants` are its quantizations, `key@quant`."""

    key: str
    type: str
    loaded_instances: list[_Instance]
    max_context_length: int | None = None
    capabilities: _Abilities | None = None
    variants: list[str] | None = None
    selected_variant: str | None = None


class _NativeList(msgspec.Struct, frozen=True):
    models: list[_Native]


class _Older(msgspec.Struct, frozen=True):
    id: str
    type: str
    state: str
    max_context_length: int | None = None
    loaded_context_length: int | None = None
    capabilities: list[str] | None = None


class _OlderList(msgspec.Struct, frozen=True):
    data: list[_Older]


class _Plain(msgspec.Struct, frozen=True):
    id: str


class _PlainList(msgspec.Struct, frozen=True):
    data: list[_Plain]


class _ImageUrl(msgspec.Struct, frozen=True):
    url: str


_greeting = msgspec.json.Decoder(dict[str, bool])
_native = msgspec.json.Decoder(_NativeList)
_older = msgspec.json.Decoder(_OlderList)
_plain = msgspec.json.Decoder(_PlainList)
_image_url = msgspec.json.Decoder(_ImageUrl)
_messages = msgspec.json.Decoder(list[dict[str, Raw]])
_fields = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')  # a quote inside a string has a backslash: this is a key
_FINGERPRINT = re.compile(rb'"system_fingerprint"\s*:\s*("(?:[^"\\]|\\.)*")')
# Its own API, as far as it only reads or answers.
_ABILITIES = {
    "llm": ("completion",),
    "vlm": ("completion", "vision"),
    "embedding": ("embedding",),
    "embeddings": ("embedding",),
}


def _limit(value: Raw, _given: Mapping[str, Raw]) -> Mapping[str, Any]:
    return {"max_tokens": value, "max_completion_tokens": UNSET}


def _later_limit(_value: Raw, given: Mapping[str, Raw]) -> Mapping[str, Any]:
    return _limit(given["max_completion_tokens"], given)


def _open_object(_value: Raw, _given: Mapping[str, Raw]) -> Mapping[str, Any]:
    return {"response_format": OPEN_OBJECT}


def _as_system(_value: Raw, given: Mapping[str, Raw]) -> Mapping[str, Any]:
    messages = _messages.decode(given["messages"])
    for message in messages:
        if bytes(message.get("role", b"")) == b'"developer"':
            message["role"] = Raw(b'"system"')
    return {"messages": messages}


def _embedded(_value: Raw, given: Mapping[str, Raw]) -> Mapping[str, Any]:
    """Nothing to change; raises INVALID_REQUEST for an image that would have to be fetched."""
    for index, message in enumerate(_messages.decode(given["messages"])):
        content = message.get("content", Raw(b"null"))
        where = f"messages[{index}].content"
        for part in content_parts(content, where) if first_byte(content) == BRACKET else ():
            if part.type != "image_url":
                continue
            if decoded(_image_url, part.image_url, f"{where}.image_url").url[:5].lower() != "data:":
                raise invalid(f"`{where}` has an image that is not a `data:` URL; this engine fetches no images", where)
    return {}


_ONE_ANSWER: Final = (Rule(Act.CHANGE, "one answer is all it gives", value=1),)
_UNDOCUMENTED: Final = (Rule(Act.IGNORED, "not among its documented parameters"),)
_UNTHINKING: Final = (Rule(Act.IGNORED, "where the model is not known to think", lacking="thinking"),)

CHAT_TABLE: Final = Table(
    CHAT_CASES,
    {
        **LOCAL,
        "max_tokens": (Rule(Act.DROP, "which goes in its place", beside="max_completion_tokens", make=_later_limit),),
        "max_completion_tokens": (Rule(Act.REWORD, "as `max_tokens`", at="max_tokens", make=_limit),),
        "n > 1": _ONE_ANSWER,
        **dict.fromkeys(("logprobs", "top_logprobs", "parallel_tool_calls: false"), _UNDOCUMENTED),
        **dict.fromkeys(EFFORTS, _UNTHINKING),
        "tools of another type": FUNCTIONS_ONLY,
        "tool_choice of one function": (
            Rule(Act.REWORD, 'as `tool_choice` "required" with that one tool', make=only_named_tool),
        ),
        "response_format json_object with a schema": (Rule(Act.REWORD, "as `json_schema`", make=as_json_schema),),
        "response_format json_object": (
            Rule(Act.CHANGE, "an open object as `json_schema`", value="json_schema", make=_open_object),
        ),
        "role developer": (Rule(Act.REWORD, "as `system`", at="messages.0.role", make=_as_system),),
        "image parts": (
            *COMMON["image parts"],
            Rule(Act.REWORD, "as they come; only `data:` URLs, others are refused", at="messages", make=_embedded),
        ),
    },
)


class LMStudioStream(PassedStream):
    """A streamed chat answer that says why it ended, under the caller's model id."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes, call)
        self._fingerprint = _Fingerprint(call)
        self._finished = False

    def _pass_chunk(self, event: Event, out: bytearray) -> None:
        self._finished = self._finished or _FINISHED.search(event.data) is not None
        super()._pass_chunk(Event(self._fingerprint.rewritten(event.data), event.fields), out)

    def _last(self) -> bytes:
        if not self._finished:
            words = "the engine ended its stream without saying why; it does so when a prompt is too long for it"
            raise UpstreamProtocolError(words)
        return super()._last()


class LMStudioAnswer(PassedAnswer):
    """A whole chat answer under the caller's model id, with a `content` beside its calls."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes, call)
        self._fingerprint = _Fingerprint(call)

    def _whole(self, body: bytes) -> bytes:
        return super()._whole(with_content(self._fingerprint.rewritten(body)))


class _Fingerprint:
    """`system_fingerprint` repeats the engine's name of the model; the caller gets the caller's own name of it."""

    def __init__(self, call: Call) -> None:
        self._asked = call.model
        self._new = _encoder.encode(call.peek.model)

    def rewritten(self, data: bytes) -> bytes:
        match = _FINGERPRINT.search(data)
        if match is None or _FINGERPRINT.search(data, match.end()) is not None:
            return data
        try:
            told = msgspec.json.decode(match[1], type=str)
        except MALFORMED:
            return data
        same = told.partition("@")[0] == self._asked.partition("@")[0]  # the echo may carry the quantization
        return data[: match.start(1)] + self._new + data[match.end(1) :] if same else data


def with_content(body: bytes) -> bytes:
    """`body` with a `content` of null in each message that has none, as beside tool calls. Other bodies unchanged."""
    if b'"tool_calls"' not in body:
        return body
    try:
        fields = _fields.decode(body)
        choices = _messages.decode(fields["choices"])
        messages = [_fields.decode(choice["message"]) for choice in choices]
    except (*MALFORMED, KeyError):
        return body  # it will be judged by those who read it
    if all("content" in message for message in messages):
        return body
    for choice, message in zip(choices, messages, strict=True):
        choice["message"] = Raw(_encoder.encode({"content": None, **message}))
    fields["choices"] = Raw(_encoder.encode(choices))
    return _encoder.encode(fields)


class LMStudio(PassThrough):
    kind = "lmstudio"
    label = "LM Studio"
    idle_seconds = 4.0  # Node.js closes after 5 s
    chat_table = CHAT_TABLE
    completion_table = Table(
        COMPLETION_CASES,
        {
            **completion_cases.LOCAL,
            "n > 1": _ONE_ANSWER,
            **dict.fromkeys(("suffix", "best_of > 1", "echo: true", "logprobs: 0", "logprobs"), _UNDOCUMENTED),
        },
    )
    embedding_table = Table(EMBEDDING_CASES, {**embedding_cases.LOCAL, "dimensions": NO_DIMENSIONS})
    stream_type = LMStudioStream
    answer_type = LMStudioAnswer
    closed_routes = (
        ClosedRoute("/api/v1/models/load", "loads a model", "POST"),
        ClosedRoute("/api/v1/models/unload", "unloads a model", "POST"),
        ClosedRoute("/api/v1/models/download/*", "downloads a model, or shows a download"),
        ClosedRoute("/models/*", "deletes a model", "DELETE"),
        ClosedRoute("/api/v1/chat", "may run the tools of MCP servers that are set up there", "POST"),
        ClosedRoute("/v1/responses", "may run the tools of MCP servers that are set up there", "POST"),
    )

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        return lmstudio_places.addresses(environment, files)

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return lmstudio_places.settings(system, environment, home)

    def further_settings(self, files: Mapping[str, bytes]) -> tuple[str, ...]:
        return lmstudio_places.further_settings(files)

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return lmstudio_places.binaries(system, environment, home)

    def identify(self) -> Identifying:
        """By its greeting alone, as its own command line tool does; it tells no version."""
        answer = yield Probe(GREETING)
        out = dismissed(answer)
        if out is not None:
            return out
        if answer.status == 200 and body_of(answer, _greeting) == {"lmstudio": True}:
            return Identity(RECOGNISED)
        return foreign(f"{GREETING} answered {answer.status} without LM Studio's greeting")

    def models(self) -> Listing:
        """The newest list it has; before 0.4.0 it logs that it was asked for a newer one."""
        answer = yield Probe(NATIVE)
        native = shaped(answer, _native)
        if native is not None:
            return _bounded([model for entry in native.models[:MAX_MODELS] for model in _of_native(entry)])
        if answer.status in (0, 401, 403):
            listed(answer, _native, NATIVE)  # says why
        older = shaped((yield Probe(OLDER)), _older)
        if older is not None:
            return _bounded([_of_older(entry) for entry in older.data[:MAX_MODELS]])
        plain = listed((yield Probe(OPENAI)), _plain, OPENAI)
        return _bounded([Model(entry.id) for entry in plain.data[:MAX_MODELS]])


def _bounded(models: Sequence[Model]) -> tuple[Model, ...]:
    """The first of each name."""
    named: dict[str, Model] = {}
    for model in models:
        named.setdefault(model.name, model)
    return tuple(named.values())[:MAX_MODELS]


def _of_native(entry: _Native) -> list[Model]:
    """The model by its key, then its further instances (`key:2`) and quantizations (`key@q8_0`) by their own names."""
    able = _ABILITIES.get(entry.type, ())
    if entry.capabilities is not None and able == ("completion",):
        told = entry.capabilities
        thinks = bytes(told.reasoning) not in (b"null", b"false")
        flags = (("tools", told.trained_for_tool_use), ("vision", told.vision), ("thinking", thinks))
        able = ("completion", *(name for name, has in flags if has))
    instances = {instance.id: instance.config.context_length for instance in entry.loaded_instances[:MAX_INSTANCES]}
    first = next(iter(instances), entry.key)
    trained = entry.max_context_length

    def model(name: str, answering: str, *other_names: str) -> Model:
        window = instances.get(answering)
        return Model(name, window, trained, answering in instances, able, other_names=other_names)

    chosen = (entry.selected_variant,) if entry.selected_variant and entry.selected_variant != entry.key else ()
    found = [model(entry.key, entry.key if entry.key in instances else first, *chosen)]
    found += [model(name, name) for name in (*instances, *(entry.variants or ())[:MAX_INSTANCES]) if name not in chosen]
    return found


def _of_older(entry: _Older) -> Model:
    able = _ABILITIES.get(entry.type, ())
    if "completion" in able and "tool_use" in (entry.capabilities or ()):
        able = (able[0], "tools", *able[1:])
    window, loaded = entry.loaded_context_length, entry.state == "loaded"
    return Model(entry.id, window if loaded else None, entry.max_context_length, loaded, able)


DIALECT = LMStudio()

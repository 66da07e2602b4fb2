"""Engines that speak OpenAI's own format: the request passes with another model id, and so does the answer.

What is not looked into is copied byte for byte. A chunk is decoded one level deep; the model id is then spliced into
the bytes as they came, wherever it is certain which bytes those are, else the object is written anew from its raw
values. Changed, besides the id: error events (one, of one shape, and nothing after it), usage nobody asked for,
`[DONE]` (once), line ends (LF), and embeddings an engine did not pack as base64 although it was asked to.

Knows the format, but no engine: what one engine lacks is said by its subclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from flm.config import MAX_ERROR_BODY_BYTES
from flm.engines.base import Call, Change, DialectDefaults, Endpoint, Translation, UpstreamRequest
from flm.engines.capabilities import Table
from flm.engines.chat_cases import CHAT_CASES, COMMON
from flm.engines.refusals import reported, unreadable
from flm.engines.requests import check_tool_choice
from flm.engines.translation import AnswerTranslation, WholeAnswer
from flm.errors import UpstreamProtocolError
from flm.wire.chat import BRACKET, MALFORMED, ChatParameters, first_byte, modalities, parameters
from flm.wire.chunks import DONE
from flm.wire.embeddings import EmbeddingParameters, base64_vector, input_kind
from flm.wire.framing import Comment, Event, EventReader, readable

Raw = msgspec.Raw
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType

_encoder = msgspec.json.Encoder()
_fields = msgspec.json.Decoder(dict[str, Raw])
_items = msgspec.json.Decoder(list[dict[str, Raw]])
_KEY = b'"model":'


class _Top(msgspec.Struct, gc=False):
    """The fields of a chunk or an answer that decide what happens to it."""

    model: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    choices: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


_top = msgspec.json.Decoder(_Top)


class ModelWriter:
    """Puts the caller's model id into the engine's JSON objects."""

    __slots__ = ("_new",)

    def __init__(self, model: str) -> None:
        self._new = _encoder.encode(model)

    def rewritten(self, data: bytes, model: Raw | UnsetType) -> bytes:
        """`data`, a JSON object whose field `model` is `model`, with the caller's id in its place.

        Inside a JSON string every quote has a backslash before it, so the bytes of `"model":` are a key wherever they
        stand. If they stand only once, that key is the one whose value is known, and only its value is replaced.
        """
        if not isinstance(model, UnsetType):
            at = data.find(_KEY)
            if at >= 0 and data.find(_KEY, at + len(_KEY)) < 0:
                start = at + len(_KEY)
                old = bytes(model)
                while data[start : start + 1] in (b" ", b"\n", b"\t", b"\r"):
                    start += 1
                if data.startswith(old, start):
                    return data[:start] + self._new + data[start + len(old) :]
        return self.anew(_fields.decode(data))

    def anew(self, fields: dict[str, Raw]) -> bytes:
        """The object written from its raw values, for the cases where splicing will not do."""
        fields["model"] = Raw(self._new)
        return _encoder.encode(fields)


def _says_something(value: Raw | UnsetType) -> bool:
    return not isinstance(value, UnsetType) and bytes(value) not in (b"null", b"false", b'""', b"{}", b"[]", b"0")


def _is_array(value: Raw | UnsetType) -> bool:
    return not isinstance(value, UnsetType) and first_byte(value) == BRACKET


def _decoded(data: bytes) -> _Top:
    try:
        return _top.decode(readable(data))
    except MALFORMED:
        raise unreadable("a JSON object", data) from None


def _known_lines(fields: bytes) -> bytes:
    """The lines of an event beside its data that mean something to a client, each with its end."""
    lines = readable(fields).split(b"\n")
    return b"".join(line + b"\n" for line in lines if line.startswith((b"event:", b"id:", b"retry:")))


class PassedStream(AnswerTranslation):
    """A streamed chat answer."""

    streaming = True

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        self._include_usage = call.peek.include_usage
        self._model = ModelWriter(call.peek.model)
        self._events = EventReader()
        self._not_a_stream: bytearray | None = None

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        super().head(status, headers)
        kind = headers.get(b"content-type", b"text/event-stream").partition(b";")[0].strip().lower()
        if self._refused is None and kind != b"text/event-stream":
            self._not_a_stream = bytearray()

    def _take(self, data: bytes, out: bytearray) -> None:
        if self._not_a_stream is not None:
            self._not_a_stream += data[: MAX_ERROR_BODY_BYTES - len(self._not_a_stream)]
            return
        self._pass(self._events.feed(data), out)

    def _end(self, out: bytearray) -> None:
        if self._not_a_stream is not None:
            body = bytes(self._not_a_stream)
            top = _decoded(body)
            if not isinstance(top.error, UnsetType) and _says_something(top.error):
                raise reported(bytes(top.error), self.long_field)
            raise UpstreamProtocolError("the engine was asked for a stream and sent one whole answer")
        self._pass(self._events.finish(), out)
        if not self._complete:
            raise UpstreamProtocolError("the engine ended its stream early, before [DONE]")

    def _pass(self, events: list[Event | Comment], out: bytearray) -> None:
        for event in events:
            if isinstance(event, Comment):
                out += (event.line if event.line.isascii() else b":") + b"\n\n"
            elif event.data.startswith(b"[DONE]"):
                out += DONE
                self._complete = True
                return
            elif event.data:
                self._pass_chunk(event, out)
            else:
                self._pass_bare_error(event.fields)

    def _pass_chunk(self, event: Event, out: bytearray) -> None:
        data = event.data
        top = _decoded(data)
        if not isinstance(top.error, UnsetType) and _says_something(top.error):
            raise reported(bytes(top.error), self.long_field)
        unasked = not self._include_usage and _says_something(top.usage)
        if not _is_array(top.choices):
            if not unasked:
                raise unreadable("a chunk of a chat answer", data)
            return
        if unasked:
            if not bytes(top.choices)[1:-1].strip():  # type: ignore[arg-type]  # an array, as seen above
                return
            fields = _fields.decode(data)
            del fields["usage"]
            data = self._model.anew(fields)
        else:
            data = self._model.rewritten(data, top.model)
        if event.fields:
            out += _known_lines(event.fields)
        out += b"data: "
        out += data if b"\n" not in data else data.replace(b"\n", b"\ndata: ")
        out += b"\n\n"

    def _pass_bare_error(self, fields: bytes) -> None:
        """Some engines once wrote `error: {…}` where `data: {"error": {…}}` belongs; other lines say nothing."""
        for line in fields.split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"error":
                top_error = value.strip()
                try:
                    top = _top.decode(readable(top_error))
                except MALFORMED:
                    raise reported(_encoder.encode(top_error.decode()), self.long_field) from None
                inner = top.error if not isinstance(top.error, UnsetType) else top_error
                raise reported(bytes(inner), self.long_field)


class PassedAnswer(WholeAnswer):
    """A whole chat answer, or an embedding answer."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, *, base64: bool) -> None:
        super().__init__(request, changes)
        self._endpoint = call.endpoint
        self._model = ModelWriter(call.peek.model)
        self._base64 = base64
        if call.endpoint is Endpoint.EMBEDDINGS:
            self.long_field = "input"

    def _whole(self, body: bytes) -> bytes:
        top = _decoded(body)
        if not isinstance(top.error, UnsetType) and _says_something(top.error):
            raise reported(bytes(top.error), self.long_field)
        if self._endpoint is Endpoint.CHAT:
            if not _is_array(top.choices):
                raise unreadable("a chat answer", body)
        elif not _is_array(top.data):
            raise unreadable("an embedding answer", body)
        elif self._base64:
            packed = self._packed(body, top.data)
            if packed is not None:
                return packed
        return self._model.rewritten(body, top.model)

    def _packed(self, body: bytes, data: Raw | UnsetType) -> bytes | None:
        """The answer with its vectors as base64; None if the engine has packed them already."""
        try:
            items = _items.decode(data)  # type: ignore[arg-type]  # an array, as its caller has seen
            loose = [item for item in items if first_byte(item["embedding"]) == BRACKET]
            if not loose:
                return None
            for item in loose:
                item["embedding"] = base64_vector(item["embedding"])
        except (*MALFORMED, KeyError):
            raise unreadable("an embedding answer", body) from None
        fields = _fields.decode(body)
        fields["data"] = Raw(_encoder.encode(items))
        return self._model.anew(fields)


class PassThrough(DialectDefaults):
    """The half of a dialect that translates; a subclass adds how its engine is found, and what it lacks."""

    chat_table: Table = Table(CHAT_CASES, COMMON)
    takes_dimensions: bool = True  # whether embeddings are cut to `dimensions`, or it is ignored in silence
    stream_type: type[PassedStream] = PassedStream  # what mends a chat answer on its way back
    answer_type: type[PassedAnswer] = PassedAnswer

    def begin(self, call: Call) -> Translation:
        """See `Dialect.begin`."""
        if call.endpoint is Endpoint.EMBEDDINGS:
            wanted = parameters(call.peek.fields, EmbeddingParameters)
            input_kind(wanted.input)
            ignored = wanted.dimensions is not None and not self.takes_dimensions
            return self.answer_type(
                self._request(call, call.peek.fields),
                (Change("dimensions", "dropped"),) if ignored else (),
                call,
                base64=wanted.encoding_format == "base64",
            )
        chat = parameters(call.peek.fields, ChatParameters)
        check_tool_choice(chat)
        decided = self.chat_table.decide(call, modalities(chat.messages))
        request = self._request(call, decided.fields)
        changes = tuple(decided.changes)
        if call.peek.stream:
            return self.stream_type(request, changes, call)
        return self.answer_type(request, changes, call, base64=False)

    def _request(self, call: Call, fields: Mapping[str, Any]) -> UpstreamRequest:
        return UpstreamRequest(call.endpoint.value, _encoder.encode({**fields, "model": call.model}))

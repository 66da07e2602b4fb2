"""Answers of engines that speak OpenAI's own format, as they go to the client: the bytes that came, mended if need be.

What is not looked into is copied byte for byte. A chunk is decoded one level deep; the model id is then spliced into
the bytes as they came, wherever it is certain which bytes those are, else the object is written anew from its raw
values. Changed, besides the id: error events (one, of one shape, and nothing after it), usage nobody asked for or that
stands in the wrong chunk, what must not change within a stream (`steady`), `[DONE]` (once) and line ends (LF).
`passed_text` and `passed_vectors` do the same for text completions and embeddings.

Knows the format, but no engine, and not how the request was made (`passthrough`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from flm.config import MAX_ERROR_BODY_BYTES
from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.choices import deviates, mended
from flm.engines.refusals import reported, unreadable
from flm.engines.steady import Constants, Roles
from flm.engines.translation import AnswerTranslation, WholeAnswer
from flm.errors import UpstreamProtocolError
from flm.wire.chat import BRACKET, MALFORMED, first_byte
from flm.wire.chunks import DONE
from flm.wire.framing import Comment, Event, EventReader, readable

Raw = msgspec.Raw
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType

_encoder = msgspec.json.Encoder()
fields_of = msgspec.json.Decoder(dict[str, Raw])
items_of = msgspec.json.Decoder(list[dict[str, Raw]])
_KEY = b'"model":'


class Top(msgspec.Struct, gc=False):
    """The fields of a chunk or an answer that decide what happens to it."""

    id: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    choices: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


_top = msgspec.json.Decoder(Top)


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
        return self.anew(fields_of.decode(data))

    def anew(self, fields: dict[str, Raw]) -> bytes:
        """The object written from its raw values, for the cases where splicing will not do."""
        fields["model"] = Raw(self._new)
        return _encoder.encode(fields)


def says_something(value: Raw | UnsetType) -> bool:
    return not isinstance(value, UnsetType) and bytes(value) not in (b"null", b"false", b'""', b"{}", b"[]", b"0")


def is_array(value: Raw | UnsetType) -> bool:
    return not isinstance(value, UnsetType) and first_byte(value) == BRACKET


def is_empty(array: Raw | UnsetType) -> bool:
    return not bytes(array)[1:-1].strip()  # type: ignore[arg-type]  # an array, as its caller has seen


def _decoded(data: bytes) -> Top:
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
        self._constants = Constants()
        self._roles = Roles()
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
            if not isinstance(top.error, UnsetType) and says_something(top.error):
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
                out += self._last() + DONE
                self._complete = True
                return
            elif event.data:
                self._pass_chunk(event, out)
            else:
                self._pass_bare_error(event.fields)

    def _pass_chunk(self, event: Event, out: bytearray) -> None:
        data = event.data
        top = _decoded(data)
        if not isinstance(top.error, UnsetType) and says_something(top.error):
            raise reported(bytes(top.error), self.long_field)
        unasked = not self._include_usage and says_something(top.usage)
        if not is_array(top.choices):
            if not unasked:
                raise unreadable("a chunk of an answer", data)
            return
        if unasked and is_empty(top.choices):
            return
        fields = self._steady(data, top, self._mended(data, top, unasked=unasked))
        data = self._model.rewritten(data, top.model) if fields is None else self._model.anew(fields)
        if event.fields:
            out += _known_lines(event.fields)
        out += b"data: "
        out += data if b"\n" not in data else data.replace(b"\n", b"\ndata: ")
        out += b"\n\n"

    def _mended(self, data: bytes, top: Top, *, unasked: bool) -> dict[str, Raw] | None:
        """The fields of a chunk that cannot go as it came, else None. `unasked`: it has usage that nobody asked for."""
        choices = mended(top.choices) if deviates(data) else None  # type: ignore[arg-type]  # an array
        if choices is None and not unasked:
            return None
        fields = fields_of.decode(data)
        if choices is not None:
            fields["choices"] = choices
        if unasked:
            del fields["usage"]
        return fields

    def _steady(self, data: bytes, top: Top, fields: dict[str, Raw] | None) -> dict[str, Raw] | None:
        """`fields`, or those of `data`, with what must not change within a stream; None if all is as it must be."""
        choices: Raw = fields["choices"] if fields is not None else top.choices  # type: ignore[assignment]  # an array
        mended_choices = self._roles.mended(data, choices)
        wrong = self._constants.differing(top.id, top.created)
        if mended_choices is None and wrong is None:
            return fields
        fields = fields_of.decode(data) if fields is None else fields
        if mended_choices is not None:
            fields["choices"] = mended_choices
        return {**fields, **(wrong or {})}

    def _last(self) -> bytes:
        """What belongs between the last chunk and `[DONE]`."""
        return b""

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
    """A whole chat answer."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        self._model = ModelWriter(call.peek.model)

    def _whole(self, body: bytes) -> bytes:
        top = _decoded(body)
        if not isinstance(top.error, UnsetType) and says_something(top.error):
            raise reported(bytes(top.error), self.long_field)
        fields = self._mended(body, top)
        return self._model.rewritten(body, top.model) if fields is None else self._model.anew(fields)

    def _mended(self, body: bytes, top: Top) -> dict[str, Raw] | None:
        """The fields of an answer that cannot go as it came, else None. Raises RequestError if it is no answer."""
        if not is_array(top.choices):
            raise unreadable("a chat answer", body)
        choices = mended(top.choices) if deviates(body) else None  # type: ignore[arg-type]  # an array
        return None if choices is None else {**fields_of.decode(body), "choices": choices}

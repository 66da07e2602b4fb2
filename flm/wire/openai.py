"""The OpenAI wire format, as far as FLM must look into it: the request peek and the shapes FLM itself writes.

A request is decoded once, into `Raw` fields: what is not looked into is never parsed, only copied. Everything here
is bytes in, bytes out; it knows no engine, no socket and no clock.
"""

from __future__ import annotations

import msgspec

from flm._native import json_values
from flm.errors import ErrorKind, RequestError

Raw = msgspec.Raw


class Peek(msgspec.Struct, frozen=True):
    """One request body, decoded one level deep. `model` as the caller wrote it; `fields` holds every field unparsed."""

    model: str
    stream: bool
    include_usage: bool
    fields: dict[str, Raw]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_fields = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_flag = msgspec.json.Decoder(bool | None)
_stream_options = msgspec.json.Decoder(_StreamOptions | None)
_encoder = msgspec.json.Encoder()


def check_values(body: bytes, most: int) -> None:
    """Refuse a body of more than `most` JSON values: each costs time in which nobody else is served.

    Raises RequestError PAYLOAD_TOO_LARGE. A body of `most` bytes or less holds no more, and is not looked at.
    """
    if len(body) > most and json_values(body, most) > most:
        message = f"the request body holds more than {most} JSON values, which is more than FLM takes; split it"
        raise RequestError(ErrorKind.PAYLOAD_TOO_LARGE, message)


def peek(body: bytes) -> Peek:
    """Look at a request body once.

    Raises RequestError: INVALID_REQUEST for anything that is not a JSON object or has a wrong-typed `stream` or
    `stream_options`; INVALID_MODEL (param `model`) for a missing, empty or non-string `model`.
    """
    try:
        if not body.isascii():
            body.decode()  # a value that is only copied is not checked by the JSON decoder
        fields = _fields.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(ErrorKind.INVALID_REQUEST, f"the request body is not a JSON object: {error}") from None
    return Peek(_model(fields), _stream(fields), _include_usage(fields), fields)


def _model(fields: dict[str, Raw]) -> str:
    raw = fields.get("model")
    try:
        model = "" if raw is None else _text.decode(raw)
    except msgspec.DecodeError:
        raise RequestError(ErrorKind.INVALID_MODEL, "`model` must be a string", param="model") from None
    if not model:
        raise RequestError(ErrorKind.INVALID_MODEL, "the request names no `model`", param="model")
    return model


def _stream(fields: dict[str, Raw]) -> bool:
    raw = fields.get("stream")
    if raw is None:
        return False
    try:
        return bool(_flag.decode(raw))
    except msgspec.DecodeError:
        raise RequestError(ErrorKind.INVALID_REQUEST, "`stream` must be true or false", param="stream") from None


def _include_usage(fields: dict[str, Raw]) -> bool:
    raw = fields.get("stream_options")
    if raw is None:
        return False
    try:
        options = _stream_options.decode(raw)
    except msgspec.DecodeError as error:
        message = f"`stream_options` is not valid: {error}"
        raise RequestError(ErrorKind.INVALID_REQUEST, message, param="stream_options") from None
    return bool(options and options.include_usage)


def with_model(fields: dict[str, Raw], model: str) -> bytes:
    """The request body with another model id; all other values are copied byte for byte."""
    return _encoder.encode({**fields, "model": model})

"""What an engine says when it refuses or fails, brought into the one shape FLM answers with.

Engines wrap the same few facts in different paper: `{"error": {…}}` with a number or a name as code, `{"error":
"text"}`, that text being JSON again or a printed Go map, `{"object": "error", …}`, or plain text. This module unwraps
them and knows by their words the refusals clients act upon: a prompt that is too long, an unknown model, an image for
a model that takes none.

Does not know which engine spoke: the words are looked for in all of them.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from flm.errors import ErrorKind, RequestError, UpstreamProtocolError, engine_refusal
from flm.wire.chat import MALFORMED

MAX_MESSAGE: Final = 2_000  # characters of an engine's message that are passed on; more is a stack trace
_MAX_PARAM: Final = 200  # characters of the name of a field; a longer one is none
_MAX_LOOKED_AT: Final = 4 * MAX_MESSAGE  # characters of a text in which an error is looked for


class Reported(msgspec.Struct, frozen=True):
    """An engine's error, unwrapped. `code` is a number (a status, mostly) or a name."""

    message: str
    type: str = ""
    code: int | str | None = None
    param: str | None = None


class _Object(msgspec.Struct, frozen=True):
    message: str
    type: str | None = None
    code: int | str | None = None
    param: str | None = None


class _Wrapped(msgspec.Struct, frozen=True):
    error: msgspec.Raw = msgspec.Raw(b"null")
    message: str | None = None
    detail: str | None = None


_wrapped = msgspec.json.Decoder(_Wrapped)
_object = msgspec.json.Decoder(_Object)
_text = msgspec.json.Decoder(str)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch  # what is taken for a code of an engine's
_STATUS = re.compile(r"\d{3}(?!\d)")

_TOO_LONG = (
    "exceeds the available context size",
    "exceed_context_size_error",
    "maximum context length",
    "exceeds the context length",
    "is too large to process",
    "is greater than the context length",
    "Context size has been exceeded",
    "is loaded with context length of only",
)
_NO_SUCH_INPUT = (
    "image input is not supported",
    "audio input is not supported",
    "does not support multimodal",
    "is not a multimodal model",
    "At most 0 ",  # "… audio(s) may be provided in one prompt", vLLM
)
_LACKS = {
    "does not support tools": "tools",
    "does not support thinking": "reasoning_effort",
    "is not supported for this model": "reasoning_effort",
    "does not support chat": "model",
    "does not support generate": "model",
    "does not support embeddings": "model",
    "does not support completions": "model",
    "does not support insert": "suffix",
    "suffix is only supported": "suffix",
    "does not support Matryoshka embeddings": "dimensions",
    "requires --enable-auto-tool-choice": "tools",
    "requires --tool-call-parser": "tool_choice",
}
# The caller's mistakes that are answered 500: llama-server (tools and calls of another type or without a name,
# arguments that are no JSON), alone and inside Ollama; Ollama 0.11.4 and 0.24.0 (the last).
_MISTAKES = {
    "Failed to parse tools:": "tools",
    "Failed to parse messages:": "messages",
    "Failed to parse tool call arguments": "messages",
    "invalid JSON schema in format": "response_format",
}


def refusal(status: int, body: bytes, long_field: str) -> RequestError:
    """The error for an answer with `status` >= 400. `long_field` is the request's field that holds the long text."""
    return _known(status, _unwrap(body), long_field)


def reported(error: bytes, long_field: str) -> RequestError:
    """The error for the value of `error` in an answer whose status was 200; its own code, if any, counts as status."""
    found = _inner(error) or Reported("the engine reported an error without saying which")
    status = found.code if isinstance(found.code, int) and 400 <= found.code <= 599 else 500
    return _known(status, found, long_field)


def _known(status: int, found: Reported, long_field: str) -> RequestError:
    message = found.message.strip()[:MAX_MESSAGE] or f"the engine answered {status} without a reason"
    words = f"{found.type} {message}"
    if status != 401 and any(text in words for text in _TOO_LONG):
        return engine_refusal(400, message, param=long_field, code="context_length_exceeded")
    if any(text in message for text in _NO_SUCH_INPUT):
        return RequestError(ErrorKind.UNSUPPORTED_MODALITIES, message, param="messages")
    if status in (400, 501):
        for text, param in _LACKS.items():
            if text in message:
                return RequestError(ErrorKind.UNSUPPORTED_PARAMETER, message, param=param)
    for text, param in _MISTAKES.items():
        if status == 500 and message.startswith(text):
            return engine_refusal(400, message, param=param)
    named = found.code if isinstance(found.code, str) and _NAME(found.code) and not found.code.isdigit() else None
    if status == 404:
        about_model = "model" in message.lower()
        named = named or ("model_not_found" if about_model else "not_found")
        return engine_refusal(status, message, param=found.param or ("model" if about_model else None), code=named)
    return engine_refusal(status, message, param=found.param, code=named)


def _unwrap(body: bytes) -> Reported:
    """The error inside a whole answer's body."""
    try:
        outer = _wrapped.decode(body)
    except MALFORMED:
        return Reported(_plain(body))
    if outer.message is not None:
        return _object_error(body) or Reported(outer.message)
    return _inner(bytes(outer.error)) or Reported(outer.detail or "")


def _inner(error: bytes) -> Reported | None:
    """The error in the value of a field `error`: an object, or a text that may hold another answer."""
    found = _object_error(error)
    if found is not None:
        return found
    try:
        text = _text.decode(error)
    except MALFORMED:
        return None
    if text.startswith("{"):
        nested = _nested(text.encode())
        if nested is not None:
            return nested
    return _printed(text[:_MAX_LOOKED_AT]) or Reported(text)


def _printed(text: str) -> Reported | None:
    """An error printed by Go as a map, `map[code:500 message:… type:…]`, which has its keys in order.

    Each mark is looked for once: a text may be made so that a pattern would try every combination of them.
    """
    _, found, inside = text.partition("map[")
    _, coded, rest = inside.partition("code:")
    _, told, message = rest.partition("message:")
    status = _STATUS.match(rest)
    if not (found and coded and told) or status is None:
        return None
    message = message[: message.rfind("]")] if "]" in message else message
    message, _, kind = message.rpartition(" type:") if " type:" in message else (message, "", "")
    return Reported(message, kind if kind.isidentifier() else "", int(status[0]))


def _nested(text: bytes) -> Reported | None:
    try:
        return _object_error(bytes(_wrapped.decode(text).error)) or _object_error(text)
    except MALFORMED:
        return None


def _object_error(value: bytes) -> Reported | None:
    try:
        found = _object.decode(value)
    except MALFORMED:
        return None
    param = found.param.removeprefix("body.") if found.param else None  # where a validator found it, vLLM
    if param and (len(param) > _MAX_PARAM or not param.isprintable()):
        param = None
    return Reported(found.message, found.type or "", found.code, param)


def _plain(body: bytes) -> str:
    """The first line of a body that is not JSON; a page of HTML says nothing a client could use."""
    text = body[:MAX_MESSAGE].decode(errors="replace").strip()
    if not text or text.startswith("<"):
        return ""
    return "".join(character for character in text.splitlines()[0] if character.isprintable())


def unreadable(what: str, data: bytes) -> UpstreamProtocolError:
    """The engine sent something else than `what`. Its bytes are an answer, so they are counted, not quoted."""
    return UpstreamProtocolError(f"the engine sent {len(data)} bytes that are not {what}")

"""Two readings of one answer that must agree: what a real engine put on the wire, and what the official client makes
of FLM's bytes.

The first is written here as plainly as it can be, from the recording alone, and knows nothing of FLM. The second is
the OpenAI SDK itself, with a transport that hands it FLM's bytes: its own stream decoder, types and exceptions.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
import msgspec
import openai

from flm.engines.call import Endpoint
from flm.errors import ErrorKind, RequestError, envelope, error_event
from tests.support.translating import Outcome

REASONING = ("reasoning_content", "reasoning", "thinking")


class Choice(msgspec.Struct):
    """One choice of an answer. `calls`: name and arguments, parsed. `tokens`: with their log probability."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = []
    finish: str | None = None
    tokens: list[tuple[str, float]] = []


class Reading(msgspec.Struct):
    """What was said. `failed`: None, or how it ended: the status of a refusal, 0 in the middle of a stream."""

    choices: dict[int, Choice] = {}
    usage: tuple[int, ...] | None = None
    vectors: list[list[float]] = []
    failed: int | None = None
    message: str = ""


def _choice(found: Reading, index: int) -> Choice:
    return found.choices.setdefault(index, Choice())


def _usage(value: dict[str, Any] | None) -> tuple[int, ...] | None:
    if not value:
        return None
    return tuple(value.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))


# --- what the engine said ---------------------------------------------------------------------------------------------


def _objects(body: bytes) -> Iterator[dict[str, Any] | None]:
    """The objects of a stream of events or lines; None for `[DONE]`. An object cut off in the middle ends it."""
    for line in body.decode().replace("\r\n", "\n").split("\n"):
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            yield None
        elif text and not text.startswith(("event:", ":")):
            try:
                yield json.loads(text)
            except ValueError:
                return


class _Fragments:
    """Tool calls as they come in pieces, by choice and index."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], list[str]] = {}

    def add(self, choice: int, pieces: Iterable[dict[str, Any]]) -> None:
        for piece in pieces:
            entry = self._found.setdefault((choice, piece["index"]), ["", ""])
            function = piece.get("function") or {}
            entry[0] += function.get("name") or ""
            entry[1] += function.get("arguments") or ""

    def settle(self, found: Reading) -> None:
        for (choice, _), (name, arguments) in self._found.items():
            _choice(found, choice).calls.append((name, _loaded(arguments)))


def _loaded(arguments: Any) -> Any:
    """The arguments of a call: an object, or JSON in a text, which the model may have cut off."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _said(message: dict[str, Any], choice: Choice) -> None:
    choice.text += message.get("content") or ""
    choice.reasoning += next((message[name] for name in REASONING if message.get(name)), "")


def _chunk(chunk: dict[str, Any], found: Reading, fragments: _Fragments) -> None:
    """One object of OpenAI's format: a chunk or a whole answer, of chat or of completions."""
    found.usage = _usage(chunk.get("usage")) or found.usage
    for one in chunk.get("choices") or []:
        choice = _choice(found, one["index"])
        message = one.get("delta") or one.get("message") or {"content": one.get("text")}
        _said(message, choice)
        calls = message.get("tool_calls") or []
        if "delta" in one:
            fragments.add(one["index"], calls)
        else:
            choice.calls += [(call["function"]["name"], _loaded(call["function"]["arguments"])) for call in calls]
        choice.tokens += [
            (token["token"], token["logprob"]) for token in (one.get("logprobs") or {}).get("content") or []
        ]
        choice.finish = one.get("finish_reason") or choice.finish


def _native(line: dict[str, Any], found: Reading) -> None:
    """One object of a native format: `message` in chat, `response` where a text is continued."""
    choice = _choice(found, 0)
    message = line.get("message") or {"content": line.get("response"), "thinking": line.get("thinking")}
    _said(message, choice)
    calls = message.get("tool_calls") or []
    choice.calls += [(call["function"]["name"], _loaded(call["function"]["arguments"])) for call in calls]
    choice.tokens += [(token["token"], token["logprob"]) for token in line.get("logprobs") or []]
    if line.get("done"):
        reason = line.get("done_reason")
        choice.finish = "length" if reason == "length" else "tool_calls" if choice.calls else "stop"
        found.usage = (line.get("prompt_eval_count", 0), line.get("eval_count", 0))


def engine_reading(status: int, body: bytes, *, stream: bool, endpoint: Endpoint, include_usage: bool) -> Reading:
    """What the engine's answer says, read from the recording alone."""
    if status >= 400:
        return Reading(failed=_refused(status, body), message=body.decode(errors="replace"))
    if endpoint is Endpoint.EMBEDDINGS:
        return _embedded(json.loads(body))
    found, fragments, ended = Reading(), _Fragments(), False
    for one in _objects(body) if stream else [json.loads(body)]:
        if one is None:
            ended = True
            break
        if one.get("error"):
            found.failed = _refused(_code(one["error"]), body)
            found.message = body.decode(errors="replace")
            break
        if "choices" in one:
            _chunk(one, found, fragments)
            ended = not stream
        else:
            _native(one, found)
            ended = bool(one.get("done"))
    fragments.settle(found)
    if found.failed is None and not ended:
        found.failed = 502
    if found.failed is not None and (not stream or not any(one != Choice() for one in found.choices.values())):
        return Reading(failed=found.failed, message=found.message)
    if found.failed is not None:
        found.failed, found.usage = 0, None
    elif not include_usage:
        found.usage = None
    return found


def _code(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _refused(status: int, body: bytes) -> int:
    """The status a client must see for an engine's error."""
    words = body.decode(errors="replace")
    if status != 401 and ("exceeds the available context" in words or "maximum context length" in words):
        return 400
    if status != 401 and ("too large to process" in words or "greater than the context length" in words):
        return 400
    if "input is not supported" in words or "multimodal" in words:
        return 422
    if status == 501 and "does not support embeddings" in words:
        return 400
    return {401: 502, 403: 502, 407: 502, 429: 503, 503: 503, 501: 501}.get(status, 502 if status >= 500 else status)


def _embedded(answer: dict[str, Any]) -> Reading:
    if "embeddings" in answer:
        return Reading(vectors=answer["embeddings"] or [], usage=(answer.get("prompt_eval_count", 0), 0))
    vectors = [_vector(item["embedding"]) for item in answer["data"]]
    return Reading(vectors=vectors, usage=_usage(answer.get("usage")))


def _vector(value: str | list[float]) -> list[float]:
    if isinstance(value, list):
        return value
    packed = base64.b64decode(value)
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


# --- what the client makes of it --------------------------------------------------------------------------------------

_CLASSES: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


def answered(outcome: Outcome, *, stream: bool) -> httpx2.Response:
    """The HTTP answer a client gets for what a translation gave out."""
    headers = {"content-type": "text/event-stream" if stream else "application/json", "x-request-id": "r-1"}
    if outcome.error is None:
        return httpx2.Response(200, headers=headers, content=outcome.data)
    status, code, message, param, kind = outcome.error
    error = RequestError(ErrorKind.ENGINE_ERROR, message, status=status, code=code, param=param, type=kind)
    if outcome.data:
        return httpx2.Response(200, headers=headers, content=outcome.data + error_event(error, "r-1"))
    headers["content-type"] = "application/json"
    return httpx2.Response(status, headers=headers, content=envelope(error, "r-1"))


def client_reading(outcome: Outcome, *, stream: bool, endpoint: Endpoint, floats: bool) -> Reading:
    """What a program that uses the official client reads from what FLM gave out."""
    transport = httpx2.MockTransport(lambda request: answered(outcome, stream=stream))
    found = Reading()
    with (
        openai.DefaultHttpxClient(transport=transport) as http,
        openai.OpenAI(api_key="k", base_url="http://flm/v1", http_client=http, max_retries=0) as client,
    ):
        try:
            _read(client, found, stream=stream, endpoint=endpoint, floats=floats)
        except openai.APIStatusError as error:
            _check_class(error)
            found.failed, found.message = error.status_code, _message(error)
        except openai.APIError as error:
            found.failed, found.message = 0, _message(error)
    return found


def _check_class(error: openai.APIStatusError) -> None:
    wanted = openai.InternalServerError if error.status_code >= 500 else openai.APIStatusError
    assert type(error) is _CLASSES.get(error.status_code, wanted), (type(error), error.status_code)
    assert error.request_id == "r-1"


def _message(error: openai.APIError) -> str:
    assert isinstance(error.body, dict)
    assert error.code
    return str(error.body["message"])


def _read(client: openai.OpenAI, found: Reading, *, stream: bool, endpoint: Endpoint, floats: bool) -> None:
    if endpoint is Endpoint.EMBEDDINGS:
        answer = client.embeddings.create(model="m", input="a", **({"encoding_format": "float"} if floats else {}))
        found.vectors = [item.embedding for item in answer.data]
        found.usage = _usage(answer.usage.model_dump())
        return
    ask: Any = client.chat.completions.create if endpoint is Endpoint.CHAT else client.completions.create
    prompt: dict[str, Any] = {"messages": []} if endpoint is Endpoint.CHAT else {"prompt": ""}
    fragments = _Fragments()
    try:
        answer = ask(model="m", stream=stream, **prompt)
        for chunk in answer if stream else [answer]:
            _chunk(chunk.model_dump(), found, fragments)
    finally:
        fragments.settle(found)

"""The OpenAI dialect of the demo engine: chat, embeddings and models as the public API documents them.

Pure. Also the frame of other engines that speak nearly the same (`llamacpp`): they override how things are written.
Routes: POST /v1/chat/completions, /v1/completions and /v1/embeddings, GET /v1/models, /v1/models/{id} and /health.
Source: OpenAI's API reference and its Python client.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from flm.demo import completions, script
from flm.demo.chat import Asked, Call, Message, Tool, Turn, oversized, turn
from flm.demo.completions import StreamOptions, TextBody
from flm.demo.dialect import Answer, Request, status_line
from flm.demo.directives import NONE, Directives, find

JSON = b"application/json"
DONE = b"data: [DONE]\n\n"
MODELS_CREATED = 1_700_000_000  # a model list that never changes, as that of a hosted service
MAX_CHOICES = 4
MAX_DIMENSIONS = 4096


class ChatBody(msgspec.Struct):
    """A request to /v1/chat/completions, as far as the demo engine looks at it. Unknown fields are ignored."""

    messages: list[Message]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class EmbeddingBody(msgspec.Struct):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


Handler = Callable[[Request], Answer]

encode = msgspec.json.Encoder().encode
_chat = msgspec.json.Decoder(ChatBody)
_text = msgspec.json.Decoder(TextBody)
_embedding = msgspec.json.Decoder(EmbeddingBody)


class RefusalError(Exception):
    """The request is answered with this error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class OpenAI:
    """A server that speaks plain OpenAI. `models`: the names it serves, the first being the default."""

    name = "openai"
    default_models: tuple[str, ...] = ("demo",)

    def __init__(self, models: tuple[str, ...] = (), version: str | None = None, api_key: str | None = None) -> None:
        self.models = models or self.default_models
        self.version = version
        self._api_key = api_key
        self._routes: Mapping[tuple[str, str], Handler] = self.routes()

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            ("POST", "/v1/chat/completions"): self.chat,
            ("POST", "/v1/completions"): self.complete,
            ("POST", "/v1/embeddings"): self.embeddings,
            ("GET", "/v1/models"): self.list_models,
            ("GET", "/health"): self.health,
        }

    public_paths = frozenset({"/health"})

    def answer(self, request: Request) -> Answer:
        handler = self._routes.get((request.method, request.path)) or self.fallback(request)
        try:
            if self._api_key is not None and request.path not in self.public_paths:
                self._authorize(request)
            return handler(request)
        except RefusalError as refusal:
            return self.error(refusal.status, refusal.message)

    def _authorize(self, request: Request) -> None:
        if request.headers.get(b"authorization") != b"Bearer " + (self._api_key or "").encode():
            raise RefusalError(401, self.wrong_key)

    wrong_key = "Incorrect API key provided."

    def fallback(self, request: Request) -> Handler:
        """What answers a path with no route of its own."""
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            return self.one_model
        return self.not_found

    def not_found(self, request: Request) -> Answer:
        raise RefusalError(404, f"Invalid URL ({request.method} {request.path})")

    # --- what an answer looks like around its content

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        framing = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
        extra = b"".join(b"%s: %s\r\n" % header for header in answer.headers)
        end = b"\r\n" if keep_alive else b"Connection: close\r\n\r\n"
        return b"%sServer: flm-demo\r\nContent-Type: %s\r\n%s%s%s" % (
            status_line(answer.status),
            answer.content_type,
            extra,
            framing,
            end,
        )

    def error(self, status: int, message: str) -> Answer:
        return Answer(status, JSON, encode({"error": self.error_object(status, message)}))

    def error_object(self, status: int, message: str) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
        code = {401: "invalid_api_key", 404: "model_not_found"}.get(status)
        kind = kind if status < 500 else "server_error"
        return {"message": message, "type": kind, "param": None, "code": code}

    def identifier(self, request: Request) -> str:
        return f"chatcmpl-demo{request.serial:08d}"

    # --- chat

    def chat(self, request: Request) -> Answer:
        body = self.parse_chat(request.body)
        said = turn(self.asked(body), request.preset)
        identity = (self.identifier(request), int(request.created))
        choices = min(body.n or 1, MAX_CHOICES)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            pieces = self.stream(said, identity, choices, usage)
            return Answer(200, self.stream_type, pieces, directives=said.directives, streamed=True)
        large = oversized(said.directives)
        return Answer(200, self.json_type, large or self.whole(said, identity, choices), directives=said.directives)

    json_type = JSON
    stream_type = b"text/event-stream; charset=utf-8"

    def parse_chat(self, body: bytes) -> ChatBody:
        try:
            return _chat.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"We could not parse the JSON body of your request: {error}") from None

    def asked(self, body: ChatBody) -> Asked:
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        return Asked(
            model=self.model_name(body.model),
            messages=body.messages,
            max_tokens=limit,
            stop=stop,
            tools=() if body.tool_choice == "none" else body.tools or (),
            tool=self.named_tool(body.tool_choice),
            schema=schema_of(body.response_format),
        )

    def model_name(self, model: str | None) -> str:
        if model is None:
            raise RefusalError(400, "you must provide a model parameter")
        if model not in self.models and not model.startswith("demo:"):
            raise RefusalError(404, f"The model `{model}` does not exist or you do not have access to it.")
        return model

    def named_tool(self, choice: str | dict[str, Any] | None) -> str | None:
        return str(choice.get("function", {}).get("name")) if isinstance(choice, dict) else None

    def stream(self, said: Turn, identity: tuple[str, int], choices: int, usage: bool) -> Iterator[bytes]:
        """The events of a stream, one per chunk on the wire."""
        before, after = self.chunk_frame(said.model, identity, usage)
        directives = said.directives
        for index in range(choices):
            yield b"%s%s%s" % (before, self.choice(index, b'{"role":"assistant","content":""}'), after)
        for delta in deltas(said, self.reasoning_field, self.call_deltas):
            if delta is None:
                yield self.error_event(directives)
                return
            for index in range(choices):
                yield b"%s%s%s" % (before, self.choice(index, delta), after)
        if directives.quiet:
            return
        for index in range(choices):
            yield b"%s%s%s" % (before, self.choice(index, b"{}", said.finish), after)
        if usage:
            yield self.usage_event(said, (before, after), choices)
        yield DONE

    reasoning_field = b"reasoning_content"

    def chunk_frame(self, model: str, identity: tuple[str, int], usage: bool) -> tuple[bytes, bytes]:
        """The bytes before and after the one choice of a chunk; with `usage` every chunk has the field, as null."""
        name, created = identity
        opening = (
            b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"system_fingerprint":"fp_demo",'
        )
        head = opening % (encode(name), created, encode(model))
        return head + b'"choices":[', b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def choice(self, index: int, delta: bytes, finish: str | None = None) -> bytes:
        return b'{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}' % (index, delta, encode(finish))

    def call_deltas(self, calls: Sequence[Call]) -> Iterator[bytes]:
        """A call in three deltas: its name, then its arguments in two halves."""
        for index, call in enumerate(calls):
            arguments = encode(call.arguments).decode()
            half = len(arguments) // 2
            function = {"name": call.name, "arguments": ""}
            opening = {"index": index, "id": f"call_demo{index:04d}", "type": "function", "function": function}
            yield encode({"tool_calls": [opening]})
            for part in (arguments[:half], arguments[half:]):
                yield encode({"tool_calls": [{"index": index, "function": {"arguments": part}}]})

    def error_event(self, directives: Directives) -> bytes:
        return b"data: %s\n\n" % encode({"error": self.error_object(500, "The demo engine fails as it was told to.")})

    def usage_event(self, said: Turn, frame: tuple[bytes, bytes], choices: int) -> bytes:
        return b'%s],"usage":%s}\n\n' % (frame[0], encode(self.usage(said, choices)))

    def usage(self, said: Turn, choices: int) -> dict[str, Any]:
        spoken = said.completion_tokens * choices
        return {
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": spoken,
            "total_tokens": said.prompt_tokens + spoken,
        }

    def message(self, said: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if said.calls else said.text(), "refusal": None}
        if said.thinking:
            message[self.reasoning_field.decode()] = "".join(said.thinking)
        if said.calls:
            message["tool_calls"] = [whole_call(index, call) for index, call in enumerate(said.calls)]
        return message

    def whole(self, said: Turn, identity: tuple[str, int], choices: int) -> bytes:
        message = self.message(said)
        return encode(
            {
                "id": identity[0],
                "object": "chat.completion",
                "created": identity[1],
                "model": said.model,
                "choices": [
                    {"index": index, "message": message, "logprobs": None, "finish_reason": said.finish}
                    for index in range(choices)
                ],
                "usage": self.usage(said, choices),
                "system_fingerprint": "fp_demo",
            }
        )

    # --- text completions

    def complete(self, request: Request) -> Answer:
        try:
            body = _text.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"We could not parse the JSON body of your request: {error}") from None
        choices = min(body.n or 1, MAX_CHOICES)
        said = completions.turns(body, self.model_name(body.model), texts_of(body.prompt), request.preset, choices)
        if not said:
            raise RefusalError(400, '"prompt" must not be empty')
        frame = self.text_object(self.identifier(request), int(request.created), said[0].model)
        counts, directives = completions.spoken(said, choices), said[0].directives
        if body.stream:
            usage = self.usage_beside_text or (body.stream_options and body.stream_options.include_usage)
            failure, asked = self.error_event(directives), counts if usage else None
            pieces = completions.stream(said, frame, failure, asked, beside=self.usage_beside_text)
            return Answer(200, self.stream_type, pieces, directives=directives, streamed=True)
        large = oversized(directives)
        return Answer(200, self.json_type, large or completions.whole(said, frame, counts), directives=directives)

    usage_beside_text = False

    def text_object(self, name: str, created: int, model: str) -> completions.Frame:
        return partial(completions.plain, name.replace("chatcmpl", "cmpl"), created, model)

    # --- embeddings

    def embeddings(self, request: Request) -> Answer:
        body = self.parse_embedding(request.body)
        model = self.model_name(body.model)
        texts = texts_of(body.input)
        if not texts:
            raise RefusalError(400, self.empty_input)
        if body.encoding_format not in (None, "float", "base64"):
            raise RefusalError(400, f"Invalid encoding_format: {body.encoding_format}")
        directives = request.preset or find([model, texts[0]])
        size = min(body.dimensions or script.EMBEDDING_SIZE, MAX_DIMENSIONS) if self.takes_dimensions else None
        vectors = [script.embedding(text, size or script.EMBEDDING_SIZE) for text in texts]
        as_text = body.encoding_format == "base64"
        data = [self.vector(index, vector, as_text) for index, vector in enumerate(vectors)]
        tokens = script.prompt_tokens(texts)
        answer = oversized(directives) or encode(self.embedding_list(model, data, tokens))
        return Answer(200, self.json_type, answer, directives=directives)

    empty_input = "'$.input' is invalid. Please check the API reference."
    takes_dimensions = True

    def parse_embedding(self, body: bytes) -> EmbeddingBody:
        try:
            return _embedding.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"We could not parse the JSON body of your request: {error}") from None

    def vector(self, index: int, vector: list[float], as_text: bool) -> dict[str, Any]:
        return {"object": "embedding", "index": index, "embedding": packed(vector) if as_text else vector}

    def embedding_list(self, model: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": model, "usage": usage}

    # --- models and health

    def list_models(self, request: Request) -> Answer:
        entries = [self.model_entry(name, request) for name in self.models]
        return Answer(
            200, self.json_type, encode({"object": "list", "data": entries}), directives=request.preset or NONE
        )

    def one_model(self, request: Request) -> Answer:
        name = self.model_name(request.path.removeprefix("/v1/models/"))
        return Answer(200, self.json_type, encode(self.model_entry(name, request)))

    def model_entry(self, name: str, request: Request) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": MODELS_CREATED, "owned_by": "flm-demo"}

    def health(self, request: Request) -> Answer:
        return Answer(200, self.json_type, b'{"status":"ok"}')


def deltas(
    said: Turn, reasoning_field: bytes, call_deltas: Callable[[Sequence[Call]], Iterator[bytes]]
) -> Iterator[bytes | None]:
    """The deltas between role and finish, as JSON; None where the engine fails (directive `error`)."""
    limit = said.directives.error
    for piece in said.thinking:
        yield b'{"%s":%s}' % (reasoning_field, encode(piece))
    for number, piece in enumerate(said.pieces):
        if number == limit:
            yield None
            return
        yield b'{"content":%s}' % encode(piece)
    yield from call_deltas(said.calls)
    if limit is not None:
        yield None


def whole_call(index: int, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": encode(call.arguments).decode()}
    return {"id": f"call_demo{index:04d}", "type": "function", "function": function}


def packed(vector: Sequence[float]) -> str:
    """`encoding_format: base64`: little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def texts_of(given: str | list[str | int | list[int]]) -> list[str]:
    """The inputs of an embedding request; a list of tokens counts as the text of its numbers."""
    if isinstance(given, str):
        return [given] if given else []
    if given and isinstance(given[0], int):
        return [" ".join(map(str, given))]
    return [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in given]


def schema_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The schema a reply must fit: {} for `json_object`, None for plain text."""
    kind = (response_format or {}).get("type", "text")
    if kind == "json_object":
        return {}
    if kind == "json_schema":
        return dict((response_format or {}).get("json_schema", {}).get("schema") or {})
    return None

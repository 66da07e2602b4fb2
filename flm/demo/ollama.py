"""The demo engine as Ollama: the native API, bytes as in the recordings of tests/golden/engines/ollama-*.

Guards Host and Origin as it does. Versions before 0.12.10 give tool calls no id. Pure; times come with the request.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from flm.demo import script
from flm.demo.chat import Asked, Message, Tool, Turn, oversized, turn
from flm.demo.dialect import Answer, Request, status_line
from flm.demo.directives import find
from flm.demo.openai import MODELS_CREATED, Handler, OpenAI, RefusalError, encode, texts_of

NATIVE_JSON = b"application/json; charset=utf-8"
PLAIN = b"text/plain; charset=utf-8"
VERSION = "0.34.4"
DETAILS = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "1M"}
SIZE = 2446660  # bytes, as a tiny model has
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
Body = TypeVar("Body")
DIED = "an error was encountered while running the model: unexpected EOF"


class ChatBody(msgspec.Struct):
    """A request to /api/chat, as far as the demo engine looks at it. Content must be a string there."""

    model: str = ""
    messages: list[Message] = []
    stream: bool | None = None  # absent: streamed
    tools: list[Tool] | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    options: dict[str, Any] | None = None


class GenerateBody(msgspec.Struct):
    """A request to /api/generate, as far as the demo engine looks at it."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    stream: bool | None = None  # absent: streamed
    options: dict[str, Any] | None = None


class EmbedBody(msgspec.Struct):
    model: str = ""
    input: str | list[str | int | list[int]] | int | None = None
    dimensions: int | None = None


class ShowBody(msgspec.Struct):
    model: str = ""


class Ollama(OpenAI):
    name = "ollama"
    default_models = ("demo:latest", "demo-think:latest", "demo-embed:latest")
    public_paths = frozenset({"/"})
    json_type = NATIVE_JSON

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            ("GET", "/"): self.root,
            ("HEAD", "/"): self.root,
            ("GET", "/api/version"): self.version_answer,
            ("HEAD", "/api/version"): self.version_answer,
            ("GET", "/api/tags"): self.tags,
            ("GET", "/api/ps"): self.loaded,
            ("POST", "/api/show"): self.show,
            ("POST", "/api/chat"): self.chat,
            ("POST", "/api/generate"): self.generate,
            ("POST", "/api/embed"): self.embed,
            ("GET", "/v1/models"): self.list_models,
        }

    def answer(self, request: Request) -> Answer:
        if not welcome_host(request.headers.get(b"host", b"")) or b"origin" in request.headers:
            return Answer(403, b"")
        return super().answer(request)

    def fallback(self, request: Request) -> Handler:
        return self.not_found

    def not_found(self, request: Request) -> Answer:
        allowed = [method for method, path in self._routes if path == request.path]
        if allowed:
            header = (b"Allow", ", ".join(allowed).encode())
            return Answer(405, b"text/plain", b"405 method not allowed", headers=(header,))
        return Answer(404, b"text/plain", b"404 page not found")

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        framing = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
        closing = b"" if keep_alive else b"Connection: close\r\n"
        return b"%s%s%sDate: %s\r\n%s\r\n" % (
            status_line(answer.status),
            b"".join(b"%s: %s\r\n" % header for header in answer.headers),
            b"Content-Type: %s\r\n" % answer.content_type if answer.content_type else b"",
            time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(created)).encode(),
            closing + framing if length is None else framing + closing,
        )

    def error(self, status: int, message: str) -> Answer:
        return Answer(status, NATIVE_JSON, encode({"error": message}))

    # --- what it is and has

    def root(self, request: Request) -> Answer:
        return Answer(200, PLAIN, b"Ollama is running")

    def version_answer(self, request: Request) -> Answer:
        return Answer(200, NATIVE_JSON, encode({"version": self.version or VERSION}))

    def tags(self, request: Request) -> Answer:
        return Answer(200, NATIVE_JSON, encode({"models": [self._tag(name) for name in self.models]}))

    def _tag(self, name: str) -> dict[str, Any]:
        details: dict[str, Any] = {"parent_model": "", **DETAILS}
        entry: dict[str, Any] = {
            "name": name,
            "model": name,
            "modified_at": stamp(MODELS_CREATED),  # as of a file: a list that does not change must not seem to
            "size": SIZE,
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "details": details,
        }
        if self._at_least(0, 30, 0):
            details |= {"context_length": script.CONTEXT_LENGTH, "embedding_length": script.EMBEDDING_SIZE}
            entry["capabilities"] = capabilities(name)
        return entry

    def loaded(self, request: Request) -> Answer:
        name = self.models[0]
        entry = {
            "name": name,
            "model": name,
            "size": SIZE,
            "details": {"parent_model": "", **DETAILS},
            "expires_at": stamp(request.created + 300),
            "size_vram": 0,
            "context_length": script.CONTEXT_LENGTH,
        }
        return Answer(200, NATIVE_JSON, encode({"models": [entry]}))

    def show(self, request: Request) -> Answer:
        name = self._known(self._decoded(request.body, ShowBody).model)
        information = {
            "general.architecture": "llama",
            "llama.context_length": 2 * script.CONTEXT_LENGTH,
            "llama.embedding_length": script.EMBEDDING_SIZE,
        }
        told = {"details": DETAILS, "model_info": information, "capabilities": capabilities(name)}
        return Answer(200, NATIVE_JSON, encode(told))

    def model_entry(self, name: str, request: Request) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": MODELS_CREATED, "owned_by": "library"}

    # --- chat

    def chat(self, request: Request) -> Answer:
        body = self._decoded(request.body, ChatBody)
        name = self._able(self._known(body.model), body)
        asked = asked_of(name, body)
        said = turn(asked, request.preset)
        said.model = body.model  # it repeats what the caller wrote
        if not body.messages:
            return Answer(200, NATIVE_JSON, self._loading(body.model, request))
        failing = said.directives.error
        if failing == 0 or (failing is not None and body.stream is False):
            raise RefusalError(500, DIED)
        if body.stream is False:
            large = oversized(said.directives)
            return Answer(200, NATIVE_JSON, large or self._object(said, request), directives=said.directives)
        lines = self._lines(said, request)
        return Answer(200, b"application/x-ndjson", lines, directives=said.directives, streamed=True)

    def _able(self, name: str, body: ChatBody) -> str:
        able = capabilities(name)
        if "completion" not in able:
            raise RefusalError(400, f'"{body.model}" does not support chat')
        if body.think and "thinking" not in able:
            raise RefusalError(400, f'"{body.model}" does not support thinking')
        return name

    def _lines(self, said: Turn, request: Request) -> Iterator[bytes]:
        """One object per line and chunk; tool calls before the last line, as the rendered path has them."""
        for fields in self._messages(said):
            if fields is None:
                yield encode({"error": DIED}) + b"\n"
                return
            message = {"role": "assistant", "content": "", **fields}
            yield encode(self._frame(said.model, request, message) | {"done": False}) + b"\n"
        if not said.directives.quiet:
            message = {"role": "assistant", "content": ""}
            yield encode(self._frame(said.model, request, message) | self._ending(said)) + b"\n"

    def _messages(self, said: Turn) -> Iterable[dict[str, Any] | None]:
        limit = said.directives.error
        for piece in said.thinking:
            yield {"thinking": piece}
        for number, piece in enumerate(said.pieces):
            if number == limit:
                yield None
                return
            yield {"content": piece}
        for call in self._calls(said):
            yield {"tool_calls": [call]}
        if limit is not None:
            yield None

    def _object(self, said: Turn, request: Request) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": said.text()}
        if said.thinking:
            message["thinking"] = "".join(said.thinking)
        if said.calls:
            message["tool_calls"] = self._calls(said)
        ending = {"done": False} if said.directives.quiet else self._ending(said)
        return encode(self._frame(said.model, request, message) | ending)

    def _calls(self, said: Turn) -> list[dict[str, Any]]:
        with_id = self._at_least(0, 12, 10)
        return [
            ({"id": f"call_{index:08d}"} if with_id else {})
            | {"function": {"index": index, "name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(said.calls)
        ]

    def _frame(self, model: str, request: Request, message: dict[str, Any]) -> dict[str, Any]:
        return {"model": model, "created_at": stamp(request.created), "message": message}

    def _ending(self, said: Turn) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": "stop" if said.finish == "tool_calls" else said.finish,
            "total_duration": 3553563,
            "load_duration": 1017869,
            "prompt_eval_count": said.prompt_tokens,
            "prompt_eval_duration": 306000,
            "eval_count": said.completion_tokens,
            "eval_duration": 721000,
        }

    def _loading(self, model: str, request: Request) -> bytes:
        message = {"role": "assistant", "content": ""}
        return encode(self._frame(model, request, message) | {"done": True, "done_reason": "load"})

    # --- text completions

    def generate(self, request: Request) -> Answer:
        """The prompt is answered as a user's message would be, raw or not."""
        body = self._decoded(request.body, GenerateBody)
        name = self._known(body.model)
        if "completion" not in capabilities(name):
            raise RefusalError(400, f'"{body.model}" does not support generate')
        if body.suffix:
            raise RefusalError(400, f"registry.ollama.ai/library/{name} does not support insert")
        prompt = ChatBody(body.model, [Message("user", body.prompt)], options=body.options, think=False)
        said = turn(asked_of(name, prompt), request.preset)
        said.model = body.model
        directives = said.directives
        if not body.prompt:
            loaded = self._text(said, request, "") | {"done": True, "done_reason": "load"}
            return Answer(200, NATIVE_JSON, encode(loaded))
        if directives.error == 0 or (directives.error is not None and body.stream is False):
            raise RefusalError(500, DIED)
        if body.stream is False:
            ending = {"done": False} if directives.quiet else self._ending(said)
            large = oversized(directives)
            whole = large or encode(self._text(said, request, said.text()) | ending)
            return Answer(200, NATIVE_JSON, whole, directives=directives)
        lines = self._text_lines(said, request)
        return Answer(200, b"application/x-ndjson", lines, directives=directives, streamed=True)

    def _text_lines(self, said: Turn, request: Request) -> Iterator[bytes]:
        for fields in self._messages(said):
            if fields is None:
                yield encode({"error": DIED}) + b"\n"
                return
            yield encode(self._text(said, request, fields.get("content", "")) | {"done": False}) + b"\n"
        if not said.directives.quiet:
            yield encode(self._text(said, request, "") | self._ending(said)) + b"\n"

    def _text(self, said: Turn, request: Request, text: str) -> dict[str, Any]:
        return {"model": said.model, "created_at": stamp(request.created), "response": text}

    # --- embeddings

    def embed(self, request: Request) -> Answer:
        body = self._decoded(request.body, EmbedBody)
        if isinstance(body.input, int) or (isinstance(body.input, list) and not all_text(body.input)):
            raise RefusalError(400, "invalid input type")
        self._known(body.model, 'model "{}" not found, try pulling it first')
        texts = texts_of(body.input or [])
        directives = request.preset or find([body.model.removesuffix(":latest"), *texts[:1]])
        size = min(body.dimensions or script.EMBEDDING_SIZE, script.EMBEDDING_SIZE)
        told: dict[str, Any] = {"model": body.model, "embeddings": [script.embedding(text, size) for text in texts]}
        if texts:
            counted = script.prompt_tokens(texts)
            told |= {"total_duration": 3303390, "load_duration": 976632, "prompt_eval_count": counted}
        return Answer(200, NATIVE_JSON, oversized(directives) or encode(told), directives=directives)

    # --- requests

    def _decoded(self, body: bytes, shape: type[Body]) -> Body:
        if not body:
            raise RefusalError(400, "missing request body")
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"json: {error}") from None

    def _known(self, model: str, unknown: str = "model '{}' not found") -> str:
        """The full name of a model. Names match in any case, and the tag `latest` may be left out."""
        if not model:
            raise RefusalError(400, "model is required")
        if model.startswith("demo:") and model != "demo:latest":
            return model
        full = model if ":" in model else f"{model}:latest"
        if full.lower() not in (name.lower() for name in self.models):
            raise RefusalError(404, unknown.format(model))
        return full

    def _at_least(self, *wanted: int) -> bool:
        version = (self.version or VERSION).split("-")[0].split(".")
        return tuple(int(part) for part in version if part.isdigit()) >= wanted


def asked_of(name: str, body: ChatBody) -> Asked:
    """What a native request asks for. Raises RefusalError."""
    if any(isinstance(message.content, list) for message in body.messages):
        raise RefusalError(400, "json: cannot unmarshal array into Go struct field .ChatRequest.messages.content")
    options = body.options or {}
    limit, stop = options.get("num_predict"), options.get("stop", [])
    if not isinstance(stop, list):
        raise RefusalError(500, 'option "stop" must be of type array')
    if isinstance(body.format, str) and body.format not in ("", "json"):
        raise RefusalError(500, f'invalid format: "{body.format}"; expected "json" or a valid JSON Schema object')
    schema = {} if body.format == "json" else body.format or None
    return Asked(
        model=name.removesuffix(":latest"),
        messages=body.messages,
        max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        stop=[str(mark) for mark in stop],
        tools=body.tools or (),
        schema=schema if isinstance(schema, dict) else None,
        think=bool(body.think) if body.think is not None else "thinking" in capabilities(name),
    )


def capabilities(name: str) -> list[str]:
    """What a model can, by its name: `…-embed…` embeds, `…-think…` also thinks, the others talk and call tools."""
    if "-embed" in name:
        return ["embedding"]
    return ["completion", "tools", "thinking"] if "-think" in name else ["completion", "tools"]


def all_text(given: list[str | int | list[int]]) -> bool:
    return all(isinstance(one, str) for one in given)


def stamp(seconds: float) -> str:
    """A time as Go writes it."""
    whole = int(seconds)
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{day}.{int((seconds - whole) * 1e9):09d}Z"


def welcome_host(host: bytes) -> bool:
    """The guard of a server bound to loopback: its own and private names pass, and an empty one."""
    name = host.decode("latin-1").rsplit(":", 1)[0] if not host.endswith(b"]") else host.decode("latin-1")
    name = name.strip("[]").lower()
    if name in ("", "localhost") or name.endswith(LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_unspecified

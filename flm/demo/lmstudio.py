"""The demo engine as LM Studio. Not verified against the product: written after its documentation and bug tracker.

What it is known for is all here: an Express head, its greeting, 200 with an error for every path it does not have
(LMS#1323), three generations of model lists (`version` 0.4.0 and later has all, from 0.3.6 on two, before only
OpenAI's), errors that are plain strings, the requests it refuses, failures of a stream as `event: error` inside a 200,
calls with numeric ids and no content, embeddings that are always arrays, a model echo with its quantization, a model
id as `system_fingerprint`, further instances `name:2` of a model, and silence while a cold model is loaded.

Pure. A model whose name holds `-embed` embeds, `-think` also thinks, `-vision` also sees, `-cold` is loaded anew by
each request; `name:2` is the second instance of `name`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from flm.demo import script
from flm.demo.chat import Asked, Call, Turn
from flm.demo.dialect import Answer, Request, status_line
from flm.demo.directives import Directives
from flm.demo.openai import ChatBody, EmbeddingBody, Handler, OpenAI, RefusalError, encode

VERSION: Final = "0.4.21"
QUANTIZATION: Final = "q4_k_m"
LOAD_SECONDS: Final = 0.2  # a cold model's silence
ROLES: Final = ("user", "assistant", "system", "tool")
BROKEN: Final = "The number of tokens to keep from the initial prompt is greater than the context length."
NO_KEY: Final = (
    "An LM Studio API token is required to make requests to this server, but none was provided using the "
    "Authorization header using the 'Bearer' scheme"
)

_document = msgspec.json.Decoder(dict[str, Any])
_chat = msgspec.json.Decoder(ChatBody)
_embedding = msgspec.json.Decoder(EmbeddingBody)


class LMStudio(OpenAI):
    name = "lmstudio"
    default_models = ("demo", "lab/demo-think", "lab/demo-think:2", "demo-vision-cold", "demo-embed")
    public_paths = frozenset({"/lmstudio-greeting"})
    json_type = b"application/json; charset=utf-8"
    stream_type = b"text/event-stream"
    wrong_key = NO_KEY
    takes_dimensions = False

    def routes(self) -> dict[tuple[str, str], Handler]:
        routes = super().routes()
        del routes["GET", "/health"]
        routes["GET", "/lmstudio-greeting"] = self.greet
        if self._at_least(0, 3, 6):
            routes["GET", "/api/v0/models"] = self.older_list
        if self._at_least(0, 4, 0):
            routes["GET", "/api/v1/models"] = self.native_list
        return routes

    def _at_least(self, *wanted: int) -> bool:
        return tuple(int(part) for part in (self.version or VERSION).split(".") if part.isdigit()) >= wanted

    def fallback(self, request: Request) -> Handler:
        return self.not_found

    def not_found(self, request: Request) -> Answer:
        words = f"Unexpected endpoint or method. ({request.method} {request.path})"
        return Answer(200, self.json_type, encode({"error": words}))

    def greet(self, request: Request) -> Answer:
        return Answer(200, self.json_type, b'{"lmstudio":true}')

    # --- what an answer looks like around its content

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        kind = b"Content-Type: %s\r\n" % answer.content_type
        cache = b"Cache-Control: no-cache\r\n" if answer.streamed else b""
        sized = b"" if length is None else b"Content-Length: %d\r\n" % length
        return b"%sX-Powered-By: Express\r\n%s%s%sDate: %s\r\nConnection: %s\r\n%s\r\n" % (
            status_line(answer.status),
            kind,
            cache,
            sized,
            time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(created)).encode(),
            b"keep-alive\r\nKeep-Alive: timeout=5" if keep_alive else b"close",
            b"Transfer-Encoding: chunked\r\n" if length is None else b"",
        )

    def error(self, status: int, message: str) -> Answer:
        told: Any = message
        if status in (401, 404):
            code = "invalid_api_key" if status == 401 else "model_not_found"
            param = "model" if status == 404 else None
            told = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        return Answer(400 if status == 404 else status, self.json_type, encode({"error": told}))

    def error_event(self, directives: Directives) -> bytes:
        return b"event: error\ndata: %s\n\n" % encode({"error": {"message": BROKEN}})

    # --- chat

    def chat(self, request: Request) -> Answer:
        answer = super().chat(request)
        model = _document.decode(request.body).get("model")
        if "-cold" in str(model) and not answer.directives.first:
            answer.directives = msgspec.structs.replace(answer.directives, first=LOAD_SECONDS)
        return answer

    def parse_chat(self, body: bytes) -> ChatBody:
        try:
            fields = _document.decode(body)
            check(fields)
            asked = _chat.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, str(error)) from None
        asked.n = None  # not known to it
        asked.max_completion_tokens = None
        if asked.max_tokens is not None and asked.max_tokens < 0:
            asked.max_tokens = None
        return asked

    def asked(self, body: ChatBody) -> Asked:
        asked = super().asked(body)
        asked.think = "-think" in asked.model
        return asked

    def model_name(self, model: str | None) -> str:
        if model is not None and (model.startswith("demo:") or model.partition("@")[0] in self.models):
            return model.partition("@")[0]
        known = ", ".join(self.models)
        words = f'Invalid model identifier "{model}". Please specify a valid downloaded model (e.g. {known}).'
        raise RefusalError(404, words)

    def stream(self, said: Turn, identity: tuple[str, int], choices: int, usage: bool) -> Iterator[bytes]:
        """What it cannot do at all is said before anything else, and the status is 200 all the same."""
        if said.directives.error == 0:
            return iter([self.error_event(said.directives)])
        return super().stream(said, identity, choices, usage)

    def chunk_frame(self, model: str, identity: tuple[str, int], usage: bool) -> tuple[bytes, bytes]:
        name, created = identity
        opening = b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"system_fingerprint":%s,'
        head = opening % (encode(name), created, encode(model), encode(model))
        return head + b'"choices":[', b"]}\n\n"

    def choice(self, index: int, delta: bytes, finish: str | None = None) -> bytes:
        """Its deltas repeat the role."""
        if not delta.startswith(b'{"role"') and delta != b"{}":
            delta = b'{"role":"assistant",' + delta[1:]
        return b'{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}' % (index, delta, encode(finish))

    def call_deltas(self, calls: Sequence[Call]) -> Iterator[bytes]:
        for index, call in enumerate(calls):
            arguments = encode(call.arguments).decode()
            function = {"name": call.name, "arguments": ""}
            yield encode(
                {"tool_calls": [{"index": index, "id": number(index), "type": "function", "function": function}]}
            )
            for at in range(0, len(arguments), 5):
                yield encode({"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 5]}}]})

    def whole(self, said: Turn, identity: tuple[str, int], choices: int) -> bytes:
        message: dict[str, Any] = {"role": "assistant"}
        if said.thinking:
            message["reasoning_content"] = "".join(said.thinking)
        if said.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": number(index),
                    "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
                }
                for index, call in enumerate(said.calls)
            ]
        else:
            message["content"] = said.text()
        choice = {"index": 0, "logprobs": None, "finish_reason": said.finish, "message": message}
        return encode(
            {
                "id": identity[0],
                "object": "chat.completion",
                "created": identity[1],
                "model": said.model,
                "choices": [choice],
                "usage": self.usage(said, 1),
                "stats": {},
                "system_fingerprint": said.model,
            }
        )

    # --- embeddings

    def parse_embedding(self, body: bytes) -> EmbeddingBody:
        try:
            asked = _embedding.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RefusalError(400, "'input' field must be a string or an array of strings") from None
        asked.encoding_format = None  # ignored (LMS#756)
        return asked

    def embedding_list(self, model: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return {"object": "list", "data": data, "model": f"{model}@{QUANTIZATION}", "usage": usage}

    # --- models

    def model_entry(self, name: str, request: Request) -> dict[str, Any]:
        return {"id": name, "object": "model", "owned_by": "organization_owner"}

    def older_list(self, request: Request) -> Answer:
        entries = [older(name) for name in self.models]
        return Answer(200, self.json_type, encode({"data": entries, "object": "list"}))

    def native_list(self, request: Request) -> Answer:
        keys = dict.fromkeys(name.partition(":")[0] for name in self.models)
        entries = [native(key, [name for name in self.models if name.partition(":")[0] == key]) for key in keys]
        return Answer(200, self.json_type, encode({"models": entries}))


def check(fields: dict[str, Any]) -> None:
    """What it refuses, in its words. Raises RefusalError."""
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        words = "Invalid tool_choice type: 'object'. Supported string values: none, auto, required"
        raise RefusalError(400, words)
    wanted = fields.get("response_format")
    if wanted is not None and wanted.get("type") not in ("json_schema", "text"):
        raise RefusalError(400, "'response_format.type' must be 'json_schema' or 'text'")
    for message in fields.get("messages", []):
        role = message.get("role")
        if role not in ROLES:
            words = "'messages' array must only contain objects with a 'role' field that is in"
            raise RefusalError(400, f"{words} [{', '.join(ROLES)}]. Got '{role}'")
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            if part.get("type") == "image_url" and not part["image_url"]["url"].startswith("data:"):
                raise RefusalError(400, "'url' field must be a base64 encoded image.")


def number(index: int) -> str:
    """The id of a call: digits alone."""
    return str(814890118 + index)


def older(name: str) -> dict[str, Any]:
    """An entry of /api/v0/models."""
    embeds, loaded = "-embed" in name, "-cold" not in name
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "type": "embeddings" if embeds else "vlm" if "-vision" in name else "llm",
        "publisher": "lab",
        "arch": "llama",
        "compatibility_type": "gguf",
        "quantization": QUANTIZATION.upper(),
        "state": "loaded" if loaded else "not-loaded",
        "max_context_length": 2 * script.CONTEXT_LENGTH,
    }
    if loaded:
        entry["loaded_context_length"] = script.CONTEXT_LENGTH
    if not embeds:
        entry["capabilities"] = ["tool_use"]
    return entry


def native(key: str, instances: list[str]) -> dict[str, Any]:
    """An entry of /api/v1/models."""
    embeds, loaded = "-embed" in key, "-cold" not in key
    config = {"context_length": script.CONTEXT_LENGTH, "flash_attention": True}
    entry: dict[str, Any] = {
        "type": "embedding" if embeds else "llm",
        "publisher": "lab",
        "key": key,
        "display_name": key.title(),
        "architecture": "llama",
        "quantization": {"name": QUANTIZATION.upper(), "bits_per_weight": 4},
        "size_bytes": 2_446_660,
        "params_string": "1M",
        "loaded_instances": [{"id": name, "config": config} for name in instances] if loaded else [],
        "max_context_length": 2 * script.CONTEXT_LENGTH,
        "format": "gguf",
    }
    if not embeds:
        entry["capabilities"] = {"vision": "-vision" in key, "trained_for_tool_use": True}
        if "-think" in key:
            entry["capabilities"]["reasoning"] = {"allowed_options": ["off", "on"], "default": "on"}
        entry["variants"] = [f"{key}@{QUANTIZATION}"]
        entry["selected_variant"] = f"{key}@{QUANTIZATION}"
    return entry

"""The demo engine as vLLM 0.32: bytes as in the recordings of tests/golden/engines/vllm-0.32.0.

One process serves one task, as there: the first model's name decides. One whose name holds `-embed` makes a pooling
server with embeddings only; else there are chat and completions. A name that holds `-lora` is an adapter of the first
model, `-think` thinks under `reasoning`. The key guards `/v1`, `/v2` and `/inference` and nothing else; the text of an
answer that runs out of tokens ends in the same chunk as its finish reason; a failed stream says so and `[DONE]`.

Pure; what it shares with the public API is in `openai`, its text completions are in `vllm_completions`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from flm.demo import script
from flm.demo.chat import Asked, Call, Turn
from flm.demo.dialect import Answer, Request, status_line
from flm.demo.directives import NONE, Directives
from flm.demo.openai import (
    DONE,
    ChatBody,
    EmbeddingBody,
    Handler,
    OpenAI,
    RefusalError,
    deltas,
    encode,
    packed,
)
from flm.demo.vllm_completions import FINGERPRINT, Completions, last_of

VERSION: Final = "0.32.0"
GUARDED: Final = ("/v1", "/v2", "/inference")
_ERROR_TYPES: Final = {
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    501: "NotImplementedError",
    503: "Service Unavailable",
}
_PERMISSION: Final = {
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}

_chat = msgspec.json.Decoder(ChatBody)
_embedding = msgspec.json.Decoder(EmbeddingBody)


class InvalidError(RefusalError):
    """A refusal that names the request's field; `kind` is the error's type."""

    def __init__(self, message: str, param: str | None, kind: str = "BadRequestError") -> None:
        super().__init__(400, message)
        self.param = param
        self.kind = kind


class VLLM(OpenAI):
    name = "vllm"
    stream_type = b"text/event-stream; charset=utf-8"
    reasoning_field = b"reasoning"
    takes_dimensions = True  # refused before anything is cut
    wrong_key = "Unauthorized"

    def routes(self) -> dict[tuple[str, str], Handler]:
        self._embeds = "-embed" in self.models[0]
        completions = Completions(self.models, self.refuse)
        task: dict[tuple[str, str], Handler] = (
            {("POST", "/v1/embeddings"): self.embeddings}
            if self._embeds
            else {("POST", "/v1/chat/completions"): self.chat, ("POST", "/v1/completions"): completions.answer}
        )
        return {
            **task,
            ("GET", "/v1/models"): self.list_models,
            ("GET", "/health"): self.health,
            ("GET", "/version"): self.tell_version,
            ("GET", "/openapi.json"): self.describe,
        }

    def answer(self, request: Request) -> Answer:
        guarded = request.path.startswith(GUARDED)
        if self._api_key is not None and guarded and not self._has_key(request):
            return Answer(401, self.json_type, encode({"error": self.wrong_key}))
        handler = self._routes.get((request.method, request.path)) or self.not_found
        try:
            return handler(request)
        except InvalidError as refusal:
            return self._refusal(400, refusal.message, refusal.kind, refusal.param)
        except RefusalError as refusal:
            return self.error(refusal.status, refusal.message)

    def _has_key(self, request: Request) -> bool:
        return request.headers.get(b"authorization") == b"Bearer " + (self._api_key or "").encode()

    def not_found(self, request: Request) -> Answer:
        allowed = [method for method, path in self._routes if path == request.path]
        if allowed:
            header = (b"allow", ", ".join(allowed).encode())
            return Answer(405, self.json_type, encode({"detail": "Method Not Allowed"}), headers=(header,))
        return Answer(404, self.json_type, encode({"detail": "Not Found"}))

    # --- what an answer looks like around its content

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        lines = [b"date: %s" % time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(created)).encode()]
        lines.append(b"server: uvicorn")
        lines += [b"%s: %s" % header for header in answer.headers]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        if answer.content_type:
            lines.append(b"content-type: %s" % answer.content_type)
        if answer.status != 401:  # the guard stands before the part that adds it
            lines.append(b"vary: Origin")
        if not keep_alive:
            lines.append(b"connection: close")
        if length is None:
            lines.append(b"transfer-encoding: chunked")
        return status_line(answer.status) + b"".join(line + b"\r\n" for line in lines) + b"\r\n"

    def error(self, status: int, message: str) -> Answer:
        param = "model" if status == 404 and not self._embeds else None
        return self._refusal(status, message, self.error_type(status), param)

    def _refusal(self, status: int, message: str, kind: str, param: str | None) -> Answer:
        told = {"message": message, "type": kind, "param": param, "code": status}
        return Answer(status, self.json_type, encode({"error": told}))

    @staticmethod
    def error_type(status: int) -> str:
        return _ERROR_TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")

    def error_object(self, status: int, message: str) -> dict[str, Any]:
        return {"message": message, "type": self.error_type(status), "param": None, "code": status}

    @staticmethod
    def refuse(message: str, param: str | None) -> RefusalError:
        """A refusal that names the request's field, to raise."""
        return InvalidError(message, param)

    def identifier(self, request: Request) -> str:
        return f"chatcmpl-{request.serial:016x}"

    # --- chat

    def parse_chat(self, body: bytes) -> ChatBody:
        fields = document(body)
        if "messages" not in fields:
            words = f"'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of {len(fields)} items>'"
            raise InvalidError(f"1 validation error:\n  {{'type': 'missing', {words}}}", "body.messages", "Bad Request")
        if not fields["messages"]:
            text = "Cannot apply chat template to an empty conversation. Provide at least one message."
            raise InvalidError(text, None)
        check(fields)
        try:
            return _chat.decode(body)
        except msgspec.ValidationError as error:
            raise InvalidError(f"1 validation error:\n  {error}", "body", "Bad Request") from None

    def asked(self, body: ChatBody) -> Asked:
        asked = super().asked(body)
        if "-think" in asked.model:
            asked.think = True
        return asked

    def model_name(self, model: str | None) -> str:
        if model is None:
            return self.models[0]
        if model not in self.models and not model.startswith("demo:"):
            valid = "" if self._embeds else f" Valid aliases: {', '.join(self.models)}."
            raise RefusalError(404, f"The model `{model}` does not exist.{valid}")
        return model

    def stream(self, said: Turn, identity: tuple[str, int], choices: int, usage: bool) -> Iterator[bytes]:
        before, after = self.chunk_frame(said.model, identity, usage)
        for index in range(choices):
            role = b'{"role":"assistant","content":""}'
            opening = b'{"index":%d,"delta":%s,"logprobs":null,"finish_reason":null}' % (index, role)
            yield b'%s%s],"prompt_token_ids":null,"prompt_text":null}\n\n' % (before, opening)
        told = deltas(said, self.reasoning_field, self.call_deltas)
        last = b"{}"
        for delta, final in last_of(told):  # None: the engine fails here
            if delta is None:
                yield self.error_event(said.directives) + DONE
                return
            if final and said.finish == "length":
                last = delta
                break
            for index in range(choices):
                yield before + self.choice(index, delta) + after
        if said.directives.quiet:
            return
        mark = b"" if usage else b',"system_fingerprint":"%s"' % FINGERPRINT
        for index in range(choices):
            yield b"%s%s]%s}\n\n" % (before, self.choice(index, last, said.finish), mark)
        if usage:
            yield self.usage_event(said, (before, after), choices)
        yield DONE

    def chunk_frame(self, model: str, identity: tuple[str, int], usage: bool) -> tuple[bytes, bytes]:
        name, created = identity
        opening = b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":['
        return opening % (encode(name), created, encode(model)), b"]}\n\n"

    def choice(self, index: int, delta: bytes, finish: str | None = None) -> bytes:
        reason = (
            b'"finish_reason":null' if finish is None else b'"finish_reason":%s,"stop_reason":null' % encode(finish)
        )
        return b'{"index":%d,"delta":%s,"logprobs":null,%s,"token_ids":null}' % (index, delta, reason)

    def call_deltas(self, calls: Sequence[Call]) -> Iterator[bytes]:
        """Name and arguments of a call as two pieces of one delta: it calls as soon as a whole call was written."""
        for index, call in enumerate(calls):
            identity = f"chatcmpl-tool-{index:016x}"
            opening = {"id": identity, "type": "function", "index": index, "function": {"name": call.name}}
            rest = {"index": index, "function": {"arguments": encode(call.arguments).decode()}}
            yield encode({"content": None, "tool_calls": [opening, rest]})

    def usage_event(self, said: Turn, frame: tuple[bytes, bytes], choices: int) -> bytes:
        counts = {name: value for name, value in self.usage(said, choices).items() if value is not None}
        return b'%s],"usage":%s,"system_fingerprint":"%s"}\n\n' % (frame[0], encode(counts), FINGERPRINT)

    def usage(self, said: Turn, choices: int) -> dict[str, Any]:
        spoken = said.completion_tokens * choices
        thoughts = {"reasoning_tokens": len(said.thinking)} if said.thinking else None
        return {
            "prompt_tokens": said.prompt_tokens,
            "total_tokens": said.prompt_tokens + spoken,
            "completion_tokens": spoken,
            "prompt_tokens_details": None,
            "completion_tokens_details": thoughts,
        }

    def message(self, said: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if said.calls else said.text()}
        message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
        if said.calls:
            message["tool_calls"] = [
                {
                    "id": f"chatcmpl-tool-{index:016x}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
                }
                for index, call in enumerate(said.calls)
            ]
        message["reasoning"] = "".join(said.thinking) or None
        return message

    def whole(self, said: Turn, identity: tuple[str, int], choices: int) -> bytes:
        message = self.message(said)
        ended = {"logprobs": None, "finish_reason": said.finish, "stop_reason": None}
        ended |= dict.fromkeys(("token_ids", "routed_experts"))
        return encode(
            {
                "id": identity[0],
                "object": "chat.completion",
                "created": identity[1],
                "model": said.model,
                "choices": [{"index": index, "message": message, **ended} for index in range(choices)],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT.decode(),
                "usage": self.usage(said, choices),
                **dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text")),
                **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics")),
            }
        )

    # --- embeddings

    def parse_embedding(self, body: bytes) -> EmbeddingBody:
        fields = document(body)
        if fields.get("input") == "":
            raise InvalidError("The decoder prompt cannot be empty", None)
        if fields.get("input") == []:
            raise InvalidError("You must pass at least one prompt", None)
        if "dimensions" in fields:
            text = f"Model '{self.models[0]}' does not support Matryoshka embeddings; dimensions must be unset"
            raise InvalidError(f"{text} (received dimensions={fields['dimensions']}).", None)
        try:
            return _embedding.decode(body)
        except msgspec.ValidationError as error:
            raise InvalidError(f"1 validation error:\n  {error}", "body", "Bad Request") from None

    def embeddings(self, request: Request) -> Answer:
        answer = super().embeddings(request)
        if isinstance(answer.body, bytes):
            fields = msgspec.json.decode(answer.body)
            answer.body = encode({"id": f"embd-{request.serial:016x}", **_created_second(fields, request)})
        return answer

    def vector(self, index: int, vector: list[float], as_text: bool) -> dict[str, Any]:
        return {"index": index, "object": "embedding", "embedding": packed(vector) if as_text else vector}

    def embedding_list(self, model: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        counts = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        usage = {**counts, "prompt_tokens_details": None, "completion_tokens_details": None}
        return {"object": "list", "model": model, "data": data, "usage": usage}

    # --- what it is and has

    def model_entry(self, name: str, request: Request) -> dict[str, Any]:
        created, adapter = int(request.created), "-lora" in name
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": f"/srv/{name}",
            "parent": self.models[0] if adapter else None,
            "max_model_len": None if adapter else script.CONTEXT_LENGTH,
            "permission": [
                {
                    "id": f"modelperm-{request.serial:016x}",
                    "object": "model_permission",
                    "created": created,
                    **_PERMISSION,
                }
            ],
        }

    def health(self, request: Request) -> Answer:
        return Answer(200, b"", directives=request.preset or NONE)

    def tell_version(self, request: Request) -> Answer:
        return Answer(200, self.json_type, encode({"version": self.version or VERSION}))

    def describe(self, request: Request) -> Answer:
        """The routes this process has, which tell its task."""
        paths: Iterable[tuple[str, str]] = [(path, method.lower()) for method, path in self._routes]
        information = {"title": "FastAPI", "version": "0.1.0"}
        described: dict[str, Any] = {path: {method: {}} for path, method in paths if path != "/openapi.json"}
        return Answer(200, self.json_type, encode({"openapi": "3.1.0", "info": information, "paths": described}))

    def error_event(self, directives: Directives) -> bytes:
        return b"data: %s\n\n" % encode({"error": self.error_object(500, "The demo engine fails as it was told to.")})


def document(body: bytes) -> dict[str, Any]:
    """The request's fields. Raises InvalidError in the words of a web framework's validator."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        at = f"body.{len(body)}"
        text = "'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}"
        detail = f"{{'type': 'json_invalid', 'loc': '{at}', {text}}}"
        raise InvalidError(f"1 validation error:\n  {detail}", at, "Bad Request") from None
    if not isinstance(fields, dict):
        text = "'msg': 'Input should be a valid dictionary or object to extract fields from'"
        detail = f"{{'type': 'model_attributes_type', 'loc': 'body', {text}, 'input': '<list of {len(fields)} items>'}}"
        raise InvalidError(f"1 validation error:\n  {detail}", "body", "Bad Request")
    return fields


def check(fields: dict[str, Any]) -> None:
    """Raises InvalidError for what vLLM refuses and the API allows, or not."""
    if fields.get("tools") == []:
        text = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise InvalidError(f"{text} (parameter=tools)", "tools")
    if fields.get("tool_choice") not in (None, "none") and not fields.get("tools"):
        raise InvalidError("When using `tool_choice`, `tools` must be set. (parameter=tool_choice)", "tool_choice")
    if fields.get("stream_options") is not None and not fields.get("stream"):
        text = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise InvalidError(text, "stream_options")


def _created_second(fields: dict[str, Any], request: Request) -> dict[str, Any]:
    """The list with its time behind its kind."""
    return {"object": fields.pop("object"), "created": int(request.created), **fields}

"""The demo engine as a llama-server: bytes as in the recordings of tests/golden/engines/llama-server-b1-0c1e570.

Single-model mode: the model asked for is ignored and the alias answers. Malformed JSON is a 500, as it is there.
Pure; what it shares with the public API is in `openai`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from flm.demo import completions, script
from flm.demo.chat import Call, Turn
from flm.demo.dialect import Answer, Request, status_line
from flm.demo.openai import ChatBody, EmbeddingBody, Handler, OpenAI, RefusalError, encode, packed

BUILD = "b1-0c1e570"
PARAMETERS = {"seed": 4294967295, "temperature": 0.8, "top_k": 40, "max_tokens": -1, "n_predict": -1, "stream": False}
# cpp-httplib's defaults, announced while the connection stays open.
KEEP_ALIVE = b"Keep-Alive: timeout=5, max=100\r\n"

_chat = msgspec.json.Decoder(ChatBody)
_embedding = msgspec.json.Decoder(EmbeddingBody)
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


class LlamaCpp(OpenAI):
    name = "llamacpp"
    public_paths = frozenset({"/health", "/v1/health"})
    json_type = b"application/json; charset=utf-8"
    stream_type = b"text/event-stream"
    wrong_key = "Invalid API Key"
    empty_input = "Input content cannot be empty"
    takes_dimensions = False
    usage_beside_text = True

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            **super().routes(),
            ("POST", "/chat/completions"): self.chat,
            ("POST", "/completions"): self.complete,
            ("GET", "/models"): self.list_models,
            ("GET", "/props"): self.properties,
        }

    def fallback(self, request: Request) -> Handler:
        return self.not_found

    def not_found(self, request: Request) -> Answer:
        raise RefusalError(404, "File Not Found")

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        buffering = b"X-Accel-Buffering: no\r\n" if answer.streamed else b""
        framing = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
        return b"%sServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n%sContent-Type: %s\r\n%s%s\r\n" % (
            status_line(answer.status),
            buffering,
            answer.content_type,
            framing,
            KEEP_ALIVE if keep_alive else b"Connection: close\r\n",
        )

    def error(self, status: int, message: str) -> Answer:
        return Answer(status, self.json_type, encode({"error": self.error_object(status, message)}))

    def error_object(self, status: int, message: str) -> dict[str, Any]:
        kind = _KINDS.get(status, "server_error")
        if status in (401, 404, 503):
            return {"message": message, "type": kind, "code": status}
        return {"code": status, "message": message, "type": kind}

    def identifier(self, request: Request) -> str:
        return f"chatcmpl-{request.serial:032d}"

    # --- chat

    def parse_chat(self, body: bytes) -> ChatBody:
        try:
            return _chat.decode(body)
        except msgspec.ValidationError as error:
            missing = "'messages' is required" if "`messages`" in str(error) or "`array`" in str(error) else str(error)
            raise RefusalError(400, missing) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(500, f"[json.exception.parse_error.101] {error}") from None

    def model_name(self, model: str | None) -> str:
        return model if model is not None and model.startswith("demo:") else self.models[0]

    def named_tool(self, choice: str | dict[str, Any] | None) -> str | None:
        return None  # an object is read as `auto`

    def stream(self, said: Turn, identity: tuple[str, int], choices: int, usage: bool) -> Iterator[bytes]:
        """As there: the role travels with the first word, the finish with the usage, in one chunk on the wire."""
        pieces = super().stream(said, identity, choices, usage)
        role = b"".join(next(pieces) for _ in range(choices))
        first = next(pieces, b"")
        yield role + first
        held = b""
        for piece in pieces:
            if b'"finish_reason":null' not in piece and b'"object":"chat.completion.chunk"' in piece:
                held += piece
                continue
            if held:
                yield held if usage else _timed(held, said)
                held = b""
            yield piece

    def chunk_frame(self, model: str, identity: tuple[str, int], usage: bool) -> tuple[bytes, bytes]:
        name, created = identity
        after = b'],"created":%d,"id":%s,"model":%s,"system_fingerprint":"%s","object":"chat.completion.chunk"}\n\n'
        return b'data: {"choices":[', after % (created, encode(name), encode(model), self._build())

    def choice(self, index: int, delta: bytes, finish: str | None = None) -> bytes:
        delta = delta.replace(b'{"role":"assistant","content":""}', b'{"role":"assistant","content":null}')
        return b'{"finish_reason":%s,"index":%d,"delta":%s}' % (encode(finish), index, delta)

    def usage_event(self, said: Turn, frame: tuple[bytes, bytes], choices: int) -> bytes:
        before, after = frame
        tail = b',"usage":%s,"timings":%s}\n\n' % (encode(self.usage(said, choices)), encode(_timings(said)))
        return before + after.removesuffix(b"}\n\n") + tail

    def usage(self, said: Turn, choices: int) -> dict[str, Any]:
        spoken = said.completion_tokens * choices
        return {
            "completion_tokens": spoken,
            "prompt_tokens": said.prompt_tokens,
            "total_tokens": said.prompt_tokens + spoken,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def call_deltas(self, calls: Sequence[Call]) -> Iterator[bytes]:
        """The name with the first bytes of the arguments, then the rest of them."""
        for index, call in enumerate(calls):
            arguments = encode(call.arguments).decode()
            function = {"name": call.name, "arguments": arguments[:1]}
            opening = {"index": index, "id": f"{index:032d}", "type": "function", "function": function}
            yield encode({"tool_calls": [opening]})
            yield encode({"tool_calls": [{"index": index, "function": {"arguments": arguments[1:]}}]})

    def whole(self, said: Turn, identity: tuple[str, int], choices: int) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": None if said.calls else said.text()}
        if said.thinking:
            message["reasoning_content"] = "".join(said.thinking)
        if said.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
                    "id": f"{index:032d}",
                }
                for index, call in enumerate(said.calls)
            ]
        return encode(
            {
                "choices": [
                    {"finish_reason": said.finish, "index": index, "message": message} for index in range(choices)
                ],
                "created": identity[1],
                "model": said.model,
                "system_fingerprint": self._build().decode(),
                "object": "chat.completion",
                "usage": self.usage(said, choices),
                "id": identity[0],
                "timings": _timings(said),
            }
        )

    # --- text completions and embeddings

    def text_object(self, name: str, created: int, model: str) -> completions.Frame:
        def written(choices: completions.Choices, counts: completions.Counts | None) -> dict[str, Any]:
            found: dict[str, Any] = {"choices": choices, "created": created, "model": model}
            found |= {"system_fingerprint": self._build().decode(), "object": "text_completion"}
            if counts is not None:
                prompt, said = counts
                usage = {"completion_tokens": said, "prompt_tokens": prompt, "total_tokens": prompt + said}
                found["usage"] = {**usage, "prompt_tokens_details": {"cached_tokens": 0}}
            return {**found, "id": name}

        return written

    def parse_embedding(self, body: bytes) -> EmbeddingBody:
        """The demo engine chats and embeds; asked without an input, it says what one that only chats would say."""
        if b'"input"' not in body:
            raise RefusalError(501, "This server does not support embeddings. Start it with `--embeddings`")
        try:
            return _embedding.decode(body)
        except msgspec.ValidationError:
            raise RefusalError(400, '"input" must be a string or an array of strings') from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(500, f"[json.exception.parse_error.101] {error}") from None

    def vector(self, index: int, vector: list[float], as_text: bool) -> dict[str, Any]:
        if as_text:
            return {"embedding": packed(vector), "index": index, "object": "embedding", "encoding_format": "base64"}
        return {"embedding": vector, "index": index, "object": "embedding"}

    def embedding_list(self, model: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
        return {
            "model": model,
            "object": "list",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "data": data,
        }

    # --- models and properties

    def list_models(self, request: Request) -> Answer:
        name = self.models[0]
        details = {"format": "gguf", "family": "", "families": [""], "parameter_size": "", "quantization_level": ""}
        entry = {"name": name, "model": name, "type": "model", "tags": [""], "capabilities": ["completion"]}
        listed = {
            "models": [{**entry, "details": details}],
            "object": "list",
            "data": [self.model_entry(name, request)],
        }
        return Answer(200, self.json_type, encode(listed))

    def model_entry(self, name: str, request: Request) -> dict[str, Any]:
        context = script.CONTEXT_LENGTH
        return {
            "id": name,
            "aliases": [name],
            "tags": [],
            "object": "model",
            "created": int(request.created),
            "owned_by": "llamacpp",
            "meta": {"vocab_type": 2, "n_ctx": context, "n_ctx_train": 2 * context, "n_embd": script.EMBEDDING_SIZE},
        }

    def properties(self, request: Request) -> Answer:
        told = {
            "default_generation_settings": {"params": PARAMETERS, "n_ctx": script.CONTEXT_LENGTH},
            "total_slots": 4,
            "model_alias": self.models[0],
            "model_path": "demo.gguf",
            "modalities": {"vision": False, "video": False, "audio": False},
            "chat_template": "",
            "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True},
            "build_info": self._build().decode(),
            "is_sleeping": False,
        }
        return Answer(200, self.json_type, encode(told))

    def _build(self) -> bytes:
        return (self.version or BUILD).encode()


def _timed(event: bytes, said: Turn) -> bytes:
    """Without a usage chunk the finish chunk has the timings."""
    return b'%s,"timings":%s}\n\n' % (event.removesuffix(b"}\n\n"), encode(_timings(said)))


def _timings(said: Turn) -> dict[str, Any]:
    return {"cache_n": 0, "prompt_n": said.prompt_tokens, "prompt_ms": 1.0, "predicted_n": said.completion_tokens}

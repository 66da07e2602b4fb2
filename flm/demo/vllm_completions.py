"""Text completions of the demo engine as vLLM writes them; the prompt is answered as a user's message would be.

Pure. Knows nothing of chat, nor how a request was routed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from flm.demo import script
from flm.demo.completions import StreamOptions
from flm.demo.dialect import Answer, Request
from flm.demo.directives import find
from flm.demo.openai import DONE, MAX_CHOICES, RefusalError, encode, texts_of

FINGERPRINT: Final = b"vllm-0.32.0-demo"
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream; charset=utf-8"
DEFAULT_TOKENS: Final = 16

T = TypeVar("T")


class CompletionBody(msgspec.Struct):
    """A request to /v1/completions, as far as the demo engine looks at it. Unknown fields are ignored."""

    model: str | None = None
    prompt: str | list[str | int | list[int]] | None = None
    max_tokens: int | None = DEFAULT_TOKENS
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None


_completion = msgspec.json.Decoder(CompletionBody)


class Completions:
    """The route. `refuse` makes the error for a message and the field it is about."""

    def __init__(self, models: tuple[str, ...], refuse: Callable[[str, str | None], RefusalError]) -> None:
        self._models = models
        self._refuse = refuse

    def answer(self, request: Request) -> Answer:
        body = self._read(request.body)
        model = body.model or self._models[0]
        if model not in self._models and not model.startswith("demo:"):
            aliases = ", ".join(self._models)
            raise RefusalError(404, f"The model `{model}` does not exist. Valid aliases: {aliases}.")
        prompts = texts_of(body.prompt or "")
        if not prompts:
            text = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            raise self._refuse(text, "prompt")
        directives = request.preset or find([model, prompts[0]])
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        said = [
            script.reply(model, prompt, body.max_tokens, count=directives.words, stop=stop)
            for prompt in prompts
            for _ in range(min(body.n or 1, MAX_CHOICES))
        ]
        head = {"id": f"cmpl-{request.serial:016x}", "object": "text_completion", "created": int(request.created)}
        head["model"] = model
        usage = _usage(said, script.prompt_tokens(prompts))
        if body.stream:
            asked = bool(body.stream_options and body.stream_options.include_usage)
            pieces = _stream(said, head, usage if asked else None)
            return Answer(200, EVENTS, pieces, directives=directives, streamed=True)
        echoes = [prompt if body.echo else "" for prompt in prompts for _ in range(len(said) // len(prompts))]
        texts = [(echo + reply.text, reply.finish) for echo, reply in zip(echoes, said, strict=True)]
        return Answer(200, JSON, _whole(texts, head, usage), directives=directives)

    def _read(self, body: bytes) -> CompletionBody:
        try:
            return _completion.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refuse(f"1 validation error:\n  {error}", "body") from None


def last_of(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last one; each comes one item late."""
    held: list[T] = []
    for item in items:
        if held:
            yield held.pop(), False
        held.append(item)
    if held:
        yield held.pop(), True


def _usage(said: list[script.Reply], prompt: int) -> dict[str, Any]:
    spoken = sum(len(reply.pieces) for reply in said)
    return {"prompt_tokens": prompt, "total_tokens": prompt + spoken, "completion_tokens": spoken}


def _stream(said: list[script.Reply], head: dict[str, Any], usage: dict[str, Any] | None) -> Iterator[bytes]:
    frame = encode(head).removesuffix(b"}")
    mark = b',"system_fingerprint":"%s"' % FINGERPRINT
    for index, reply in enumerate(said):
        # Out of tokens: the last text comes with the reason; else the reason comes by itself.
        for piece, final in last_of(reply.pieces if reply.finish == "length" else (*reply.pieces, "")):
            choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": reply.finish if final else None}
            choice |= dict.fromkeys(("stop_reason", "prompt_token_ids", "token_ids"))
            end = mark if final and usage is None else b""
            yield b'data: %s,"choices":[%s]%s}\n\n' % (frame, encode(choice), end)
    if usage is not None:
        yield b'data: %s,"choices":[],"usage":%s%s}\n\n' % (frame, encode(usage), mark)
    yield DONE


def _whole(texts: list[tuple[str, str]], head: dict[str, Any], usage: dict[str, Any]) -> bytes:
    nothing = dict.fromkeys(("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": finish, **nothing}
        for index, (text, finish) in enumerate(texts)
    ]
    return encode(
        {
            **head,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT.decode(),
            "usage": {**usage, "prompt_tokens_details": None, "completion_tokens_details": None},
            **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics")),
        }
    )

"""Text completions of the demo engine as the public API has them, and as llama-server writes them.

A prompt is answered as a user's message would be. Pure; knows neither routes nor errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from flm.demo.chat import Asked, Message, Turn, turn
from flm.demo.directives import Directives

encode = msgspec.json.Encoder().encode


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class TextBody(msgspec.Struct):
    """A request to /v1/completions, as far as the demo engine looks at it. Unknown fields are ignored."""

    prompt: str | list[str | int | list[int]]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None


def turns(body: TextBody, model: str, prompts: Sequence[str], preset: Directives | None, choices: int) -> list[Turn]:
    """What is said, prompt by prompt, each `choices` times. Raises DirectiveError."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [
        turn(Asked(model=model, messages=[Message("user", prompt)], max_tokens=body.max_tokens, stop=stop), preset)
        for prompt in prompts
        for _ in range(choices)
    ]


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def spoken(said: Sequence[Turn], choices: int) -> tuple[int, int]:
    """Tokens of the prompts, and of what is said to them."""
    return sum(one.prompt_tokens for one in said) // choices, sum(one.completion_tokens for one in said)


Choices = list[dict[str, Any]]
Counts = tuple[int, int]
Frame = Callable[[Choices, Counts | None], dict[str, Any]]
"""Writes an object around its choices, with usage or without."""


def plain(name: str, created: int, model: str, choices: Choices, counts: Counts | None) -> dict[str, Any]:
    """An object as the public API has it."""
    written: dict[str, Any] = {"id": name, "object": "text_completion", "created": created, "model": model}
    written["choices"] = choices
    if counts is not None:
        prompt, said = counts
        written["usage"] = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return written


def stream(said: Sequence[Turn], frame: Frame, error: bytes, counts: Counts | None, *, beside: bool) -> Iterator[bytes]:
    """The events, one for each chunk on the wire; `error` is the event of a failure.

    `counts`: the usage, None if there is none. `beside`: it stands in the chunk that ends the text, as llama-server has
    it, and not in one of its own.
    """
    for index, one in enumerate(said):
        limit = one.directives.error
        for number, piece in enumerate(one.pieces):
            if number == limit:
                yield error
                return
            yield _event(frame([_choice(index, piece, None)], None))
        if limit is not None:
            yield error
            return
        if one.directives.quiet:
            return
        yield _event(frame([_choice(index, "", one.finish)], counts if beside else None))
    if counts and not beside:
        yield _event(frame([], counts))
    yield b"data: [DONE]\n\n"


def _event(written: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % encode(written)


def whole(said: Sequence[Turn], frame: Frame, counts: Counts) -> bytes:
    """The one object of an answer that does not stream."""
    return encode(frame([_choice(index, one.text(), one.finish) for index, one in enumerate(said)], counts))

"""Text completions on the wire: what a request must look like, and answers as OpenAI's clients read them.

Everything of a chunk that does not change within a stream is rendered once, as in `chunks`. Texts come in as JSON
strings and are copied, never decoded. Log probabilities have a shape of their own here: parallel lists instead of one
object for each token. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from flm.wire.chat import Choices, Integer, invalid
from flm.wire.chunks import Logprob, Usage

Raw = msgspec.Raw

_encoder = msgspec.json.Encoder()


class CompletionParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a completion request that FLM knows; null counts as absent, but for `prompt`."""

    prompt: str | tuple[Raw, ...]
    suffix: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=2_147_483_647)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=2_147_483_647)] | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Raw] | tuple[Raw, ...] | None = None
    user: str | None = None


def check_bounds(wanted: CompletionParameters) -> None:
    """Raises INVALID_REQUEST for what no engine could answer.

    No token at all can only be asked for together with `echo`, which then gives the prompt back.
    """
    if wanted.max_tokens == 0 and not wanted.echo:
        raise invalid("`max_tokens` must be at least 1, or `echo` true", "max_tokens")
    if wanted.best_of is not None and wanted.n is not None and wanted.best_of < wanted.n:
        raise invalid(f"`best_of` ({wanted.best_of}) must not be less than `n` ({wanted.n})", "best_of")


class Logprobs(msgspec.Struct, frozen=True):
    """The log probabilities of a text; the lists run in parallel. Offsets are characters from the text's start."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class LogprobWriter:
    """Log probabilities of one choice's tokens, piece by piece.

    `top`: how many alternatives were asked for; with 0 there is only the token that was taken.
    """

    __slots__ = ("_offset", "_top")

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0

    def next(self, tokens: Sequence[Logprob]) -> Logprobs:
        """The tokens that follow those of the call before."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        alternatives = [
            {token.token: token.logprob, **{each.token: each.logprob for each in token.top_logprobs}}
            for token in tokens
        ]
        return Logprobs(
            [token.token for token in tokens],
            [token.logprob for token in tokens],
            alternatives if self._top else None,
            offsets,
        )


class _Choice(msgspec.Struct, frozen=True):
    text: Raw
    index: int
    logprobs: Logprobs | None
    finish_reason: str


class _Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage


class CompletionWriter:
    """The chunks of one stream: one id, one time, one model, one choice. Each method returns one whole event."""

    __slots__ = ("_finish", "_head", "_opening")

    def __init__(self, id: str, created: int, model: str, *, include_usage: bool) -> None:  # noqa: A002 - the field's name
        fixed = {"id": id, "object": "text_completion", "created": created, "model": model}
        self._opening = b"data: " + _encoder.encode(fixed)[:-1] + b',"choices":['
        self._head = self._opening + b'{"text":'
        # Asked for usage, OpenAI says `"usage":null` on every chunk but the last.
        self._finish = b"]}\n\n" if not include_usage else b'],"usage":null}\n\n'

    def text(self, text: bytes, logprobs: Logprobs | None = None) -> bytes:
        """A piece of the text, which is a JSON string."""
        values = b"null" if logprobs is None else _encoder.encode(logprobs)
        return self._head + text + b',"index":0,"logprobs":' + values + b',"finish_reason":null}' + self._finish

    def finish(self, reason: str) -> bytes:
        end = b'"","index":0,"logprobs":null,"finish_reason":"' + reason.encode() + b'"}'
        return self._head + end + self._finish

    def usage(self, counts: Usage) -> bytes:
        return self._opening + b'],"usage":' + _encoder.encode(counts) + b"}\n\n"


def completion(
    id: str,  # noqa: A002 - the field's name
    created: int,
    model: str,
    text: bytes,
    finish_reason: str,
    counts: Usage,
    logprobs: Logprobs | None,
) -> bytes:
    """The whole answer to a request that did not stream; `text` is a JSON string."""
    choice = _Choice(Raw(text), 0, logprobs, finish_reason)
    return _encoder.encode(_Completion(id, "text_completion", created, model, [choice], counts))

"""A text completion by Ollama's `/api/generate`: the request in its words, and its answer in OpenAI's.

Decisions: the prompt goes `raw`, past the model's template, since a completion continues the very text it is given;
only with a `suffix` the template is needed, which then says how the model is asked to fill in. `truncate` is sent as
false: a prompt that is too long would be cut in silence (0.34.4 refuses then; 0.11.4 knows no such field and cuts). An
empty prompt would only load the model, so it is refused. Texts are copied as the JSON strings they came as.

Does not know how an Ollama is found (`ollama`), nor its chat.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.ollama_options import Options, options
from flm.engines.ollama_table import COMPLETION_TABLE
from flm.engines.refusals import reported, unreadable
from flm.engines.translation import LineStream, WholeAnswer, unfinished
from flm.wire.chat import MALFORMED, QUOTE, first_byte, invalid, parameters
from flm.wire.chunks import DONE, Logprob, Usage, usage
from flm.wire.completions import (
    CompletionParameters,
    CompletionWriter,
    Logprobs,
    LogprobWriter,
    check_bounds,
    completion,
)
from flm.wire.framing import readable
from flm.wire.inputs import inputs

Raw = msgspec.Raw
UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType

MOST_LOGPROBS: Final = 20  # alternatives for each token; more are a 400 of Ollama's own
_EMPTY: Final = b'""'
_Count = Annotated[int, msgspec.Meta(ge=0)]


class NativeCompletion(CompletionParameters, frozen=True, kw_only=True):
    """A completion request with the extra fields that Ollama's users write into it."""

    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    num_ctx: int | None = None
    keep_alive: str | int | float | None = None


class _Request(msgspec.Struct, frozen=True, omit_defaults=True):
    model: str
    prompt: Raw
    stream: bool
    truncate: bool
    raw: bool | None = None
    suffix: str | None = None
    options: Options | None = None
    keep_alive: str | int | float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _Line(msgspec.Struct, gc=False):
    """One line of a stream, or the whole answer. Counts that are 0 are left out by the engine."""

    response: Raw | UnsetType = UNSET
    done: bool = False
    done_reason: str | None = None
    error: Raw | UnsetType = UNSET
    logprobs: list[Logprob] | None = None
    prompt_eval_count: _Count = 0
    prompt_eval_cached_count: _Count | None = None
    eval_count: _Count = 0


_line = msgspec.json.Decoder(_Line)
_texts = msgspec.json.Decoder(list[Raw])
_encoder = msgspec.json.Encoder()


def generate(call: Call) -> tuple[UpstreamRequest, tuple[Change, ...], int]:
    """`/api/generate` for this call, what could not be passed on, and how many alternatives of each token are wanted.

    Raises RequestError.
    """
    wanted = parameters(call.peek.fields, NativeCompletion)
    check_bounds(wanted)
    inputs(wanted.prompt, "prompt")
    decided = COMPLETION_TABLE.decide(call)
    if decided.changes:
        wanted = parameters(decided.fields, NativeCompletion)
    top = wanted.logprobs
    if top is not None and top > MOST_LOGPROBS:
        raise invalid(f"`logprobs` must be from 0 to {MOST_LOGPROBS} for this engine", "logprobs")
    request = _Request(
        call.model,
        _prompt(decided.fields["prompt"]),
        call.peek.stream,
        truncate=False,
        raw=None if wanted.suffix else True,
        suffix=wanted.suffix or None,
        options=options(wanted, wanted.max_tokens),
        keep_alive=wanted.keep_alive,
        logprobs=None if top is None else True,
        top_logprobs=top or None,
    )
    return UpstreamRequest("/api/generate", _encoder.encode(request)), decided.told(), top or 0


def _prompt(given: Raw) -> Raw:
    """The one text of a prompt, as JSON."""
    text = given if first_byte(given) == QUOTE else _texts.decode(given)[0]
    if bytes(text) == _EMPTY:
        raise invalid("`prompt` is empty: this engine can only continue a text", "prompt")
    return text


class _Pieces:
    """What the lines of one answer say."""

    __slots__ = ("_logprobs",)

    def __init__(self, top: int) -> None:
        self._logprobs = LogprobWriter(top)

    def line(self, data: bytes) -> tuple[_Line, bytes, Logprobs | None]:
        """A line, its text as a JSON string, its log probabilities. Raises RequestError, or what the line reports."""
        try:
            line = _line.decode(readable(data))
        except MALFORMED:
            raise unreadable("a line of a completion", data) from None
        if not isinstance(line.error, UnsetType):
            raise reported(bytes(line.error), "prompt")
        if isinstance(line.response, UnsetType) or first_byte(line.response) != QUOTE:
            raise unreadable("a line of a completion", data)
        return line, bytes(line.response), self._logprobs.next(line.logprobs) if line.logprobs else None


def _finish_reason(line: _Line) -> str:
    return "length" if line.done_reason == "length" else "stop"


def _usage(line: _Line) -> Usage:
    return usage(line.prompt_eval_count, line.eval_count, line.prompt_eval_cached_count)


class TextStream(LineStream):
    """A streamed completion."""

    long_field = "prompt"

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, top: int) -> None:
        super().__init__(request, changes)
        self._include_usage = call.peek.include_usage
        self._chunks = CompletionWriter(
            call.response_id, call.created, call.peek.model, include_usage=call.peek.include_usage
        )
        self._pieces = _Pieces(top)

    def _line(self, data: bytes, out: bytearray) -> None:
        line, text, logprobs = self._pieces.line(data)
        if text != _EMPTY or logprobs is not None:
            out += self._chunks.text(text, logprobs)
        if line.done:
            out += self._chunks.finish(_finish_reason(line))
            if self._include_usage:
                out += self._chunks.usage(_usage(line))
            out += DONE
            self._complete = True


class TextAnswer(WholeAnswer):
    """A completion in one object."""

    long_field = "prompt"

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, top: int) -> None:
        super().__init__(request, changes)
        self._call = call
        self._pieces = _Pieces(top)

    def _whole(self, body: bytes) -> bytes:
        line, text, logprobs = self._pieces.line(body)
        if not line.done:
            raise unfinished()
        call = self._call
        return completion(
            call.response_id, call.created, call.peek.model, text, _finish_reason(line), _usage(line), logprobs
        )

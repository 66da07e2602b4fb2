"""Text completions of engines that speak OpenAI's own format, as they go to the client.

As in `passed`, and besides: log probabilities that come in the shape of chat's get the shape of the API, and usage goes
in a chunk of its own. Knows the format, but no engine.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.passed import PassedAnswer, PassedStream, Top, fields_of, is_array, is_empty, items_of, says_something
from flm.engines.refusals import unreadable
from flm.errors import UpstreamProtocolError
from flm.wire.chat import BRACE, MALFORMED, first_byte
from flm.wire.chunks import Logprob
from flm.wire.completions import CompletionParameters, LogprobWriter
from flm.wire.framing import Event

Raw = msgspec.Raw
UNSET = msgspec.UNSET
MAX_CHOICES: Final = 4096  # of one answer, each with the length of its text so far: prompts times `n`

_encoder = msgspec.json.Encoder()


class PassedTextStream(PassedStream):
    """A streamed text completion."""

    long_field = "prompt"

    def __init__(
        self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, wanted: CompletionParameters
    ) -> None:
        super().__init__(request, changes, call)
        self._choices = TextChoices(wanted.logprobs or 0)
        # Usage belongs in a chunk of its own, unless it was asked for in each of them (an extension of some engines).
        options = bytes(call.peek.fields.get("stream_options", b""))
        self._one_usage = self._include_usage and b"continuous_usage_stats" not in options
        self._usage: dict[str, Raw] | None = None

    def _pass_chunk(self, event: Event, out: bytearray) -> None:
        # A stream of several prompts is opened with it by llama.cpp (seen on the tree in llama-cpp-python 0.3.36).
        if event.data != b"null":
            super()._pass_chunk(event, out)

    def _mended(self, data: bytes, top: Top, *, unasked: bool) -> dict[str, Raw] | None:
        choices = self._choices.mended(bytes(top.choices))  # type: ignore[arg-type]  # an array, as its caller has seen
        early = self._one_usage and says_something(top.usage)
        if early and is_empty(top.choices):
            self._usage, early = None, False
        if choices is None and not unasked and not early:
            return None
        fields = fields_of.decode(data)
        if choices is not None:
            fields["choices"] = choices
        if early:
            self._usage = {**fields, "choices": Raw(b"[]")}
            fields["usage"] = Raw(b"null")
        elif unasked:
            del fields["usage"]
        return fields

    def _last(self) -> bytes:
        if self._usage is None:
            return b""
        steady = self._constants.differing(self._usage.get("id", UNSET), self._usage.get("created", UNSET)) or {}
        return b"data: " + self._model.anew({**self._usage, **steady}) + b"\n\n"


class TextChoices:
    """The choices of a text completion, whose log probabilities some engines give in the shape of chat's."""

    __slots__ = ("_top", "_writers")

    def __init__(self, top: int) -> None:
        self._top = top
        self._writers: dict[int, LogprobWriter] = {}

    def mended(self, choices: bytes) -> Raw | None:
        """`choices` in the API's shape; None if they are so already. Raises UpstreamProtocolError."""
        if b'"content"' not in choices:
            return None
        try:
            found = items_of.decode(choices)
            changed = [self._mend(choice) for choice in found]
        except MALFORMED:
            raise unreadable("choices of a completion", choices) from None
        return Raw(_encoder.encode(found)) if any(changed) else None

    def _mend(self, choice: dict[str, Raw]) -> bool:
        given = choice.get("logprobs")
        if given is None or first_byte(given) != BRACE:
            return False
        tokens = _logprobs.decode(given).content
        if tokens is None:
            return False
        index = _index.decode(choice.get("index", b"0"))
        if index not in self._writers and len(self._writers) >= MAX_CHOICES:
            raise UpstreamProtocolError(f"the engine numbers more than {MAX_CHOICES} choices")
        writer = self._writers.setdefault(index, LogprobWriter(self._top))
        choice["logprobs"] = Raw(_encoder.encode(writer.next(tokens)))
        return True


class _ChatLogprobs(msgspec.Struct):
    content: list[Logprob] | None = None


_logprobs = msgspec.json.Decoder(_ChatLogprobs)
_index = msgspec.json.Decoder(int)


class PassedText(PassedAnswer):
    """A whole text completion."""

    long_field = "prompt"

    def __init__(
        self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, wanted: CompletionParameters
    ) -> None:
        super().__init__(request, changes, call)
        self._choices = TextChoices(wanted.logprobs or 0)

    def _mended(self, body: bytes, top: Top) -> dict[str, Raw] | None:
        if not is_array(top.choices):
            raise unreadable("a text completion", body)
        choices = self._choices.mended(bytes(top.choices))  # type: ignore[arg-type]  # an array, as seen above
        return None if choices is None else {**fields_of.decode(body), "choices": choices}

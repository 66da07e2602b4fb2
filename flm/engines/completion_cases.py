"""The rows of the table for text completions: every parameter of OpenAI's API, and the values of it that matter.

The list follows the official client (openai-python 3.54, `CompletionCreateParamsBase`); a test demands that it is
whole. Beside it stand the rules that hold for all engines. Knows no engine.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.engines.capabilities import Act, Case, Rule, Rules
from flm.engines.chat_cases import NO_EMPTY_STOP, empty_stop, equals, is_not, outside
from flm.wire.chat import BRACKET, QUOTE

Raw = msgspec.Raw
_BLANKS: Final = b" \t\r\n"

_items = msgspec.json.Decoder(list[Raw])


def of_token_ids(raw: Raw) -> bool:
    """Whether a prompt or an input is token ids, or arrays of them."""
    return memoryview(raw)[0] == BRACKET and bytes(raw)[1:].lstrip(_BLANKS)[:1] not in (b'"', b"]")


def of_several_texts(raw: Raw) -> bool:
    if memoryview(raw)[0] != BRACKET:
        return False
    items = _items.decode(raw)
    return len(items) > 1 and memoryview(items[0])[0] == QUOTE


COMPLETION_CASES: Final[tuple[Case, ...]] = (
    Case("prompt of token ids", "prompt", [1, 2], of_token_ids),
    Case("prompt of several texts", "prompt", ["Hello", "Bye"], of_several_texts),
    Case("prompt", "prompt", "Hello"),
    Case("suffix", "suffix", "the end", is_not("")),
    Case("temperature outside 0..2", "temperature", 3.5, outside(0, 2)),
    Case("temperature", "temperature", 0.5),
    Case("top_p", "top_p", 0.9),
    Case("max_tokens", "max_tokens", 16),
    Case("n > 1", "n", 2, is_not(1)),
    Case("best_of > 1", "best_of", 2, is_not(1)),
    Case("echo: true", "echo", True, equals(True)),
    Case("logprobs: 0", "logprobs", 0, equals(0)),
    Case("logprobs", "logprobs", 2),
    Case("an empty stop", "stop", "", empty_stop),
    Case("stop", "stop", ["END"]),
    Case("seed", "seed", 7),
    Case("presence_penalty", "presence_penalty", 0.5, is_not(0)),
    Case("frequency_penalty", "frequency_penalty", 0.5, is_not(0)),
    Case("logit_bias", "logit_bias", {"50": -100}, is_not({}, [])),
    Case("stream_options", "stream_options", {"include_usage": True}, beside={"stream": True}),
    Case("user", "user", "somebody", is_not("")),
)

COMMON: Final[Rules] = {
    "temperature outside 0..2": (Rule(Act.CLAMP, bounds=(0, 2)),),
    "an empty stop": NO_EMPTY_STOP,
}
"""What holds for every engine."""

LOCAL: Final[Rules] = {**COMMON, "user": (Rule(Act.IGNORED),)}
"""What holds for engines that speak OpenAI's format and are known to take no notice of what only OpenAI itself has."""

"""The rows of the table for embeddings: every parameter of OpenAI's API, and the values of it that matter.

The list follows the official client (openai-python 3.54, `EmbeddingCreateParams`); a test demands that it is whole.
Beside it stand the rules that several engines share. Knows no engine.
"""

from __future__ import annotations

from typing import Final

from flm.engines.capabilities import Act, Case, Rule, Rules
from flm.engines.chat_cases import equals, is_not
from flm.engines.completion_cases import of_token_ids

EMBEDDING_CASES: Final[tuple[Case, ...]] = (
    Case("input of token ids", "input", [1, 2], of_token_ids),
    Case("input", "input", "Hello"),
    Case('encoding_format "base64"', "encoding_format", "base64", equals("base64")),
    Case("encoding_format", "encoding_format", "float"),
    Case("dimensions", "dimensions", 2),
    Case("user", "user", "somebody", is_not("")),
)

NO_DIMENSIONS: Final = (
    Rule(Act.REFUSE, "this engine cannot shorten embeddings: leave `dimensions` out and take them as long as they are"),
)

LOCAL: Final[Rules] = {"user": (Rule(Act.IGNORED),)}
"""What holds for engines that speak OpenAI's format and are known to take no notice of what only OpenAI itself has."""

"""One client request as every dialect gets it, and what a dialect says of a parameter that it does not heed.

Knows the routes that are translated, and nothing of engines: neither what they are asked nor what they answer.
"""

from __future__ import annotations

import enum

import msgspec

from flm.wire.openai import Peek


class Endpoint(enum.Enum):
    """The OpenAI routes that are translated; the value is the path of the same name at an OpenAI server."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


class Call(msgspec.Struct, frozen=True):
    """One client request, peeked once.

    `model` is the engine's own name of the model; `peek.model` is what the caller wrote and what the answer repeats.
    `capabilities` are those of the model, empty when unknown. `response_id` and `created` (Unix seconds) are used
    where the engine has none of its own.
    """

    endpoint: Endpoint
    peek: Peek
    model: str
    response_id: str
    created: int
    engine_version: str | None = None
    capabilities: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """One parameter that does not have the effect asked for: `action` is `clamped`, `changed`, `dropped` or `ignored`.

    Rendered in `x-flm-warnings` as `parameter;action=…;value=…` (RFC 9651 list).
    """

    parameter: str
    action: str
    value: str | int | float | None = None

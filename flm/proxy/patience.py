"""What a client is told, beside the fact, when an engine was late: which engine and model, what may be going on, and
which limit an operator can raise.

Does not know when an engine is late (`upstream` does), nor what the limits are: only which setting each comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flm.snapshot import Engine

_REASONS: Final[Mapping[str, str]] = {
    "connect": "it may be down, or its machine unreachable",
    "first_byte": "it may still be loading the model, or be busy with other requests",
    "between_bytes": "it may hang, or be short of memory",
    "total": "the answer may just be long",
}


def advice(limit: str, engine: Engine, model: str | None = None) -> str:
    """The rest of the sentence behind what happened; `limit` as in EngineTimeoutError."""
    own = getattr(engine, f"{limit}_timeout") is not None
    setting = f"engine.{limit}_timeout_seconds"
    if own:
        setting = f"this engine's own --{limit.replace('_', '-')}-timeout (`flm engines add`), in place of {setting}"
    asked = f"engine {engine.id!r}" if model is None else f"engine {engine.id!r}, model {model!r}"
    return f" ({asked}); {_REASONS[limit]}. What sets this limit: {setting}"

"""What is checked and mended in a request for every engine, before any engine is asked.

Knows the API's own bounds and what a model says it can take in; what only one engine lacks stands in its own file.
"""

from __future__ import annotations

from collections.abc import Collection

from flm.engines.base import Call, Change
from flm.errors import ErrorKind, RequestError
from flm.wire.chat import ChatParameters, modalities

# The capability a model must have for each kind of input, as engines name it in their model lists.
_NEEDED = {"image": "vision", "audio": "audio", "video": "video"}
TEMPERATURE_MIN, TEMPERATURE_MAX = 0, 2


def clamped_temperature(value: float | None) -> tuple[float | None, Change | None]:
    """`temperature` within 0..2, and the change if it was outside."""
    if value is None or TEMPERATURE_MIN <= value <= TEMPERATURE_MAX:
        return value, None
    bound = TEMPERATURE_MAX if value > TEMPERATURE_MAX else TEMPERATURE_MIN
    return bound, Change("temperature", "clamped", bound)


def check_modalities(call: Call, parameters: ChatParameters) -> None:
    """Raises UNSUPPORTED_MODALITIES if the messages hold what the model is known not to take in."""
    if not call.capabilities:
        return  # unknown: the engine will say
    for kind in sorted(modalities(parameters.messages)):
        if _NEEDED[kind] not in call.capabilities:
            message = f"the model {call.peek.model!r} takes no {kind} input"
            raise RequestError(ErrorKind.UNSUPPORTED_MODALITIES, message, param="messages")


def check_response_format(parameters: ChatParameters, known: Collection[str]) -> None:
    """Raises UNSUPPORTED_PARAMETER for a `response_format.type` that is not in `known`."""
    wanted = parameters.response_format
    if wanted is not None and wanted.type not in known:
        message = f"`response_format.type` {wanted.type!r} is not supported; supported: {', '.join(sorted(known))}"
        raise RequestError(ErrorKind.UNSUPPORTED_PARAMETER, message, param="response_format")


def check_tool_choice(parameters: ChatParameters) -> None:
    """Raises INVALID_REQUEST for a `tool_choice` string the API does not have."""
    choice = parameters.tool_choice
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        message = f"`tool_choice` must be none, auto, required or an object, not {choice!r}"
        raise RequestError(ErrorKind.INVALID_REQUEST, message, param="tool_choice")

"""What all dialects need to judge an answer to a probe: its JSON, and whether it is FLM's own.

Knows no engine. FLM in front of engines answers like one of them, so its own mark, the header `server: flm`, is
looked for before anything else; otherwise a proxy would detect itself and forward in a circle.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from flm.engines.base import Answer, Identity, ListingError, Verdict
from flm.wire.chat import MALFORMED

MAX_MODELS: Final = 10_000  # entries of one engine's list that are looked at; each costs memory in every worker

_Shape = TypeVar("_Shape")

RECOGNISED = Verdict.RECOGNISED
FOREIGN = Verdict.FOREIGN


def dismissed(answer: Answer) -> Identity | None:
    """The verdict on an answer that no engine gave: none at all, or FLM's own."""
    if answer.status == 0:
        return Identity(Verdict.SILENT, detail="nothing answered in time")
    if server(answer) == b"flm":
        return Identity(FOREIGN, detail="FLM itself answers there")
    return None


def server(answer: Answer) -> bytes:
    """The product in the header `server`, lower case, without its version."""
    return answer.headers.get(b"server", b"").partition(b"/")[0].strip().lower()


def foreign(detail: str) -> Identity:
    return Identity(FOREIGN, detail=detail)


def shaped(answer: Answer, decoder: msgspec.json.Decoder[_Shape]) -> _Shape | None:
    """The body of a 200 answer if it has the decoder's shape, else None."""
    return body_of(answer, decoder) if answer.status == 200 else None


def body_of(answer: Answer, decoder: msgspec.json.Decoder[_Shape]) -> _Shape | None:
    """The body of an answer with any status if it has the decoder's shape, else None."""
    try:
        return decoder.decode(answer.body)
    except MALFORMED:
        return None


def listed(answer: Answer, decoder: msgspec.json.Decoder[_Shape], path: str) -> _Shape:
    """The model list in `answer`. Raises ListingError that says what came instead."""
    if answer.status == 0:
        raise ListingError(f"{path} was not answered in time")
    if answer.status in (401, 403):
        raise ListingError(f"{path} refused FLM's credentials ({answer.status})")
    found = shaped(answer, decoder)
    if found is None:
        raise ListingError(f"{path} answered {answer.status} without a model list")
    return found

"""Any server that speaks OpenAI's API and that the operator registered by hand.

It is never looked for: no default address, no program. Knows only `/v1/models`, with the extra fields common servers
add to it, and passes everything else through.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from flm.engines.base import Identifying, Identity, Listing, Probe, Verdict
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES, COMMON
from flm.engines.passthrough import PassThrough
from flm.engines.probing import MAX_MODELS, RECOGNISED, body_of, dismissed, foreign, listed, shaped
from flm.snapshot import Model

Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Entry(msgspec.Struct, frozen=True):
    id: Name
    created: int | None = None
    max_model_len: int | None = None
    context_length: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Entry] | None


class _Error(msgspec.Struct, frozen=True):
    error: msgspec.Raw


_models = msgspec.json.Decoder(_Models)
_error = msgspec.json.Decoder(_Error)
_PATH = "/v1/models"


class OpenAI(PassThrough):
    kind = "openai"
    label = "OpenAI-compatible server"
    # A common server knows this one beside the API's own three; a server refuses what it lacks.
    chat_table = Table(CHAT_CASES, {**COMMON, "response_format structural_tag": (Rule(Act.PASS),)})

    def identify(self) -> Identifying:
        answer = yield Probe(_PATH)
        out = dismissed(answer)
        if out is not None:
            return out
        if shaped(answer, _models) is not None:
            return Identity(RECOGNISED)
        if answer.status in (429, 503) and body_of(answer, _error) is not None:
            return Identity(Verdict.BUSY, detail=f"{_PATH} answered {answer.status}")
        if answer.status in (401, 403):
            return foreign(f"{_PATH} refused FLM's credentials ({answer.status})")
        return foreign(f"{_PATH} answered {answer.status} without a model list")

    def models(self) -> Listing:
        found = listed((yield Probe(_PATH)), _models, _PATH)
        return tuple(
            Model(entry.id, context_length=entry.max_model_len or entry.context_length, created=entry.created or 0)
            for entry in (found.data or ())[:MAX_MODELS]
        )


DIALECT = OpenAI()

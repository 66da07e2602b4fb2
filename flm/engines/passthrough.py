"""Engines that speak OpenAI's own format: the request passes with another model id, and so does the answer.

What becomes of each parameter is said by tables; a request's values are copied as they came. What happens to the
answer stands in `passed`.

Knows the format, but no engine: what one engine lacks is said by its subclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from flm.engines import chat_cases, completion_cases
from flm.engines.base import DialectDefaults, Translation, UpstreamRequest
from flm.engines.call import Call, Endpoint
from flm.engines.capabilities import Table
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES
from flm.engines.passed import PassedAnswer, PassedStream
from flm.engines.passed_text import PassedText, PassedTextStream
from flm.engines.passed_vectors import PassedVectors
from flm.engines.requests import check_chat, check_task
from flm.wire.chat import ChatParameters, modalities, parameters
from flm.wire.completions import CompletionParameters, check_bounds
from flm.wire.embeddings import EmbeddingParameters, embedded
from flm.wire.inputs import inputs

_encoder = msgspec.json.Encoder()


class PassThrough(DialectDefaults):
    """The half of a dialect that translates; a subclass adds how its engine is found, and what it lacks.

    `embeds_unlisted`: whether a model may make embeddings that is not known to have the capability.
    """

    chat_table: Table = Table(chat_cases.CHAT_CASES, chat_cases.COMMON)
    completion_table: Table = Table(COMPLETION_CASES, completion_cases.COMMON)
    embedding_table: Table = Table(EMBEDDING_CASES, {})
    embeds_unlisted: bool = False
    stream_type: type[PassedStream] = PassedStream  # what mends an answer on its way back
    answer_type: type[PassedAnswer] = PassedAnswer
    text_stream_type: type[PassedTextStream] = PassedTextStream
    text_type: type[PassedText] = PassedText

    def begin(self, call: Call) -> Translation:
        """See `Dialect.begin`."""
        check_task(call, embeds_unlisted=self.embeds_unlisted)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return self._embed(call)
        if call.endpoint is Endpoint.COMPLETIONS:
            return self._complete(call)
        chat = parameters(call.peek.fields, ChatParameters)
        check_chat(chat)
        decided = self.chat_table.decide(call, modalities(chat.messages))
        request = self._request(call, decided.fields)
        changes = decided.told()
        if call.peek.stream:
            return self.stream_type(request, changes, call)
        return self.answer_type(request, changes, call)

    def _complete(self, call: Call) -> Translation:
        wanted = parameters(call.peek.fields, CompletionParameters)
        check_bounds(wanted)
        inputs(wanted.prompt, "prompt")
        decided = self.completion_table.decide(call)
        request = self._request(call, decided.fields)
        changes = decided.told()
        if call.peek.stream:
            return self.text_stream_type(request, changes, call, wanted)
        return self.text_type(request, changes, call, wanted)

    def _embed(self, call: Call) -> Translation:
        wanted = parameters(call.peek.fields, EmbeddingParameters)
        given = embedded(wanted.input)
        decided = self.embedding_table.decide(call)
        request = self._request(call, decided.fields)
        return PassedVectors(request, decided.told(), call, wanted, given.count)

    def _request(self, call: Call, fields: Mapping[str, Any]) -> UpstreamRequest:
        return UpstreamRequest(call.endpoint.value, _encoder.encode({**fields, "model": call.model}))

"""Nothing that a caller asks for is lost in silence, whatever the dialect: part of the contract of `flm.engines.base`.

Every parameter of the API, and every class of its values: it reaches the engine in some form, or the caller is told
that it does not, or the request is refused. Whether the form is right is checked elsewhere, for the engines that come
with FLM (`test_parameters`).
"""

from __future__ import annotations

from typing import Any

import pytest

from flm.engines.base import Dialect, Translation
from flm.engines.call import Call, Endpoint
from flm.engines.capabilities import Case
from flm.engines.chat_cases import CHAT_CASES
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from tests.support.belonging import PLAIN, begun
from tests.support.translating import call

CASES = {
    Endpoint.CHAT: CHAT_CASES,
    Endpoint.COMPLETIONS: COMPLETION_CASES,
    Endpoint.EMBEDDINGS: EMBEDDING_CASES,
}
# They ask for what happens anyway, or for what FLM does itself with the answer: nothing need reach the engine.
NEEDS_NOTHING = frozenset(
    {
        "tools: []",
        'tool_choice "auto"',
        "response_format text",
        'reasoning_effort "none"',
        "stream_options",
        'encoding_format "base64"',
        "encoding_format",
    }
)


def asked(case: Case, endpoint: Endpoint) -> Call:
    value = {} if "." in case.parameter else {case.parameter: case.example}
    return call({**PLAIN[endpoint], **case.beside, **value}, endpoint=endpoint)


def without(case: Case, endpoint: Endpoint) -> Call:
    """The same request, but for what the case asks for."""
    fields: dict[str, Any] = {**PLAIN[endpoint], **case.beside}
    if case.parameter == "messages":
        parts = case.example[0]["content"]
        fields["messages"] = [{"role": "user", "content": parts[:1]}]
    elif case.modality:
        fields["messages"] = [{"role": "user", "content": each["content"]} for each in fields["messages"]]
    return call(fields, endpoint=endpoint)


def is_told(translation: Translation, case: Case) -> bool:
    return any(change.parameter == case.parameter for change in translation.changes)


def is_lost(dialect: Dialect, case: Case, endpoint: Endpoint) -> bool:
    """Whether the engine gets nothing of it and the caller is not told."""
    try:
        translation = dialect.begin(asked(case, endpoint))
    except RequestError:
        return False
    return not is_told(translation, case) and translation.request == dialect.begin(without(case, endpoint)).request


@pytest.mark.parametrize(
    ("kind", "endpoint", "case"),
    [
        pytest.param(kind, endpoint, case, id=f"{kind}-{endpoint.name.lower()}-{case.label}")
        for kind, dialect in DIALECTS.items()
        for endpoint, cases in CASES.items()
        for case in cases
        if begun(dialect, endpoint) is not None and case.label not in NEEDS_NOTHING
    ],
)
def test_nothing_is_lost_in_silence(kind: str, endpoint: Endpoint, case: Case) -> None:
    assert not is_lost(DIALECTS[kind], case, endpoint)


class Forgetful:
    """A dialect that always sends the same: the negative control."""

    def begin(self, _call: Call) -> Translation:
        return DIALECTS["openai"].begin(call(PLAIN[Endpoint.CHAT]))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.label) for case in CHAT_CASES])
def test_what_is_lost_is_seen(case: Case) -> None:
    forgetful: Any = Forgetful()
    assert is_lost(forgetful, case, Endpoint.CHAT)

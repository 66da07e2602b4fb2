"""The law: what a recorded real engine said is what a client of FLM reads, word for word.

Every recorded answer to chat, completions or embeddings, errors included, goes through the translation of each dialect
that speaks with this engine; the OpenAI SDK reads the result. Text, thoughts, calls, finish reasons, token
probabilities, usage and vectors must be those that an independent reading of the recording finds. Damage to what the
translation gets must be noticed: that is the negative control.
"""

from __future__ import annotations

import base64
import json
import re
import struct

import pytest

from flm.engines.call import Endpoint
from flm.engines.registry import DIALECTS
from tests.support.belonging import Recorded, belongs, folders, packed, recorded
from tests.support.reading import Reading, client_reading, engine_reading
from tests.support.translating import every_way

CASES = [one for kind in DIALECTS for one in recorded(kind)]
ALL = [pytest.param(one, id=one.id) for one in CASES]


def said(case: Recorded) -> Reading:
    """What the engine said, from the recording; that it took no notice of what was asked, a client must be told."""
    wanted = case.call.peek.fields.get("dimensions")
    if wanted is not None and case.exchange.status == 200:
        answer = json.loads(case.exchange.body)
        vector = (answer.get("embeddings") or [item["embedding"] for item in answer["data"]])[0]
        size = len(base64.b64decode(vector)) // 4 if isinstance(vector, str) else len(vector)
        if size != json.loads(bytes(wanted)):
            return Reading(failed=400)
    if case.exchange.status == 500 and b'"invalid JSON schema in format"' in case.exchange.body:
        return Reading(failed=400)  # the caller's mistake, says a later version of the engine too
    return engine_reading(
        case.exchange.status,
        case.exchange.body,
        stream=case.call.peek.stream,
        endpoint=case.call.endpoint,
        include_usage=case.call.peek.include_usage or not case.call.peek.stream,
    )


def read(case: Recorded, body: bytes) -> Reading:
    """What a client of FLM reads when the engine answers with `body`, however it is cut."""
    dialect = DIALECTS[case.kind]
    found = every_way(dialect, case.call, case.exchange.status, case.exchange.headers, body)
    return client_reading(
        found, stream=case.call.peek.stream, endpoint=case.call.endpoint, floats=not packed(case.call)
    )


def bare(text: str) -> str:
    """A message without what nesting JSON in JSON adds to it."""
    plain = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text)
    return re.sub(r'[\\"\s]', "", re.sub(r"\\[nt]", "", plain))


def differences(expected: Reading, found: Reading) -> list[str]:
    """What a client reads otherwise than the engine said it."""
    wrong = []
    for name in ("choices", "usage", "failed"):
        if getattr(expected, name) != getattr(found, name):
            wrong.append(f"{name}: the engine said {getattr(expected, name)}, the client read {getattr(found, name)}")
    if [single(vector) for vector in expected.vectors] != [single(vector) for vector in found.vectors]:
        wrong.append("the vectors differ")
    if found.message and expected.message:
        message = found.message.partition("own credentials (")[2].partition("): ")[2] or found.message
        if bare(message) not in bare(expected.message) and "without a reason" not in message:
            wrong.append(f"the engine did not say {found.message!r}")
    return wrong


def single(vector: list[float]) -> bytes:
    """The vector in the precision it travels in as base64."""
    return struct.pack(f"<{len(vector)}f", *vector)


@pytest.mark.parametrize("case", ALL)
def test_a_client_reads_what_the_engine_said(case: Recorded) -> None:
    assert differences(said(case), read(case, case.exchange.body)) == []


NOTABLE = [one for one in CASES if one.exchange.status == 200 and said(one).failed is None]


@pytest.mark.parametrize("kind", DIALECTS)
def test_the_law_holds_of_something(kind: str) -> None:
    """A dialect with recordings has them judged: answers, streams, and errors, one each at least."""
    if not any(belongs(kind, folder) for folder in folders()):
        return
    mine = [one for one in CASES if one.kind == kind]
    assert any(one.call.peek.stream and one.exchange.status == 200 for one in mine)
    assert any(not one.call.peek.stream and one.exchange.status == 200 for one in mine)
    assert any(one.exchange.status >= 400 for one in mine)


def test_every_recorded_engine_has_a_dialect() -> None:
    assert [folder for folder in folders() if not any(belongs(kind, folder) for kind in DIALECTS)] == []


@pytest.mark.parametrize("case", [pytest.param(one, id=one.id) for one in NOTABLE])
def test_damage_is_seen(case: Recorded) -> None:
    """Negative control: an answer that ends early, or says another letter or number, is not read as the same."""
    expected, body = said(case), case.exchange.body
    assert differences(expected, read(case, body[: len(body) * 2 // 3])) != []
    other = changed(case, expected)
    if other is not None:
        assert other != body
        assert differences(expected, read(case, other)) != []


def changed(case: Recorded, expected: Reading) -> bytes | None:
    """The answer with one byte of what it says changed; None where it says nothing in clear."""
    if case.call.endpoint is Endpoint.EMBEDDINGS:
        at = re.search(rb'"embeddings?":\s*\[*"?[-.0]*', case.exchange.body)
        assert at is not None
        old = case.exchange.body[at.end() : at.end() + 1]
        return case.exchange.body[: at.end()] + (b"2" if old == b"1" else b"1") + case.exchange.body[at.end() + 1 :]
    words = re.compile(rb'"(?:content|reasoning|reasoning_content|thinking|response|text)":\s*"[^"\\]*?([A-Za-z])')
    at = words.search(case.exchange.body)
    if at is None:
        return None
    new = b"x" if at[1] != b"x" else b"y"
    return case.exchange.body[: at.start(1)] + new + case.exchange.body[at.end(1) :]

"""The report on the first token: it measures what is right, and counts what is wrong."""

from __future__ import annotations

import asyncio

import pytest

from loadtests import first_token
from loadtests.first_token import Added, text_of
from loadtests.stage import ENGINE_MODEL
from tests.support.demo import Demo, demo_engine


def ask(engine: Demo, number: int = 3, model: str = ENGINE_MODEL) -> float | str:
    port = int(engine.url.rsplit(":", 1)[1])
    return asyncio.run(first_token.first_token("127.0.0.1", port, "key", model, number))


def test_the_first_token_is_timed_and_not_the_last() -> None:
    with demo_engine("openai", "--pace", "0.02") as engine:
        took = ask(engine)
        (request,) = engine.requests()
    whole = (request["ended_at"] - request["received_at"]) * 1000
    assert isinstance(took, float)
    assert 0 < took < whole - 200, "some thirty words, 20 ms apart, come after the first"


@pytest.mark.parametrize("fault", ["status=503", "cut=300", "cut=-1", "quiet", "words=3"])
def test_a_wrong_stream_has_no_time(fault: str) -> None:
    with demo_engine() as engine:
        engine.fault("/v1/chat/completions", fault)
        assert isinstance(ask(engine), str)


def test_nobody_there_has_no_time() -> None:
    with demo_engine() as engine:
        pass
    assert "Refused" in str(ask(engine))


def test_the_report() -> None:
    report = Added([1.0] * 50, [3.0] * 50, []).report()
    assert "added p95 2.00 ms (aim 5 ms: reached); 0 of 100 streams wrong" in report
    assert "aim 5 ms: missed" in Added([1.0] * 50, [7.0] * 50, []).report()
    assert "aim 5 ms: missed); 1 of 101 streams wrong" in Added([1.0] * 50, [3.0] * 50, ["cut"]).report()


def test_two_ends_are_not_the_text() -> None:
    assert text_of(b"data: [DONE]\n\ndata: [DONE]\n\n") is None
    assert text_of(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n') == "a"

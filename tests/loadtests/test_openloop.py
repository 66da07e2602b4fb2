"""The load generator sees every way a request can fail, and tells one from the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from loadtests import answers
from loadtests.openloop import Load, Outcome, Tally
from loadtests.stage import MODEL, free_port
from tests.support.demo import Demo, demo_engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Demo]:
    """The engine stands where the proxy would: it serves the model under the name that callers use."""
    with demo_engine("openai", "--model", MODEL) as running:
        yield running


@pytest.fixture(autouse=True)
def engine_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ENGINE_MODEL", MODEL)


def outcomes(engine: Demo, system: str = "", *, port: int | None = None, least: int = 5) -> Tally:
    """A short load of everything: some of each kind, then the end."""
    address = urlsplit(engine.url)

    async def run() -> Tally:
        load = Load("127.0.0.1", port or address.port or 0, "key", fresh=100, reused=100, streams=100, system=system)
        async with load.running() as tally:
            while not all(tally.of(kind) >= least for kind in ("fresh", "reused", "stream")):
                await asyncio.sleep(0)
        return tally

    return asyncio.run(asyncio.wait_for(run(), 60))


def kinds(tally: Tally) -> set[Outcome]:
    return {outcome for _, outcome in tally.counts}


def test_nothing_is_dropped_where_nothing_fails(engine: Demo) -> None:
    engine.clear()
    tally = outcomes(engine, least=20)
    assert (kinds(tally), tally.dropped) == ({Outcome.OK}, 0)
    reused = [one["connection"] for one in engine.requests()]
    assert len(set(reused)) < len(reused), "connections are used again"


@pytest.mark.parametrize(
    ("directives", "outcome"),
    [
        ("cut=-1", Outcome.EMPTY),
        ("cut=-1 end=rst", Outcome.RESET_BEFORE),
        ("cut=40", Outcome.CUT),
        ("cut=40 end=rst", Outcome.RESET_AFTER),
        ("status=503", Outcome.STATUS),
        ("words=7", Outcome.WRONG),
        ("finish=length words=7", Outcome.WRONG),
    ],
)
def test_each_failure_is_told_from_the_others(engine: Demo, directives: str, outcome: Outcome) -> None:
    tally = outcomes(engine, f"demo: {directives}")
    # A reset may overtake the bytes before it.
    assert kinds(tally) <= {outcome, Outcome.RESET_BEFORE} if "rst" in directives else {outcome}
    assert tally.counts["fresh", outcome]
    assert tally.dropped == tally.total
    assert outcome.value in tally.failures[0] or "reset" in tally.failures[0]


def test_a_closed_port_is_refused(engine: Demo) -> None:
    assert kinds(outcomes(engine, port=free_port())) == {Outcome.REFUSED}


def test_silence_is_late(engine: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.openloop.ANSWER_SECONDS", 0.05)
    assert kinds(outcomes(engine, "demo: stall=0")) == {Outcome.LATE}


def test_a_stream_that_ends_without_its_mark_is_wrong(engine: Demo) -> None:
    tally = outcomes(engine, "demo: quiet")
    assert tally.counts["stream", Outcome.WRONG] == tally.of("stream")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b'"id":"one"', b'"id":"two"', "`id` changes"),
        (b"data: [DONE]\n\n", b"", "[DONE] stands 0 times"),
        (b"data: [DONE]\n\n", b"data: [DONE]\n\ndata: [DONE]\n\n", "[DONE] stands 2 times"),
        (b" heard:", b" hears:", "the text is"),
        (b'"finish_reason":"stop"', b'"finish_reason":"length"', "finish reasons are ['length']"),
        (b'"choices"', b'"choice"', "not a stream of chunks"),
    ],
)
def test_the_check_of_a_stream(before: bytes, after: bytes, reason: str) -> None:
    good = stream_of(answers.expected(5))
    assert answers.stream_fault(good, 5) is None
    wrong = good[::-1].replace(before[::-1], after[::-1], 1)[::-1]
    assert wrong != good
    assert reason in (answers.stream_fault(wrong, 5) or "")
    assert "the text is" in (answers.stream_fault(good, 6) or "")


def stream_of(text: str) -> bytes:
    deltas = [f'{{"content":"{piece}"}}' for piece in (text[:5], text[5:])]
    chunks = [f'{{"index":0,"delta":{delta},"finish_reason":null}}' for delta in deltas]
    chunks.append('{"index":0,"delta":{},"finish_reason":"stop"}')
    frame = 'data: {"id":"one","created":1,"model":"' + MODEL + '","choices":[%s]}\n\n'
    return "".join(frame % chunk for chunk in chunks).encode() + b"data: [DONE]\n\n"

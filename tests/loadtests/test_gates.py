"""The gates of `make load`, in seconds: green on a sound proxy, red for one wrong text, one cut stream, one refusal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtests import restart_gate
from loadtests.openloop import Outcome, Tally
from loadtests.restart_gate import Verdict, measure
from loadtests.run import stream_gate
from loadtests.stage import Stage, stage

SECONDS = 6 / 60  # minutes of locust
WRONG_TEXT = "demo: words=5"
CUT_STREAM = "demo: cut=900"


@pytest.fixture(scope="module")
def running() -> Iterator[Stage]:
    with stage() as started:
        yield started


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_gate, "SETTLE_SECONDS", 0.5)


def test_the_stream_gate_is_green_on_a_sound_proxy(running: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stream_gate(running, SECONDS), capsys.readouterr()
    assert ", 0 wrong: passed" in capsys.readouterr().out


@pytest.mark.parametrize("plant", [WRONG_TEXT, CUT_STREAM])
def test_one_planted_error_turns_the_stream_gate_red(
    running: Stage, plant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not stream_gate(running, SECONDS, plant)
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_the_restart_gate_is_green_on_a_sound_proxy(running: Stage, verb: str) -> None:
    verdict = measure(running, verb, 2)
    assert verdict.passed, verdict.report()


@pytest.mark.parametrize("plant", [WRONG_TEXT, CUT_STREAM])
def test_one_planted_error_turns_the_restart_gate_red(running: Stage, plant: str) -> None:
    verdict = measure(running, "reload", 1, system=plant)
    assert not verdict.passed
    assert "FAILED" in verdict.report()
    assert Outcome.WRONG in {outcome for _, outcome in verdict.tally.counts}


def sound() -> Tally:
    tally = Tally()
    for kind in ("fresh", "reused", "stream"):
        tally.add(kind, Outcome.OK)
    return tally


def test_the_verdict() -> None:
    assert Verdict("restart", [0.4, 9.0, 0.5], sound()).passed
    assert not Verdict("restart", [3.0, 9.0, 0.5], sound()).passed
    assert "aim 0.5 s: reached" in Verdict("restart", [0.4], sound()).report()
    dropped = sound()
    dropped.add("fresh", Outcome.REFUSED, "nobody there")
    assert not Verdict("restart", [0.1], dropped).passed
    assert "nobody there" in Verdict("restart", [0.1], dropped).report()
    silent = Tally()
    silent.add("fresh", Outcome.OK)
    assert not Verdict("restart", [0.1], silent).passed, "a kind of request that was never made proves nothing"

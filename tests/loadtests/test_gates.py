"""The gates of `make load`, in seconds: green on a sound proxy, red for one wrong text, one cut stream, one refusal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from loadtests import restart_gate
from loadtests.openloop import Load, Outcome, Tally
from loadtests.restart_gate import Verdict, measure
from loadtests.run import stream_gate
from loadtests.stage import Stage, stage

MINUTES = 5 / 60  # of locust
STREAMS = re.compile(r"streams: (\d+) in 5 s, (\d+) wrong: (passed|FAILED)")
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
    assert stream_gate(running, MINUTES), capsys.readouterr()
    assert seen(capsys.readouterr().out)[1:] == (0, "passed")


@pytest.mark.parametrize("plant", [WRONG_TEXT, CUT_STREAM])
def test_one_planted_error_turns_the_stream_gate_red(
    running: Stage, plant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not stream_gate(running, MINUTES, plant)
    asked, wrong, word = seen(capsys.readouterr().out)
    assert (wrong, word) == (asked // 3, "FAILED"), "those that were planted, and no others"


def seen(printed: str) -> tuple[int, int, str]:
    found = STREAMS.search(printed)
    assert found, printed
    return int(found[1]), int(found[2]), found[3]


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_nobody_notices_a_restart_of_a_sound_proxy(running: Stage, verb: str) -> None:
    """How long it may take is for `make load` to say, which has the machine to itself."""
    verdict = measure(running, verb, 2)
    assert verdict.unnoticed, verdict.report()


@pytest.mark.parametrize("plant", [WRONG_TEXT, CUT_STREAM])
def test_one_planted_error_turns_the_restart_gate_red(running: Stage, plant: str) -> None:
    verdict = measure(running, "reload", 1, system=plant)
    assert not verdict.unnoticed
    assert "FAILED" in verdict.report()
    assert Outcome.WRONG in {outcome for _, outcome in verdict.tally.counts}


def test_a_stop_and_a_start_are_no_restart(running: Stage) -> None:
    """The plain way to restart, which drops requests: the load must see it."""
    address = urlsplit(running.url)
    load = Load(address.hostname or "", address.port or 0, running.key)

    async def stop_and_start() -> Tally:
        async with load.running() as tally:
            await asyncio.to_thread(running.flm.run, "proxy", "stop", "--now")
            await asyncio.to_thread(running.flm.run, "proxy", "start", "--port", str(address.port))
        return tally

    tally = asyncio.run(stop_and_start())
    assert tally.dropped
    assert tally.counts["fresh", Outcome.REFUSED]
    assert not Verdict("restart", [0.1], tally).passed


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

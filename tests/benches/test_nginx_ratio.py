"""The bench against nginx can fail: for a ratio, for memory, for a wrong answer, for a missing nginx."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys

import pytest

from benches import nginx_ratio
from benches.client import Target, WrongAnswerError, round_of
from benches.nginx_ratio import Result, cpu_seconds, resident_mb, tree
from loadtests.stage import ENGINE_MODEL, free_port
from tests.support.demo import Demo, demo_engine


def target(engine: Demo, model: str = ENGINE_MODEL) -> Target:
    return Target("127.0.0.1", int(engine.url.rsplit(":", 1)[1]), model)


def test_a_round_asks_exactly_so_often_over_so_many_connections() -> None:
    with demo_engine() as engine:
        asyncio.run(round_of(target(engine), 11, 4))
        seen = engine.requests("/v1/chat/completions")
    assert len(seen) == 11
    assert len({one["connection"] for one in seen}) == 4


@pytest.mark.parametrize("fault", ["status=503", "cut=10", "after=drop"])
def test_anything_but_the_right_answer_ends_the_bench(fault: str) -> None:
    with demo_engine() as engine:
        engine.fault("/v1/chat/completions", fault)
        with pytest.raises(WrongAnswerError):
            asyncio.run(round_of(target(engine), 10, 2))


def test_a_wrong_text_ends_the_bench() -> None:
    with demo_engine("openai", "--model", "another") as engine, pytest.raises(WrongAnswerError, match="another heard"):
        asyncio.run(round_of(target(engine, "another"), 10, 2))


def test_a_refused_connection_ends_the_bench() -> None:
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(round_of(Target("127.0.0.1", free_port(), "demo"), 1, 1))


@pytest.mark.parametrize(
    ("ratio", "memory", "passed"), [(4.99, 79.0, True), (5.0, 80.0, True), (5.01, 79.0, False), (1.0, 80.1, False)]
)
def test_the_gates(ratio: float, memory: float, passed: bool) -> None:
    result = Result({"FLM": [1.0], "nginx": [1.0]}, ratio, 9.0, memory)
    assert result.passed is passed
    assert result.table().endswith("passed" if passed else "FAILED")


def test_cpu_and_memory_are_of_the_whole_tree() -> None:
    busy = "n = 0\nwhile n < 8_000_000: n += 1\nprint('done', flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "done\n"
        processes = tree(running.pid)
        assert processes[0] == running.pid
        assert len(processes) == 2
        assert cpu_seconds(running.pid) > 0.1
        assert 1 < resident_mb(running.pid) < 200
        running.communicate("\n")


def test_where_nginx_is_missing_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["nginx_ratio"])
    assert nginx_ratio.main() == 1
    assert "apt-get install nginx-light" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["nginx_ratio", "--optional"])
    assert nginx_ratio.main() == 0
    assert "left out: nginx is not installed" in capsys.readouterr().err

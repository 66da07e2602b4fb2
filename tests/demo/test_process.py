"""The demo engine in the background: one per folder, truthfully found, ended with everything."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.demo import process
from tests.support.demo import demo_engine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the background process runs this checkout
    run = tmp_path / "home" / "run"
    yield run
    if run.is_dir():
        process.stop(run)


def test_a_second_start_finds_the_first(folder: Path) -> None:
    assert process.find(folder) is None
    first = process.start(folder)
    assert process.start(folder) == first == process.find(folder)
    assert process.stop(folder)
    assert process.find(folder) is None
    assert not process.stop(folder)
    assert not (folder / "demo.json").exists()


def test_several_starts_at_once_make_one_engine(folder: Path) -> None:
    engines: list[process.DemoEngine] = []
    threads = [threading.Thread(target=lambda: engines.append(process.start(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 4
    assert len(set(engines)) == 1


def test_after_a_kill_it_is_not_taken_for_running(folder: Path) -> None:
    first = process.start(folder)
    os.kill(first.pid, signal.SIGKILL)
    with open(folder / "demo.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # comes to us when the killed process is gone
    assert process.find(folder) is None
    second = process.start(folder)
    assert second.pid != first.pid


def test_a_record_that_names_another_process_is_not_believed(folder: Path) -> None:
    folder.mkdir(parents=True)
    record = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "dialect": "openai", "model": "demo"}
    (folder / "demo.json").write_text(json.dumps(record))
    assert process.find(folder) is None
    assert not process.stop(folder)  # and so this process is still here


def test_files_are_for_our_eyes_only(folder: Path) -> None:
    process.start(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "demo.lock": 0o600,
        "demo.json": 0o600,
    }


def test_it_says_why_it_cannot_listen() -> None:
    with demo_engine() as engine:
        port = engine.url.rsplit(":", 1)[1]
        again = [sys.executable, "-m", "flm.demo", "--port", port]
        ended = subprocess.run(again, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: another program does" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "flm.demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        ready = json.loads(running.stdout.readline())
        assert set(ready) == {"url", "dialect", "model", "pid"}
        running.send_signal(number)
        _, errors = running.communicate(timeout=10)
    assert (running.returncode, errors) == (0, "")


def test_it_ends_when_its_parents_pipe_closes() -> None:
    command = [sys.executable, "-m", "flm.demo", "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()
        running.stdin.close()
        assert running.wait(timeout=10) == 0


def test_it_starts_from_a_program_with_a_thousand_files_open(folder: Path) -> None:
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < 1100:
            held.append(fcntl.fcntl(held[0], fcntl.F_DUPFD_CLOEXEC, held[-1] + 1))
        assert process.start(folder) == process.find(folder)
    finally:
        for descriptor in held:
            os.close(descriptor)

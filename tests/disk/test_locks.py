"""Locks are held by one, or by all that share, until their holder ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flm.disk.locks import holding, try_lock
from flm.errors import CommandCode, CommandError

HANGS = (CommandCode.IO_ERROR, "at work in")


def test_one_at_a_time(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        with holding(tmp_path, 10, *HANGS):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with holding(tmp_path, 10, *HANGS):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "allowed"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_those_that_share(tmp_path: Path, first: bool, second: bool, allowed: bool) -> None:
    descriptors = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    try:
        assert try_lock(descriptors[0], shared=first)
        assert try_lock(descriptors[1], shared=second) is allowed
    finally:
        for each in descriptors:
            os.close(each)


def test_one_that_hangs_is_reported(tmp_path: Path) -> None:
    with holding(tmp_path, 0.0, *HANGS), pytest.raises(CommandError) as refused, holding(tmp_path, 0.0, *HANGS):
        raise AssertionError("both are in")
    assert refused.value.code is CommandCode.IO_ERROR
    assert f"another flm has been at work in {tmp_path} for 0 s" in refused.value.message


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from flm.disk.locks import holding\n"
        "with holding(Path(sys.argv[1]), 0.0, None, ''): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with holding(tmp_path, 0.0, *HANGS):
        pass

"""Workers prepared before a restart: they wait, are handed everything over a socket, or end unused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.runtime.boot import WorkerBoot, hand_over, take_over
from flm.runtime.warm import WarmUpError, WarmWorkers
from tests.runtime.harness import TINY, alive, get, run, running, until


@pytest.fixture
def log_pipes() -> Iterator[list[int]]:
    reading: list[int] = []
    yield reading
    for each in reading:
        os.close(each)


def warm_workers(module: str, log_pipes: list[int]) -> WarmWorkers:
    def pipe() -> int:
        reading, writing = os.pipe()
        log_pipes.append(reading)
        return writing

    return WarmWorkers(module, pipe)


async def all_ended(workers: WarmWorkers, pids: list[int]) -> None:
    async with asyncio.timeout(10):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)
    workers.reap()


def test_prepared_and_not_needed(log_pipes: list[int]) -> None:
    async def main() -> None:
        workers = warm_workers(TINY, log_pipes)
        await workers.prepare(2)
        pids = [state.pid for state in workers.states()]
        assert len(set(pids)) == 2
        assert all(alive(pid) for pid in pids)
        workers.dismiss()
        assert workers.take() is None
        await all_ended(workers, pids)

    run(main)


@pytest.mark.parametrize(
    ("module", "why"), [("tests.runtime.broken_worker", "libmissing"), ("tests.runtime.gone", "the log says why")]
)
def test_a_worker_that_cannot_start_says_why(module: str, why: str, log_pipes: list[int]) -> None:
    async def main() -> None:
        workers = warm_workers(module, log_pipes)
        with pytest.raises(WarmUpError, match=why):
            await workers.prepare(1)
        assert workers.states() == []
        workers.reap()
        while workers._ending:
            await asyncio.sleep(0.01)
            workers.reap()

    run(main)


def test_time_is_bounded(log_pipes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.runtime.warm.SECONDS", 0.05)

    async def main() -> None:
        workers = warm_workers("tests.runtime.slow_worker", log_pipes)
        with pytest.raises(WarmUpError, match="took over"):
            await workers.prepare(1)
        while workers._ending:
            await asyncio.sleep(0.01)
            workers.reap()

    run(main)


def test_the_document_and_its_descriptors_go_over_a_socket(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    names = ("l1", "l2", "shared", "keyring", "buckets", "audit", "life")
    opened = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in names]
    for number, descriptor in enumerate(opened):
        os.write(descriptor, str(number).encode())
    boot = WorkerBoot(
        listening_fds=opened[:2],
        shared_fd=opened[2],
        keyring_fd=opened[3],
        buckets_fd=opened[4],
        rings_fd=opened[5],
        control_fd=-1,
        life_fd=opened[6],
        log_fd=-1,
        cell=7,
        slot=1,
        generation=3,
        pepper="/p",
        header_timeout=1.5,
        connections=9,
        log_level="info",
        min_bytes_per_second=64,
        send_timeout=60.0,
    )
    hand_over(ours, boot)
    received = take_over(theirs, 99)
    assert received is not None
    assert (received.cell, received.log_fd, received.header_timeout) == (7, 99, 1.5)
    mapped = [received.shared_fd, received.keyring_fd, received.buckets_fd, received.rings_fd]
    got = [*received.listening_fds, *mapped, received.life_fd]
    assert not set(got) & set(opened)
    assert [os.pread(descriptor, 9, 0) for descriptor in got] == [b"%d" % number for number in range(7)]
    ours.close()
    assert os.read(received.control_fd, 1) == b""
    for descriptor in (*opened, *got, received.control_fd):
        os.close(descriptor)


def test_nothing_comes_any_more() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert take_over(theirs, 3) is None


def test_a_restart_to_a_version_that_cannot_start_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, worker_module="tests.runtime.broken_worker") as proxy:  # starts, but not warm
            before = await proxy.handle()
            with pytest.raises(CommandError, match=r"not begun.*libmissing"):
                await proxy.service.restart()
            assert (await proxy.handle()).worker_pids == before.worker_pids
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")

    run(main)


def test_prepared_workers_do_not_outlive_the_supervisor(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, worker_module="tests.runtime.slow_worker") as proxy:
            supervisor = (await proxy.handle()).pid
            restarting = asyncio.create_task(proxy.service.restart())
            children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
            async with asyncio.timeout(10):
                while len(pids := children.read_text().split()) < 3:  # a worker, a check, a worker that warms up
                    await asyncio.sleep(0.005)
            os.kill(supervisor, signal.SIGKILL)
            await until(lambda: not any(alive(int(pid)) for pid in pids), 8)
            with contextlib.suppress(CommandError):
                await restarting

    run(main)

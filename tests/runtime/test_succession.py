"""When the system refuses the exec of a restart, or the check before it: the proxy goes on as it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.runtime import succession
from flm.runtime.boot import Served, SupervisorBoot, SupervisorState, Tls, WarmState, WorkerState, pack, unpack
from flm.runtime.rehearsal import check
from flm.services.proxy import Started
from tests.runtime.harness import Running, get, prepare, run, running


@pytest.fixture
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


@contextlib.asynccontextmanager
async def in_this_process(root: Path) -> AsyncIterator[Running]:
    proxy = prepare(root)
    ready: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(proxy.service.serve(proxy.flags, ready.set_result, first_key=False))
    await ready
    try:
        yield proxy
    finally:
        await proxy.service.stop(now=True)
        await serving


def test_a_refused_exec_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_logging: None, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no such interpreter")

    monkeypatch.setattr(os, "execve", refuse)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    async def main() -> None:
        async with in_this_process(tmp_path) as proxy:
            before = await proxy.handle()
            for _ in range(2):
                with pytest.raises(CommandError, match="goes on as it was"):
                    await proxy.service.restart()
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
            assert (await proxy.handle()).worker_pids == before.worker_pids
            assert not os.get_inheritable(_lock_of(proxy)), "it would go on to other programs"
            assert (await proxy.service.reload()).worker_pids != before.worker_pids, "it still does everything"

    run(main)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    assert "restarting in place" in capfd.readouterr().err


def _lock_of(proxy: Running) -> int:
    lock = str(proxy.folder.run / "lock")
    return next(int(name) for name in os.listdir("/proc/self/fd") if _link(name) == lock)


def _link(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def test_a_broken_new_version_is_refused_before_anything_is_let_go(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        folder = proxy.folder
        boot = SupervisorBoot(
            str(folder.root), str(folder.config), str(folder.security), {}, -1, True, worker_module="tests.runtime.gone"
        )
        with pytest.raises(CommandError, match=r"not begun.*tests\.runtime\.gone"):
            await check(boot, asyncio.sleep(0))

    run(main)


def test_state_survives_the_way_over() -> None:
    boot = SupervisorBoot("r", "c", "s", {"proxy.port": 1, "log.level": "debug", "routing.plain_names": True}, 3, True)
    worker = WorkerState(1, 0, 0, 2, 9, [4], draining=True, deadline=1.5)
    state = SupervisorState(
        boot=boot,
        instance_id="i",
        started_at="t",
        began=1.5,
        generation=2,
        served=Served("https-acme", "*", 1, 2),
        mode="dev-selfsigned",
        tls=Tls(b"key and chain", "1.3", ("a.example",), hsts=False),
        listening_fds=[4],
        plain_fds=[18],
        shared_fd=5,
        keyring_fd=6,
        buckets_fd=16,
        rings_fd=17,
        life_fds=(7, 8),
        control_fd=10,
        log_fds=[11],
        own_log_fds=(12, 13),
        workers=[worker],
        warm=[WarmState(2, 15)],
        reply_fd=14,
        chat_keys={"k": 1.0},
    )
    assert unpack(pack(state), SupervisorState) == state
    assert sorted(succession.descriptors(state)) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


def test_uptime_goes_on_over_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            after = await proxy.service.restart()
            assert before.uptime < after.uptime < before.uptime + 60
            assert after.started_at == before.started_at

    run(main)


def test_a_record_that_cannot_be_written_ends_no_proxy(tmp_path: Path) -> None:
    """As on a full disk. It is the same process, so that the record of before still finds it."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            in_the_way = proxy.folder.run / f".instance.{before.pid}"
            in_the_way.mkdir()
            after = await proxy.service.restart()
            assert (after.pid, after.state) == (before.pid, "running")
            assert after.worker_pids != before.worker_pids
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
            assert "stays as it was" in proxy.log()
            in_the_way.rmdir()

    run(main)

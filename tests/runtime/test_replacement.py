"""Reload, restart and death under load: nothing refused, reset or cut that need not be (cases 88, 89, 94, 95, 96)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.store import settings
from flm.store.database import open_config
from tests.runtime.harness import ROOT, Load, Running, alive, get, only_ok, prepare, run, running, until
from tests.runtime.lingering_worker import LEAVE_TO_GO_ON

IMPORTS_IN_A_RESTART = 12  # it takes about four times as long as one
WARM_SECONDS = 0.3  # for load to be under way on every client


async def pid_of(port: int) -> int:
    answer = await get(port)
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["pid"])


@pytest.mark.parametrize("op", ["reload", "restart"])
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_dropped_under_load(tmp_path: Path, op: str, workers: int) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__workers=workers) as proxy:
            before = await proxy.handle()
            load = Load(proxy.port)
            load.add(fresh=6, reused=6, streams=6, events=50)
            await asyncio.sleep(WARM_SECONDS)
            for _ in range(3):
                after = await getattr(proxy.service, op)()
                await asyncio.sleep(WARM_SECONDS)
            seen = await load.finish()
            assert only_ok(seen), seen
            assert min(seen["fresh ok"], seen["reused ok"], seen["stream ok"]) > 0, seen
            assert (after.pid, after.state, after.last_error) == (before.pid, "running", None)
            assert not set(after.worker_pids) & set(before.worker_pids)
            assert len(after.worker_pids) == workers

    run(main)


async def imported() -> float:
    """Seconds that this machine, as busy as it is now, takes for one process with a supervisor's imports."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import flm.runtime.startup", cwd=ROOT)
    assert await process.wait() == 0
    return time.monotonic() - began


@pytest.mark.parametrize("op", ["reload", "restart"])
def test_what_is_asked_while_the_first_workers_start_waits_for_them(tmp_path: Path, op: str) -> None:
    """They end all workers that wait for a document; a restart then waited half a minute for its own, and was off."""

    async def main() -> None:
        proxy = prepare(tmp_path, "tests.runtime.slow_worker")
        starting = asyncio.create_task(proxy.start())
        try:
            while not (found := await proxy.service.status()) or found[0].state != "starting":
                assert not starting.done()
            changed = await getattr(proxy.service, op)()
            started = await starting
            assert (changed.pid, changed.generation) == (started.pid, 2)
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
        finally:
            await proxy.service.stop(now=True)

    run(main)


def test_restart_is_quick(tmp_path: Path) -> None:
    """A median below 3 s; more only on a machine so busy that one process of the several takes long by itself. The aim,
    0.5 s on an idle machine, is measured with the load tests."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            times, imports = [], []
            for _ in range(5):
                began = time.monotonic()
                await proxy.service.restart()
                times.append(time.monotonic() - began)
                imports.append(await imported())
            assert sorted(times)[2] < max(3, IMPORTS_IN_A_RESTART * sorted(imports)[2]), (times, imports)

    run(main)


def test_a_slow_start_of_the_successor_is_no_gap(tmp_path: Path) -> None:
    """Case 95: the old worker serves until the new one does."""

    async def main() -> None:
        async with running(tmp_path, worker_module="tests.runtime.slow_worker") as proxy:
            load = Load(proxy.port)
            load.add(fresh=3, reused=3, streams=3, events=20)
            began = time.monotonic()
            await proxy.service.reload()
            assert time.monotonic() - began > 2
            assert only_ok(await load.finish())

    run(main)


def test_a_reload_returns_when_nobody_meets_the_workers_of_before(tmp_path: Path) -> None:
    """Between its order and its obedience a worker accepts on: what was changed must hold when the command returns."""

    async def main() -> None:
        async with running(tmp_path, worker_module="tests.runtime.lingering_worker") as proxy:
            (old,) = (await proxy.handle()).worker_pids
            reload = asyncio.create_task(proxy.service.reload())
            while old not in (await proxy.handle()).draining_pids:
                await asyncio.sleep(0.01)
            await proxy.handle()  # what was answered before it has arrived before it
            assert not reload.done()
            os.kill(old, LEAVE_TO_GO_ON)
            (new,) = (await reload).worker_pids
            assert {await pid_of(proxy.port) for _ in range(60)} == {new}
            os.kill(new, LEAVE_TO_GO_ON)

    run(main)


def test_a_reload_does_not_wait_for_a_worker_that_hangs(tmp_path: Path) -> None:
    """It is killed: its loop reads no order, and its server would accept on."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            (hung,) = (await proxy.handle()).worker_pids
            os.kill(hung, signal.SIGSTOP)
            (new,) = (await proxy.service.reload()).worker_pids
            assert await pid_of(proxy.port) == new
            assert not alive(hung)

    run(main)


def test_a_stream_outlives_two_restarts_and_a_third_ends_it_with_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__max_draining=2) as proxy:
            stream = asyncio.create_task(get(proxy.port, "/stream/0", seconds=30))
            await asyncio.sleep(WARM_SECONDS)
            await proxy.service.restart()
            await proxy.service.reload()
            assert not stream.done()
            await proxy.service.restart()
            answer = await stream
            assert answer.count(b'data: {"error":') == 1
            assert answer.endswith(b"0\r\n\r\n"), "the error event must end the stream in order"
            assert b"[DONE]" not in answer

    run(main)


def test_drained_workers_leave(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__header_timeout_seconds=1) as proxy:
            (old,) = (await proxy.handle()).worker_pids
            handle = await proxy.service.reload()
            assert handle.draining_pids == [old]
            await until(lambda: not alive(old), 8)
            while (await proxy.handle()).draining_pids:  # reaped a moment after it died
                await asyncio.sleep(0.01)

    run(main)


def test_drain_timeout_ends_streams_with_an_error_event(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__drain_timeout_seconds=1) as proxy:
            (old,) = (await proxy.handle()).worker_pids
            stream = asyncio.create_task(get(proxy.port, "/stream/0", seconds=30))
            await asyncio.sleep(WARM_SECONDS)
            await proxy.service.reload()
            answer = await stream
            assert answer.count(b'data: {"error":') == 1
            await until(lambda: not alive(old), 8)

    run(main)


def test_a_killed_worker_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    """Case 88: only requests of the killed one fail; connections that wait in its socket's queue are served."""

    async def main() -> None:
        async with running(tmp_path, proxy__workers=2) as proxy:
            handle = await proxy.handle()
            victim, other = handle.worker_pids
            load = Load(proxy.port)
            load.add(fresh=6)
            await asyncio.sleep(WARM_SECONDS)
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            while len(pids := (await proxy.handle()).worker_pids) < 2 or victim in pids:
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < 5
            await asyncio.sleep(WARM_SECONDS)
            seen = await load.finish()
            assert other in pids
            bad = sum(count for name, count in seen.items() if not name.endswith(" ok"))
            assert bad <= 6, seen  # at most what each client had in that worker at that moment
            assert (await proxy.handle()).pid == handle.pid

    run(main)


def test_service_returns_after_repeated_deaths(tmp_path: Path) -> None:
    """Case 89: a poison request kills each new worker as well."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            for _ in range(4):
                with pytest.raises((OSError, AssertionError)):
                    assert (await get(proxy.port, "/die", seconds=10)).startswith(b"HTTP")
            assert (await get(proxy.port, seconds=20)).startswith(b"HTTP/1.1 200")

    run(main)


def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            (hung,) = (await proxy.handle()).worker_pids
            with pytest.raises((OSError, AssertionError)):
                assert (await get(proxy.port, "/hang", seconds=25)).startswith(b"HTTP")
            await until(lambda: not alive(hung), 3)
            assert (await get(proxy.port, seconds=20)).startswith(b"HTTP/1.1 200")

    run(main)


def test_sigterm_to_a_worker_replaces_it_without_an_outage(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__header_timeout_seconds=1) as proxy:
            (old,) = (await proxy.handle()).worker_pids
            load = Load(proxy.port)
            load.add(fresh=4, reused=4, streams=2, events=20)
            await asyncio.sleep(WARM_SECONDS)
            os.kill(old, signal.SIGINT)
            os.kill(old, signal.SIGHUP)
            os.kill(old, signal.SIGTERM)
            await until(lambda: not alive(old), 15)
            seen = await load.finish()
            assert only_ok(seen), seen
            assert len((await proxy.handle()).worker_pids) == 1

    run(main)


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_stop_during_a_restart_stops(tmp_path: Path, how: str) -> None:
    """Whenever it comes: before the exec, in it, after it."""

    async def main() -> None:
        for pause_ms in (0, 150, 300, 400, 500):
            async with running(tmp_path) as proxy:
                handle = await proxy.handle()
                restarting = asyncio.create_task(proxy.service.restart())
                await asyncio.sleep(pause_ms / 1000)
                if how == "signal":
                    os.kill(handle.pid, signal.SIGTERM)
                else:
                    await proxy.service.stop(now=True)
                await until(lambda pid=handle.pid: not alive(pid), 10)
                (outcome,) = await asyncio.gather(restarting, return_exceptions=True)
                assert not isinstance(outcome, BaseException) or isinstance(outcome, CommandError), outcome
                assert await proxy.service.status() == []

    run(main)


def test_sighup_reloads(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            os.kill(before.pid, signal.SIGHUP)
            while (after := await proxy.handle()).generation == before.generation:
                await asyncio.sleep(0.01)
            assert after.pid == before.pid

    run(main)


async def _set(proxy: Running, key: str, value: str) -> None:
    async with await open_config(proxy.folder) as database, database.transaction() as transaction:
        await settings.put(transaction, key, value)


@pytest.mark.parametrize("op", ["reload", "restart"])
def test_broken_settings_keep_the_old_workers(tmp_path: Path, op: str) -> None:
    """Case 96: the command fails with the reason, and nothing is interrupted."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            load = Load(proxy.port)
            load.add(fresh=2, reused=2, streams=2, events=20)
            await _set(proxy, "proxy.header_timeout_seconds", "-5")
            with pytest.raises(CommandError, match=r"proxy\.header_timeout_seconds"):
                await getattr(proxy.service, op)()
            assert only_ok(await load.finish())
            assert (await proxy.handle()).worker_pids == before.worker_pids

    run(main)


@pytest.mark.parametrize("op", ["reload", "restart"])
def test_another_address_is_refused(tmp_path: Path, op: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            await _set(proxy, "proxy.bind", "127.0.0.2")
            with pytest.raises(CommandError, match="address cannot change"):
                await getattr(proxy.service, op)()
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
            after = await proxy.handle()  # where it is reached, not where the next one would be
            assert (after.listen_addr, after.endpoints) == (before.listen_addr, before.endpoints)

    run(main)


def test_replacements_leave_no_descriptors_behind(tmp_path: Path) -> None:
    def descriptors(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    async def settled(proxy: Running) -> int:
        while (handle := await proxy.handle()).draining_pids:
            await asyncio.sleep(0.05)
        return descriptors(handle.pid)

    async def main() -> None:
        async with running(tmp_path, proxy__header_timeout_seconds=1) as proxy:
            await proxy.service.restart()
            before = await settled(proxy)
            for _ in range(3):
                await proxy.service.reload()
                await proxy.service.restart()
            assert abs(await settled(proxy) - before) <= 1  # one more while a database is looked at

    run(main)


def test_more_and_fewer_workers(tmp_path: Path) -> None:
    """The sockets of fewer workers are served by the others: connections queued there are not reset."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            load = Load(proxy.port)
            load.add(fresh=4, reused=4)
            await asyncio.sleep(WARM_SECONDS)
            for workers in (3, 1, 2):
                await _set(proxy, "proxy.workers", str(workers))
                handle = await proxy.service.reload()
                assert len(handle.worker_pids) == workers
                await asyncio.sleep(WARM_SECONDS)
            assert only_ok(await load.finish())
            assert len({await pid_of(proxy.port) for _ in range(40)}) == 2

    run(main)

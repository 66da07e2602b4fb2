"""Start, stop and status of real proxies: one per folder, the truth about it, nothing left behind (cases 83 to 97)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime import instance
from tests.runtime.harness import ROOT, Running, alive, get, prepare, run, running, until
from tests.support.ports import free_port


def processes_of(folder: Path) -> list[int]:
    """Every process that has something of this folder open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(process / "fd" / name) for name in os.listdir(process / "fd")]
        except OSError:
            continue
        if any(link.startswith(str(folder)) for link in links) and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


async def assert_nothing_left(proxy: Running) -> None:
    assert await proxy.service.status() == []
    await until(lambda: not processes_of(proxy.folder.root), 3)
    assert {path.name for path in proxy.folder.run.iterdir()} - {"buckets", "audit"} == {"lock"}
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", proxy.port))


def test_start_status_stop(tmp_path: Path) -> None:
    """Case 97: the handle at each moment."""

    async def main() -> None:
        proxy = prepare(tmp_path, proxy__workers=2)
        assert await proxy.service.status() == []
        started = await proxy.start()
        assert (await get(proxy.port, "/health")).startswith(b"HTTP/1.1 200")
        (handle,) = await proxy.service.status()
        assert (handle.id, handle.pid, handle.port) == (started.id, started.pid, proxy.port)
        assert handle.running
        assert handle.state == "running"
        assert handle.workers == len(handle.worker_pids) == 2
        assert handle.listen_addr == f"127.0.0.1:{proxy.port}"
        assert handle.endpoints.localhost == f"http://127.0.0.1:{proxy.port}"
        assert handle.last_error is None
        assert all(alive(pid) for pid in (handle.pid, *handle.worker_pids))
        stopped = await proxy.service.stop()
        assert (stopped.id, stopped.pid, stopped.killed) == (started.id, started.pid, False)
        assert not any(alive(pid) for pid in (handle.pid, *handle.worker_pids))
        await assert_nothing_left(proxy)

    run(main)


def test_status_while_stopping(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            stream = asyncio.create_task(get(proxy.port, "/stream/50"))
            await asyncio.sleep(0.2)
            stopping = asyncio.create_task(proxy.service.stop())
            while (handle := await proxy.handle()).state == "running":
                await asyncio.sleep(0.01)
            assert handle.state == "stopping"
            assert not handle.running
            answer = await stream
            assert b"[DONE]" in answer, "a stream that ends in time is not cut by a stop"
            await stopping
            assert await proxy.service.status() == []

    run(main)


def test_stop_ends_an_endless_stream_at_its_deadline(tmp_path: Path) -> None:
    """Case 92: one error event, and idle keep-alive connections do not hold the stop up."""

    async def main() -> None:
        async with running(tmp_path, proxy__stop_timeout_seconds=1) as proxy:
            idle = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
            stream = asyncio.create_task(get(proxy.port, "/stream/0", seconds=30))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await proxy.service.stop()
            assert 0.9 < time.monotonic() - began < 1 + 5
            answer = await stream
            assert answer.count(b'data: {"error":') == 1
            assert answer.endswith(b"0\r\n\r\n")
            for _, writer in idle:
                writer.close()
            await assert_nothing_left(proxy)

    run(main)


def test_stop_now_does_not_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            stream = asyncio.create_task(get(proxy.port, "/stream/0", seconds=30))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await proxy.service.stop(now=True)
            assert time.monotonic() - began < 3
            assert (await stream).count(b'data: {"error":') == 1

    run(main)


def test_stop_now_hurries_a_stop_that_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            stream = asyncio.create_task(get(proxy.port, "/stream/0", seconds=30))
            await asyncio.sleep(0.2)
            patient = asyncio.create_task(proxy.service.stop())
            while (await proxy.handle()).state == "running":
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await proxy.service.stop(now=True)
            assert time.monotonic() - began < 3
            await patient
            assert (await stream).count(b'data: {"error":') == 1

    run(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops(tmp_path: Path, number: signal.Signals) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            handle = await proxy.handle()
            os.kill(handle.pid, number)
            await until(lambda: not any(alive(pid) for pid in (handle.pid, *handle.worker_pids)), 5)
            await assert_nothing_left(proxy)

    run(main)


def test_stop_with_another_port_stops_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            with pytest.raises(CommandError) as caught:
                await proxy.service.stop(port=proxy.port + 1)
            assert caught.value.code is CommandCode.PROXY_NOT_RUNNING
            assert (await proxy.handle()).running
            await proxy.service.stop(port=proxy.port)

    run(main)


@pytest.mark.parametrize("op", ["stop", "restart", "reload"])
def test_with_nothing_running(tmp_path: Path, op: str) -> None:
    async def main() -> None:
        with pytest.raises(CommandError) as caught:
            await getattr(prepare(tmp_path).service, op)()
        assert caught.value.code is CommandCode.PROXY_NOT_RUNNING

    run(main)


def test_twenty_starts_at_once(tmp_path: Path) -> None:
    """Case 83: exactly one serves, the others say so."""
    code = (
        "import asyncio, sys; from tests.runtime.harness import *; from pathlib import Path\n"
        "from flm.errors import CommandError\n"
        "proxy = prepare(Path(sys.argv[1]), proxy__port=int(sys.argv[2]))\n"
        "try: print('started', asyncio.run(proxy.start()).pid)\n"
        "except CommandError as error: print(error.code.value)\n"
    )
    port = free_port()
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(20)
    ]
    said = [start.communicate(timeout=60)[0].split()[0] for start in starts]
    proxy = prepare(tmp_path, proxy__port=port)

    async def main() -> None:
        try:
            assert Counter(said) == {"started": 1, "PROXY_ALREADY_RUNNING": 19}
            assert (await get(port)).startswith(b"HTTP/1.1 200")
        finally:
            await proxy.service.stop(now=True)

    run(main)


@pytest.mark.parametrize("record", ["garbage", "empty", "dead", "stranger", "reused pid", "folder"])
def test_a_left_over_record_is_nobody(tmp_path: Path, record: str) -> None:
    """Case 84: a pid alone proves nothing."""

    async def main() -> None:
        proxy = prepare(tmp_path)
        proxy.folder.run.mkdir(parents=True)
        path = instance.record_path(proxy.folder.run)
        me = instance.identify(os.getpid())
        assert me is not None
        of_stranger = instance.Instance(
            "x", os.getpid(), me.start_time, me.boot_id, "local-http", "127.0.0.1", 1, "0", ""
        )
        if record == "garbage":
            path.write_bytes(b"\xff\x00{" * 100)
        elif record == "empty":
            path.touch()
        elif record == "folder":
            pass  # no record at all, and a lock file nobody holds
        elif record == "dead":
            path.write_text(json.dumps({"pid": 2**22 - 1, "id": "x"}))
        elif record == "stranger":
            instance.write(proxy.folder.run, of_stranger)
        else:
            path.write_text(json.dumps({**json.loads(json.dumps(vars_of(of_stranger))), "start_time": "1"}))
        instance.lock_path(proxy.folder.run).touch()
        assert await proxy.service.status() == []
        with pytest.raises(CommandError) as caught:
            await proxy.service.stop()
        assert caught.value.code is CommandCode.PROXY_NOT_RUNNING
        await proxy.start()
        assert (await proxy.handle()).running
        await proxy.service.stop()

    run(main)


def vars_of(record: instance.Instance) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


@pytest.mark.parametrize("option", [None, socket.SO_REUSEPORT])
def test_a_taken_port_names_its_holder(tmp_path: Path, option: int | None) -> None:
    """Case 86: also when the holder would share it (SO_REUSEPORT)."""

    async def main() -> None:
        with socket.socket() as holder:
            if option is not None:
                holder.setsockopt(socket.SOL_SOCKET, option, 1)
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            proxy = prepare(tmp_path, proxy__port=holder.getsockname()[1])
            began = time.monotonic()
            with pytest.raises(CommandError, match=f"pid {os.getpid()}") as caught:
                await proxy.start()
            assert time.monotonic() - began < 5  # 2 s, and room for a busy machine
            assert caught.value.code is CommandCode.PROXY_PORT_IN_USE
        await assert_nothing_left(proxy)

    run(main)


def test_a_worker_that_does_not_come_up_fails_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path, worker_module="tests.runtime.no_such_worker")
        with pytest.raises(CommandError, match="a worker did not come up") as caught:
            await proxy.start()
        assert caught.value.code is CommandCode.PROXY_INVALID_CONFIG
        assert "no_such_worker" in proxy.log(), "the interpreter's last words belong to the log"
        await assert_nothing_left(proxy)

    run(main)


def test_invalid_settings_fail_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path, proxy__bind="example.com")
        with pytest.raises(CommandError, match=r"proxy\.bind"):
            await proxy.start()
        await assert_nothing_left(proxy)

    run(main)


def test_killing_the_supervisor_ends_its_workers_in_order(tmp_path: Path) -> None:
    """Case 87: within 2 s, streams with one error event; status tells the truth at once; the next start is clean."""

    async def main() -> None:
        async with running(tmp_path, proxy__workers=2) as proxy:
            handle = await proxy.handle()
            streams = [asyncio.create_task(get(proxy.port, "/stream/0", seconds=10)) for _ in range(4)]
            await asyncio.sleep(0.2)
            os.kill(handle.pid, signal.SIGKILL)
            await until(lambda: not alive(handle.pid), 1)
            assert await proxy.service.status() == []
            seconds = await until(lambda: not any(alive(pid) for pid in handle.worker_pids), 3)
            assert seconds < 2.5  # 2 s, and room for a busy machine
            for answer in await asyncio.gather(*streams):
                assert answer.count(b'data: {"error":') == 1
                assert answer.endswith(b"0\r\n\r\n")
            again = await proxy.start()
            assert again.pid != handle.pid

    run(main)


def test_a_start_right_after_the_supervisor_was_killed(tmp_path: Path) -> None:
    """As a service manager does it: the workers of the dead one hold the port for a moment more."""

    async def main() -> None:
        async with running(tmp_path) as proxy:
            for _ in range(3):
                handle = await proxy.handle()
                hanging = asyncio.create_task(get(proxy.port, "/hang", seconds=10))
                await asyncio.sleep(0.1)
                os.kill(handle.pid, signal.SIGKILL)
                await until(lambda pid=handle.pid: not alive(pid), 2)
                again = await proxy.start()
                assert again.pid != handle.pid
                assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
                await asyncio.gather(hanging, return_exceptions=True)

    run(main)


def test_a_hung_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            handle = await proxy.handle()
            hanging = asyncio.create_task(get(proxy.port, "/hang", seconds=10))
            await asyncio.sleep(0.2)
            os.kill(handle.pid, signal.SIGKILL)
            assert await until(lambda: not any(alive(pid) for pid in handle.worker_pids), 5) < 3  # as above
            await asyncio.gather(hanging, return_exceptions=True)

    run(main)


def test_a_hung_supervisor_is_stopped_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.services.proxy.RESPONSE_SECONDS", 1.0)

    async def main() -> None:
        async with running(tmp_path) as proxy:
            handle = await proxy.handle()
            os.kill(handle.pid, signal.SIGSTOP)
            for ask in (proxy.service.status, proxy.service.reload, proxy.service.restart):
                with pytest.raises(CommandError, match="has not answered"):
                    await ask()
            stopped = await proxy.service.stop()
            assert stopped.killed
            assert not any(alive(pid) for pid in (handle.pid, *handle.worker_pids))
            assert await proxy.service.status() == []

    run(main)


def test_a_proxy_whose_run_folder_is_removed_ends_and_leaves_the_next_one_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            lost = await proxy.handle()
            shutil.rmtree(proxy.folder.run)
            found = await prepare(tmp_path).start()  # on another port
            assert found.pid != lost.pid
            await until(lambda: not any(alive(pid) for pid in (lost.pid, *lost.worker_pids)), 20)
            assert (await proxy.handle()).pid == found.pid
            assert (await proxy.service.stop()).pid == found.pid

    run(main)


@pytest.mark.parametrize("record", [None, b"garbage", b'{"id":"another","pid":1}'])
def test_a_record_that_was_removed_or_changed_is_written_again(tmp_path: Path, record: bytes | None) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            before = await proxy.handle()
            path = instance.record_path(proxy.folder.run)
            path.unlink()
            if record is not None:
                path.write_bytes(record)
            await until(lambda: instance.running(proxy.folder.run) is not None, 20)
            after = await proxy.handle()
            assert (after.id, after.pid, after.port) == (before.id, before.pid, before.port)
            assert "is written again" in proxy.log()
            assert (await proxy.service.stop()).pid == before.pid

    run(main)


def test_start_then_stop_after_any_pause(tmp_path: Path) -> None:
    """Case 91, in miniature: always stopped, no orphan, no hang."""

    async def main() -> None:
        proxy = prepare(tmp_path)
        for pause_ms in range(0, 500, 50):
            starting = asyncio.create_task(proxy.start())
            await asyncio.sleep(pause_ms / 1000)
            with contextlib.suppress(CommandError):  # it had not begun yet
                await proxy.service.stop(now=True)
            outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
            if await proxy.service.status():
                await proxy.service.stop(now=True)
            assert not isinstance(outcome, BaseException) or isinstance(outcome, CommandError), outcome
            await until(lambda: not processes_of(proxy.folder.root), 3)

    run(main)


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        for pause in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25):
            starting = asyncio.create_task(proxy.start())
            await asyncio.sleep(pause)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            with contextlib.suppress(CommandError):  # unless it was through already
                await proxy.service.stop(now=True)
            await until(lambda: not processes_of(proxy.folder.root), 3)

    run(main)


def test_in_the_foreground(tmp_path: Path) -> None:
    """`proxy start --no-daemon`: the same process, its log on stderr, Ctrl-C stops."""
    proxy = prepare(tmp_path)
    code = (
        "import asyncio, sys; from tests.runtime.harness import *; from pathlib import Path\n"
        "proxy = prepare(Path(sys.argv[1]), proxy__port=int(sys.argv[2]))\n"
        "asyncio.run(proxy.service.serve(proxy.flags, lambda h: print(h.pid, flush=True), first_key=False))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(proxy.port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert int(child.stdout.readline()) == child.pid

    async def main() -> None:
        assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
        assert (await proxy.service.restart()).pid == child.pid
        assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")

    run(main)
    child.send_signal(signal.SIGINT)
    _, log = child.communicate(timeout=20)
    assert child.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["message"].startswith("worker 0 started") for line in lines)
    assert not proxy.folder.logs.exists()


def test_a_log_elsewhere_leaves_its_folder_alone(tmp_path: Path) -> None:
    async def main() -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o755)
        async with running(tmp_path, log__file=str(elsewhere / "flm.log")):
            assert (elsewhere / "flm.log").stat().st_mode & 0o777 == 0o600
            assert elsewhere.stat().st_mode & 0o777 == 0o755
        with pytest.raises(CommandError, match=r"log\.file"):
            await prepare(tmp_path, log__file=str(tmp_path / "missing" / "flm.log")).start()

    run(main)


def test_no_secret_and_no_configuration_in_arguments(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            handle = await proxy.handle()
            for pid in (handle.pid, *handle.worker_pids):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                assert str(tmp_path).encode() not in command
                assert str(proxy.port).encode() not in command

    run(main)


def test_no_module_is_taken_from_where_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds a `json.py` must not be run because somebody starts the proxy there."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("json", "msgspec", "flm"):
        (trap / f"{name}.py").write_text("open('sprung', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(trap)

    async def main() -> None:
        async with running(tmp_path) as proxy:
            await proxy.service.restart()
            await proxy.service.reload()
        assert not list(tmp_path.rglob("sprung"))

    run(main)


def test_no_secret_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLM_API_KEY", "canary")
    monkeypatch.setenv("SOME_TOKEN", "canary")
    monkeypatch.setenv("HARMLESS", "for the supervisor only")

    async def main() -> None:
        async with running(tmp_path) as proxy:
            await proxy.service.restart()
            handle = await proxy.handle()
            (worker,) = handle.worker_pids
            assert b"HARMLESS" in Path(f"/proc/{handle.pid}/environ").read_bytes()
            assert b"HARMLESS" not in Path(f"/proc/{worker}/environ").read_bytes()
            for pid in (handle.pid, worker):
                assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()

    run(main)


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            for path in [proxy.folder.root, *proxy.folder.root.rglob("*")]:
                assert path.stat().st_mode & 0o077 == 0, path

    run(main)

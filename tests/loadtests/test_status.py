"""`flm proxy status`, field by field: before, while and after start, reload, restart, stop and the death of each part.

The commands are the real ones, each a process, as a person runs them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loadtests.stage import ENGINE_ID, Flm, free_port
from tests.support.demo import Demo, demo_engine

WORKERS = 2
# What never changes while one proxy runs.
STEADY = (
    "id", "pid", "running", "mode", "listen_addr", "port", "https_port", "endpoints", "acme_domain", "certificate",
    "engines", "last_error",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[Demo]:
    with demo_engine() as running:
        yield running


@pytest.fixture
def flm(tmp_path: Path, engine: Demo) -> Iterator[Flm]:
    command = Flm(tmp_path / "home")
    command.run("engines", "add", "--id", ENGINE_ID, "--kind", "openai", "--url", engine.url)
    yield command
    if command.status():
        command.run("proxy", "stop", "--now")


def start(flm: Flm) -> tuple[dict[str, Any], int]:
    port = free_port()
    return flm.run("proxy", "start", "--port", str(port), "--workers", str(WORKERS)), port


def the_one(flm: Flm) -> dict[str, Any]:
    handles = flm.status()
    assert len(handles) == 1
    return handles[0]


def steady(handle: dict[str, Any]) -> dict[str, Any]:
    return {name: handle[name] for name in STEADY}


def alive(pid: int) -> bool:
    """A zombie is dead: whoever started it has only not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_fields(handle: dict[str, Any], port: int) -> None:
    """Every field of a proxy that runs and has nothing to complain of."""
    assert isinstance(handle["id"], str)
    assert handle["id"]
    assert alive(handle["pid"])
    assert handle["running"] is True
    assert handle["mode"] == "local-http"
    assert (handle["port"], handle["https_port"]) == (port, None)
    assert handle["listen_addr"] == f"127.0.0.1:{port}"
    assert handle["endpoints"] == {"localhost": f"http://127.0.0.1:{port}", "local_network": None, "external": None}
    assert handle["workers"] == WORKERS == len(handle["worker_pids"]) == len(set(handle["worker_pids"]))
    assert all(alive(pid) for pid in handle["worker_pids"])
    assert handle["pid"] not in handle["worker_pids"]
    assert (handle["acme_domain"], handle["certificate"], handle["last_error"]) == (None, None, None)
    ours = [engine for engine in handle["engines"] if engine["id"] == ENGINE_ID]  # the machine may have some of its own
    assert [engine["kind"] for engine in ours] == ["openai"]
    assert 0 <= handle["uptime"] < 600
    started = datetime.fromisoformat(handle["started_at"])
    assert abs((datetime.now(UTC) - started).total_seconds() - handle["uptime"]) < 5


def statuses_while(flm: Flm, *arguments: str) -> tuple[list[list[dict[str, Any]]], Any]:
    """What `status` says, again and again, while another command runs; and what that one said."""
    seen = []
    command = flm.command(*arguments)
    with subprocess.Popen(command, env=flm.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        while running.poll() is None:
            seen.append(flm.status())
        output, errors = running.communicate()
    assert running.returncode == 0, output + errors
    return seen, json.loads(output)["data"]


def test_before_while_and_after_start_and_stop(flm: Flm) -> None:
    assert flm.status() == []
    port = free_port()
    starting, started = statuses_while(flm, "proxy", "start", "--port", str(port), "--workers", str(WORKERS))
    for handles in starting:
        assert len(handles) <= 1
        assert [handle["pid"] for handle in handles] in ([], [started["pid"]])
        assert all(handle["port"] == port for handle in handles)
    check_fields(started, port)
    handle = the_one(flm)
    check_fields(handle, port)
    assert steady(handle) == steady(started)
    assert handle["worker_pids"] == started["worker_pids"]
    assert handle["uptime"] >= started["uptime"]

    stopping, _ = statuses_while(flm, "proxy", "stop")
    for handles in stopping:
        assert [handle["pid"] for handle in handles] in ([], [started["pid"]])
    assert flm.status() == []
    assert not any(alive(pid) for pid in [handle["pid"], *handle["worker_pids"]])


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_before_while_and_after(flm: Flm, verb: str) -> None:
    before, port = start(flm)
    before = the_one(flm)
    check_fields(before, port)
    during, after = statuses_while(flm, "proxy", verb)
    last = the_one(flm)
    for handle in (after, last):
        check_fields(handle, port)
        assert steady(handle) == steady(before)
        assert not set(handle["worker_pids"]) & set(before["worker_pids"])
        assert handle["generation"] == before["generation"] + 1
        assert handle["started_at"] == before["started_at"] or verb == "restart"
    for handles in during:
        assert len(handles) == 1, "the proxy never stops running"
        handle = handles[0]
        assert steady(handle) == steady(before)
        assert handle["generation"] in (before["generation"], before["generation"] + 1)
        pids = set(handle["worker_pids"])
        assert pids <= set(before["worker_pids"]) | set(last["worker_pids"])
        # A successor serves before its predecessor goes, so there may be more for a moment, and never fewer.
        assert WORKERS <= handle["workers"] == len(pids) <= 2 * WORKERS


def test_a_killed_worker_is_replaced_and_status_tells(flm: Flm) -> None:
    _, port = start(flm)
    before = the_one(flm)
    victim = before["worker_pids"][0]
    os.kill(victim, signal.SIGKILL)
    while victim in (handle := the_one(flm))["worker_pids"] or len(handle["worker_pids"]) < WORKERS:
        assert handle["pid"] == before["pid"]
        assert handle["running"] is True
    assert len(set(handle["worker_pids"]) & set(before["worker_pids"])) == WORKERS - 1
    assert all(alive(pid) for pid in handle["worker_pids"])
    assert handle["port"] == port


def test_a_killed_supervisor_is_no_running_proxy(flm: Flm) -> None:
    start(flm)
    before = the_one(flm)
    # A pidfd of each worker becomes readable when it is gone: no polling, and no pid taken for another's.
    with ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in before["worker_pids"]]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        os.kill(before["pid"], signal.SIGKILL)
        assert flm.status() == []
        wait_for_end(pidfds, 5.0)
    again, port = start(flm)
    check_fields(the_one(flm), port)
    assert again["pid"] != before["pid"]


def wait_for_end(pidfds: list[int], seconds: float) -> None:
    import select
    import time

    deadline = time.monotonic() + seconds
    for pidfd in pidfds:
        ready, _, _ = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"a worker outlived its supervisor by {seconds} s"


def test_a_stale_record_with_a_living_pid_is_no_running_proxy(flm: Flm) -> None:
    start(flm)
    folder = flm.home / "run"
    record = (folder / "instance.json").read_bytes()
    pid = the_one(flm)["pid"]
    flm.run("proxy", "stop")
    document = json.loads(record)
    assert document["pid"] == pid
    (folder / "instance.json").write_text(json.dumps(document | {"pid": os.getpid()}))
    assert flm.status() == []
    with pytest.raises(Exception, match="PROXY_NOT_RUNNING"):
        flm.run("proxy", "stop")

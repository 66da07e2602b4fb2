"""Many connections, few descriptors, slow heads: what a worker does at its limits (cases 21, 25, 27). Real proxies."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.harness import ROOT, get, prepare, run, running

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def connect(port: int, count: int, sent: bytes = b"") -> list[Connection]:
    connections = []
    for _ in range(count):
        connections.append(await asyncio.open_connection("127.0.0.1", port))
        if sent:
            connections[-1][1].write(sent)
    return connections


def close(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()


def test_few_descriptors_are_survived(tmp_path: Path) -> None:
    """Case 27: 400 connections on 256 descriptors; running streams go on, nothing spins, and it recovers at once."""
    proxy = prepare(tmp_path)
    code = (
        "import asyncio, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from tests.runtime.harness import *; from pathlib import Path\n"
        "print(asyncio.run(prepare(Path(sys.argv[1]), proxy__port=int(sys.argv[2])).start()).pid)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(proxy.port)], cwd=ROOT, check=True, timeout=60)

    async def main() -> None:
        try:
            (worker,) = (await proxy.handle()).worker_pids
            streams = [asyncio.create_task(get(proxy.port, "/stream/150", seconds=30)) for _ in range(4)]
            await asyncio.sleep(0.3)
            before, began = cpu_seconds(worker), time.monotonic()
            idle = await connect(proxy.port, 400)
            await asyncio.sleep(1.5)
            assert cpu_seconds(worker) - before < 0.5 * (time.monotonic() - began)
            close(idle)
            began = time.monotonic()
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
            assert time.monotonic() - began < 2
            assert all(b"[DONE]" in answer for answer in await asyncio.gather(*streams))
            assert (await proxy.handle()).worker_pids == [worker]
            assert "only 256 files may be open" in proxy.log()
        finally:
            await proxy.service.stop(now=True)

    run(main)


def test_too_few_descriptors_are_refused(tmp_path: Path) -> None:
    code = (
        "import asyncio, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from tests.runtime.harness import *; from pathlib import Path\n"
        "try: asyncio.run(prepare(Path(sys.argv[1])).start())\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    )
    assert "only 100 files may be open" in done.stdout


def test_a_slow_head_is_cut_and_others_are_served(tmp_path: Path) -> None:
    """Case 21, in miniature: the deadline is absolute, however steadily bytes come."""

    async def main() -> None:
        async with running(tmp_path, proxy__header_timeout_seconds=2) as proxy:
            slow = await connect(proxy.port, 200, b"GET /echo HTTP/1.1\r\nHost:")
            began = time.monotonic()
            worst = 0.0
            while time.monotonic() - began < 1.6:
                for _, writer in slow:
                    writer.write(b"x")
                asked = time.monotonic()
                assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
                worst = max(worst, time.monotonic() - asked)
                await asyncio.sleep(0.2)
            answers = await asyncio.gather(*(asyncio.wait_for(reader.read(), 5) for reader, _ in slow))
            assert not any(answers)
            assert 1.9 < time.monotonic() - began < 5
            assert worst < 2
            close(slow)

    run(main)


@pytest.mark.slow
def test_many_idle_connections(tmp_path: Path) -> None:
    """Case 25: each gets its answer, and an idle one costs little and is closed by the header timeout."""
    count = 1500

    async def main() -> None:
        async with running(tmp_path, proxy__header_timeout_seconds=6) as proxy:
            (worker,) = (await proxy.handle()).worker_pids
            before = resident_bytes(worker)
            idle = await connect(proxy.port, count, b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for reader, _ in idle:
                assert (await asyncio.wait_for(reader.readline(), 15)).startswith(b"HTTP/1.1 200")
            assert (resident_bytes(worker) - before) / count < 32_768
            assert (await get(proxy.port)).startswith(b"HTTP/1.1 200")
            await asyncio.gather(*(asyncio.wait_for(reader.read(), 25) for reader, _ in idle))
            close(idle)

    run(main)

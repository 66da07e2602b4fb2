"""CPU per non-streaming request of FLM against that of nginx's `proxy_pass`, and the memory of one FLM worker.

One demo engine behind both, the same client in front of both, rounds in turn so that what else the machine does hits
them alike. Counted is the CPU time of all their processes (user and system), not the wall time: it does not depend on
how fast client and engine are. Both log every request, as they do by default.

    python -m benches.nginx_ratio [--rounds 7] [--requests 3000] [--json FILE]

Gates: at most GATE_RATIO times the CPU of plain `proxy_pass`, at most GATE_RSS_MB resident memory of a worker. nginx
with connections kept to the engine is reported beside it, since FLM keeps them too. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benches.client import Target, round_of
from loadtests.stage import ENGINE_MODEL, MODEL, Stage, free_port, stage

GATE_RATIO = 5.0
GATE_RSS_MB = 80.0
CONNECTIONS = 8
START_SECONDS = 10.0
WARM_UP = 500  # requests per target before the first round
ABSENT = (
    "nginx is not installed, so there is nothing to compare with; on Debian and Ubuntu: apt-get install nginx-light"
)

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/access.log; keepalive_requests 10000000; keepalive_timeout 600;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server {engine}; keepalive 64; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{plain}; location / {{ proxy_pass http://{engine}; }} }}
  server {{ listen 127.0.0.1:{kept}; location / {{
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""


@dataclass(frozen=True)
class Contestant:
    """One way to the engine. `root` is the process whose descendants, itself included, do the work."""

    name: str
    root: int
    target: Target


@dataclass(frozen=True)
class Result:
    """Microseconds of CPU per request, one number per round; `ratio` is FLM's median over that of plain nginx."""

    microseconds: dict[str, list[float]]
    ratio: float
    ratio_kept: float
    worker_rss_mb: float

    @property
    def passed(self) -> bool:
        return self.ratio <= GATE_RATIO and self.worker_rss_mb <= GATE_RSS_MB

    def table(self) -> str:
        rows = [
            f"{name:22} {statistics.median(values):7.1f} µs CPU a request   (rounds: "
            + " ".join(f"{value:.1f}" for value in values)
            + ")"
            for name, values in self.microseconds.items()
        ]
        rows.append(f"FLM / nginx                 {self.ratio:.2f}   (gate {GATE_RATIO:g})")
        rows.append(f"FLM / nginx, kept alive     {self.ratio_kept:.2f}   (reported)")
        rows.append(f"resident memory of a worker {self.worker_rss_mb:.1f} MB   (gate {GATE_RSS_MB:g})")
        return "\n".join([*rows, "passed" if self.passed else "FAILED"])


def cpu_seconds(root: int) -> float:
    """CPU time of a process and all its descendants, user and system, threads included; rounded to ticks of 10 ms.

    schedstat would be finer, but some kernels leave it at zero.
    """
    ticks = 0
    for pid in tree(root):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no resident memory")


@contextmanager
def nginx(engine: str) -> Iterator[tuple[int, int, int]]:
    """A running nginx in front of `engine` (host:port): its pid, the plain port, the one with kept connections."""
    with tempfile.TemporaryDirectory(prefix="flm-nginx-") as folder:
        plain, kept = free_port(), free_port()
        configuration = Path(folder) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        configuration.write_text(NGINX.format(folder=folder, user=user, engine=engine, plain=plain, kept=kept))
        with subprocess.Popen([nginx_binary(), "-e", "stderr", "-c", str(configuration)]) as process:
            try:
                for port in (plain, kept):
                    wait_for(process, port)
                yield process.pid, plain, kept
            finally:
                process.terminate()


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the port takes connections. Raises RuntimeError if the process ends first, or after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise RuntimeError("nginx did not start; its reason is on stderr")


def nginx_binary() -> str:
    """Raises FileNotFoundError saying what to install."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(ABSENT)
    return found


def contestants(running: Stage, nginx_pid: int, plain: int, kept: int) -> list[Contestant]:
    address = urlsplit(running.url)
    supervisor = running.flm.status()[0]["pid"]
    ours = Target(address.hostname or "", address.port or 0, MODEL, running.key)
    return [
        Contestant("FLM", supervisor, ours),
        Contestant("nginx", nginx_pid, Target("127.0.0.1", plain, ENGINE_MODEL)),
        Contestant("nginx, kept alive", nginx_pid, Target("127.0.0.1", kept, ENGINE_MODEL)),
    ]


async def compare(entered: list[Contestant], rounds: int, requests: int) -> dict[str, list[float]]:
    for one in entered:
        await round_of(one.target, WARM_UP, CONNECTIONS)
    spent: dict[str, list[float]] = {one.name: [] for one in entered}
    for _ in range(rounds):
        for one in entered:
            before = cpu_seconds(one.root)
            await round_of(one.target, requests, CONNECTIONS)
            spent[one.name].append((cpu_seconds(one.root) - before) / requests * 1e6)
    return spent


def run(rounds: int, requests: int) -> Result:
    with stage(controls=False) as running, nginx(urlsplit(running.engine.url).netloc) as (pid, plain, kept):
        entered = contestants(running, pid, plain, kept)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            spent = runner.run(compare(entered, rounds, requests))
        worker = running.flm.status()[0]["worker_pids"][0]
        memory = resident_mb(worker)
    ours, theirs, theirs_kept = (statistics.median(spent[one.name]) for one in entered)
    return Result(spent, ours / theirs, ours / theirs_kept, memory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.nginx_ratio", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3000, help="in each round, to each")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--optional", action="store_true", help="succeed where nginx is not installed, and say so")
    given = parser.parse_args()
    try:
        nginx_binary()
    except FileNotFoundError as error:
        print(f"left out: {error}" if given.optional else error, file=sys.stderr)
        return 0 if given.optional else 1
    result = run(given.rounds, given.requests)
    print(result.table())
    if given.json:
        given.json.write_text(json.dumps(asdict(result) | {"passed": result.passed}))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())

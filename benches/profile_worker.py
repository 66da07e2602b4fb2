"""Where a worker's time goes: a proxy with one worker under cProfile answers requests, then the profile is printed.

    python -m benches.profile_worker [--requests 5000] [--lines 40] [--sort tottime]

A help for tuning, not a gate. For the time in Rust and the kernel: `perf record -g -p <pid of the worker>` while
`benches.nginx_ratio` runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pstats
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benches.client import Target, round_of
from benches.profiled_worker import PATH_VARIABLE
from flm.services import locate_folder
from flm.services.proxy import ProxyService
from loadtests.stage import ENGINE_ID, MODEL, Flm, free_port
from tests.support.demo import demo_engine


async def serve(home: Path, key: str, requests: int) -> None:
    """Start the profiled proxy of the data folder FLM_HOME, load it, stop it."""
    service = ProxyService(locate_folder(), worker_module="benches.profiled_worker")
    handle = await service.start({"proxy.port": free_port()})
    try:
        address = urlsplit(handle.endpoints.localhost or "")
        target = Target(str(address.hostname), address.port or 0, MODEL, key)
        await round_of(target, requests, connections=8)
    finally:
        await service.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.profile_worker", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--sort", default="tottime", help="tottime (default), cumulative, ncalls")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flm-profile-") as folder, demo_engine(controls=False) as engine:
        flm, written = Flm(Path(folder) / "home"), Path(folder) / "profile"
        flm.run("engines", "add", "--id", ENGINE_ID, "--kind", "openai", "--url", engine.url)
        key = flm.run("api-keys", "create", "--label", "bench")["key"]
        os.environ.update({"FLM_HOME": str(flm.home), PATH_VARIABLE: str(written)})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(flm.home, key, given.requests))
        pstats.Stats(str(written)).sort_stats(given.sort).print_stats(given.lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m flm.demo`: the demo engine in the foreground. Prints one JSON line when it listens."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from flm.demo.registry import DIALECTS, create
from flm.demo.run import Ready, Running, print_ready, run
from flm.demo.server import IDLE_SECONDS, explain_bind_error


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flm.demo", description="A small engine with deterministic answers."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="openai")
    parser.add_argument("--model", action="append", default=[], help="a model's name; may be given several times")
    parser.add_argument("--engine-version", help="the version the engine says it has")
    parser.add_argument("--api-key-file", type=Path, help="the key this file holds is demanded of every caller")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between the pieces of a stream (default 0)")
    parser.add_argument("--admin", action="store_true", help="open the /demo/ routes, for tests")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds until an idle connection is closed")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input ends")
    parser.add_argument("--ready-fd", type=int, help="announce on this descriptor instead of standard output")
    return parser


def main() -> int:
    given = arguments().parse_args()
    key = given.api_key_file.read_text().strip() if given.api_key_file else None
    dialect = create(given.dialect, tuple(given.model), given.engine_version, key)
    running = Running(
        dialect=dialect,
        host=given.host,
        port=given.port,
        controls=given.admin,
        idle_seconds=given.idle,
        pace=given.pace,
        parent_pipe=sys.stdin.fileno() if given.until_stdin_closes else None,
    )

    def announce(ready: Ready) -> None:
        if given.ready_fd is None:
            print_ready(ready)
            return
        os.write(given.ready_fd, msgspec.json.encode(ready) + b"\n")
        os.close(given.ready_fd)

    try:
        run(running, announce)
    except OSError as error:
        sys.stderr.write(explain_bind_error(given.host, given.port, error) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

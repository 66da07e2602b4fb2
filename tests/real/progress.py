"""Run one long command and show a person that it lives.

Does not know what is being built. Its output goes whole to a log file; the screen gets one line that updates on a
terminal, or one line every 15 seconds where there is none (CI), and the end of the log when the command fails.

Strategy: the child has a session of its own, so that an interrupted build takes its compilers with it instead of
leaving them at work.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TERMINAL_INTERVAL_SECONDS = 0.5
LOG_INTERVAL_SECONDS = 15.0
LINES_ON_FAILURE = 30
END_GRACE_SECONDS = 5.0
TAIL_BYTES = 16384

_COUNTER = re.compile(rb"\[\s*(\d+)/(\d+)\]|\[\s*(\d+)%\]")


class StepError(Exception):
    """A command failed; the text is ready to be shown: what ran, the end of its log, where the whole log is."""


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        return file.read()


def _counter(log: Path) -> str:
    """The build tool's own last `[12/206]` or `[ 40%]`, if it prints one."""
    last = None
    for last in _COUNTER.finditer(_tail(log)):  # noqa: B007 - only the last match is wanted
        pass
    if last is None:
        return ""
    return f" {last[1].decode()}/{last[2].decode()}" if last[1] else f" {last[3].decode()}%"


def _elapsed(since: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - since), 60)
    return f"{minutes}:{seconds:02d}"


def _show(text: str, *, final: bool = False) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if final else "", flush=True)
    else:
        print(text, flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """The command's exit code; `tick` is called each time the interval has passed while it still runs."""
    interval = TERMINAL_INTERVAL_SECONDS if sys.stdout.isatty() else LOG_INTERVAL_SECONDS
    while True:
        try:
            return process.wait(interval)
        except subprocess.TimeoutExpired:
            tick()


def run_step(label: str, command: Sequence[str], log: Path, *, env: Mapping[str, str], cwd: Path) -> None:
    """Run `command` in `cwd` to its end, appending its output to `log`, showing `label` and the time it has taken.

    Raises StepError when the command cannot be started or exits with a failure.
    """
    started = time.monotonic()
    _show(f"  {label} …")
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise StepError(f"{label}: cannot start {command[0]}: {error}") from error
        try:
            code = _wait(process, lambda: _show(f"  {label}{_counter(log)} … {_elapsed(started)}"))
        finally:
            if process.returncode is None:
                _end(process)
    if code != 0:
        lines = "\n".join(_tail(log).decode(errors="replace").splitlines()[-LINES_ON_FAILURE:])
        raise StepError(f"{label} failed (exit code {code}); the end of {log}:\n\n{lines}\n")
    _show(f"  {label}: done in {_elapsed(started)}", final=True)

"""What a command that takes its time is at, on stderr: one line for each step, with the seconds since the start.

Lines that stay, rather than one that is drawn over: what a CA said is read again when something fails, and a log of a
service manager or a CI job shows it as well. Text that comes from elsewhere cannot steer the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flm.cli.output import printable


@contextmanager
def progress() -> Iterator[Callable[[str, str], None]]:
    """A function that is told a step, in a word, and a detail for people."""
    began = time.monotonic()

    def step(name: str, detail: str) -> None:
        text = printable(detail).replace("\n", " ")
        print(f"{time.monotonic() - began:5.1f} s  {name:<12} {text}", file=sys.stderr, flush=True)

    yield step

"""Ports for programs that a test starts and that have to be told theirs.

Strategy: below the ports that the kernel gives to connections and to sockets bound to port 0, since between a look and
the start of the program any of the tests beside would be given it: that happened about once a run. Nobody else asks for
these, and binding shows that each is free.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

_FIRST, _LAST = 15_000, 32_000  # above the ports that engines have by themselves, below Linux' local port range
_TRIES: Final = 100
_random = random.SystemRandom()  # tests that are run side by side must not draw the same


def free_ports(count: int) -> list[int]:
    """So many ports of 127.0.0.1 that nobody has, each another."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(_bound()).getsockname()[1] for _ in range(count)]


def free_port() -> int:
    return free_ports(1)[0]


def _bound() -> socket.socket:
    for _ in range(_TRIES):
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", _random.randint(_FIRST, _LAST)))
        except OSError:
            probe.close()
        else:
            return probe
    raise OSError(f"no port between {_FIRST} and {_LAST} is free")

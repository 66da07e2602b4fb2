"""Finds clients that read too slowly while all that FLM has for them is in the kernel's or the server's buffers.

Such a client takes nothing for `proxy.send_timeout_seconds`, or less than `proxy.min_bytes_per_second` over
STALL_SECONDS: it would hold its connection, and what is buffered for it, for ever. The kernel knows how much each has
acknowledged: a thread looks now and then, and tells of those that have had something waiting all the while.
TCP_USER_TIMEOUT would end the first kind as well, but nobody learns why a connection ended by it; so it is set to more,
and is there for a worker that does not look any more.

Linux only: other systems do not say what was acknowledged, nor have they such a timeout. Knows descriptors and no
requests; costs some microseconds for each connection and look.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from flm.runtime.sockets import own_sockets

LOOK_SECONDS: Final = 5.0  # between two looks; less where the send timeout is short
LOOKS_IN_A_TIMEOUT: Final = 4  # at least
STALL_SECONDS: Final = 30.0  # how long a client may be too slow: mobile networks pause for ten seconds and more
PLENTY_BYTES: Final = 4096  # less than this waiting is the tail of an answer, or one token: no sign of a slow reader

# struct tcp_info (linux/tcp.h): 8 bytes, 24 u32, then u64 pacing_rate, max_pacing_rate, bytes_acked
_ACKED: Final = struct.Struct("=Q")
_ACKED_OFFSET: Final = 120
_INFO_BYTES: Final = _ACKED_OFFSET + _ACKED.size

Peer = tuple[str, int]


log = logging.getLogger("flm.worker")


class Backlog(msgspec.Struct, frozen=True):
    """What one look saw of one connection: bytes waiting in the kernel, bytes the client has acknowledged so far."""

    peer: Peer
    waiting: int
    acknowledged: int


class _Since(msgspec.Struct, frozen=True):
    moment: float
    acknowledged: int


class Stragglers:
    """Decides who is too slow, from look to look. Pure: time and what was seen are arguments."""

    def __init__(self, bytes_per_second: int, send_timeout: float) -> None:
        self._rate = bytes_per_second
        self._send_timeout = send_timeout
        self._since: dict[Peer, _Since] = {}
        self._took: dict[Peer, _Since] = {}

    def judge(self, seen: list[Backlog], now: float) -> list[Peer]:
        """Those who have had PLENTY_BYTES waiting at each look for STALL_SECONDS and took less than the rate, and those
        who have had anything waiting and took nothing of it for the send timeout."""
        return list(dict.fromkeys(self._slow(seen, now) + self._deaf(seen, now)))

    def _deaf(self, seen: list[Backlog], now: float) -> list[Peer]:
        took = {}
        for each in seen:
            if each.waiting:
                before = self._took.get(each.peer)
                still = before is not None and before.acknowledged == each.acknowledged
                took[each.peer] = before if before is not None and still else _Since(now, each.acknowledged)
        self._took = took
        return [peer for peer, last in took.items() if now - last.moment >= self._send_timeout]

    def _slow(self, seen: list[Backlog], now: float) -> list[Peer]:
        since = {}
        slow = []
        for each in seen:
            if each.waiting < PLENTY_BYTES:
                continue
            began = self._since.get(each.peer)
            if began is None or began.acknowledged > each.acknowledged:  # new, or another connection of that peer
                began = _Since(now, each.acknowledged)
            elif now - began.moment >= STALL_SECONDS:
                if each.acknowledged - began.acknowledged < self._rate * (now - began.moment):
                    slow.append(each.peer)
                began = _Since(now, each.acknowledged)
            since[each.peer] = began
        self._since = since
        return slow


def look(port: int) -> list[Backlog]:
    """The backlog of every connection of this process that a client made to `port`."""
    seen = []
    for connection in own_sockets():
        with connection:
            try:
                if connection.getsockname()[1:2] != (port,):
                    continue
                host, remote = connection.getpeername()[:2]
                waiting = struct.unpack("=i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                seen.append(Backlog((host, remote), waiting, _ACKED.unpack_from(info, _ACKED_OFFSET)[0]))
            except (OSError, struct.error, ValueError):
                continue  # a listening socket, one that was just closed, or a kernel before 4.1
    return seen


def watch(port: int, bytes_per_second: int, send_timeout: float, tell: Callable[[tuple[str, str]], object]) -> None:
    """Look for them in a daemon thread, for as long as the process lives. `tell`, called in that thread, gets the
    address and port of each as an ASGI scope has them, again at each look until it is gone. Zero bytes per second are
    enough for anybody who takes some."""
    if not sys.platform.startswith("linux"):
        return
    stragglers = Stragglers(bytes_per_second, send_timeout)

    def run() -> None:
        while True:
            time.sleep(min(LOOK_SECONDS, send_timeout / LOOKS_IN_A_TIMEOUT))
            try:
                for host, remote in stragglers.judge(look(port), time.monotonic()):
                    tell((host, str(remote)))
            except OSError as error:  # no descriptor free at this moment: the next look may have one
                log.warning("could not look for clients that read too slowly: %s", error)

    threading.Thread(target=run, name="stragglers", daemon=True).start()

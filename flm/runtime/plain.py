"""The plain-HTTP port beside HTTPS, in the supervisor: sockets and deadlines around `flm.tls.plain`.

It is the one part of the supervisor that strangers reach, so it may take a small share of it and no more, whatever
they do. Strategy: no task for a connection, only callbacks of the loop and, while any connection is open, one tick.
Between two ticks a bounded number of connections is accepted, and each is read once; the rest waits in the kernel.
When all places are taken the connection that has had its turn longest makes way, so that idle ones lock nobody out.
Descriptors near the process's limit are left to the others.

Knows nothing of HTTP and of certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import resource
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from flm.tls.plain import LONGEST_HEAD, PlainConnection, Site

MOST_CONNECTIONS: Final = 256
CONNECTION_SECONDS: Final = 5.0  # from accept to close, whatever happens
TURN_SECONDS: Final = 0.5  # a connection has this long before it makes way for others: a round trip round the world
LINGER_SECONDS: Final = 2.0  # for the rest of a request that has its answer: closed on it, the answer may be lost
MOST_DISCARDED: Final = 1_048_576  # bytes of that rest
TICK_SECONDS: Final = 0.05
ACCEPTS_A_TICK: Final = 64  # so 1280 a second, which is a fifth of a core; a flood waits in the kernel's queue
ACCEPTS_A_TURN: Final = 16  # of one socket, before the loop does something else
RESERVED_DESCRIPTORS: Final = 128  # the process's last ones: for workers' pipes, databases, control connections
SHORTAGE_SECONDS: Final = 0.5  # without descriptors nothing is accepted for this long
_WARNING_SECONDS: Final = 60.0  # a flood of shortages is one line of the log each minute
_DISCARD_BYTES: Final = 65_536
_NOBODY_THERE: Final = (BlockingIOError, InterruptedError, ConnectionAbortedError)
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger("flm.plain")


class PlainListener:
    """Answers for `site` on listening sockets, which stay their owner's: closed by whoever opened them, and after
    `close` another image of this process may go on with them.

    `clock`: monotonic seconds. `most`: connections at a time.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        site: Site,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self._sockets = sockets
        self._site = site
        self._clock = clock
        self._most = most
        self._talks: dict[_Talk, None] = {}  # oldest first
        self._accepting = False
        self._closing = False
        self._budget = ACCEPTS_A_TICK
        self._ceiling = math.inf
        self._short_until = -math.inf
        self._warned_at = -math.inf
        self._ticking: asyncio.TimerHandle | None = None
        self._nobody: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._talks)

    def start(self) -> None:
        """Accept, on the running loop. Raises OSError if the sockets are none that listen."""
        self._loop = asyncio.get_running_loop()
        self._nobody = asyncio.Event()
        self._nobody.set()
        for each in self._sockets:
            each.setblocking(False)
        self._resume_accepting()

    async def close(self, grace: float = 0.0) -> None:
        """Accept no more, leave open connections `grace` seconds to end, and cut those that are left."""
        self._closing = True
        self._pause_accepting()
        if grace > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nobody.wait(), grace)
        for talk in list(self._talks):
            self._end(talk)
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    # --- accepting

    def _resume_accepting(self) -> None:
        if not self._accepting and not self._closing:
            self._accepting = True
            self._ceiling = _descriptors_allowed()
            for each in self._sockets:
                self._loop.add_reader(each, self._accept, each)

    def _pause_accepting(self) -> None:
        """Until the next tick."""
        if self._accepting:
            self._accepting = False
            for each in self._sockets:
                self._loop.remove_reader(each)
        self._keep_ticking()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._budget <= 0 or not self._has_place():
                self._pause_accepting()
                return
            try:
                connection, _ = listening.accept()
            except _NOBODY_THERE:
                return
            except OSError as error:
                self._run_short(error)
                return
            self._budget -= 1
            if connection.fileno() >= self._ceiling:  # the kernel gives the lowest that is free
                connection.close()
                self._run_short(OSError(errno.EMFILE, "the last descriptors are left to others"))
                return
            self._begin(connection)

    def _has_place(self) -> bool:
        """Whether one more connection is taken: there is room, or the oldest has had its turn."""
        if len(self._talks) < self._most:
            return True
        return self._clock() - next(iter(self._talks)).began_at >= TURN_SECONDS

    def _run_short(self, error: OSError) -> None:
        """Nothing can be accepted for want of descriptors or memory, or for a reason of the system's own."""
        now = self._clock()
        self._short_until = now + SHORTAGE_SECONDS
        self._pause_accepting()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            advice = "; raise the limit (`ulimit -n`, LimitNOFILE=)" if error.errno in _SHORTAGE else ""
            log.warning("the plain-HTTP port accepts no connection for now: %s%s", error.strerror, advice)

    # --- connections

    def _begin(self, connection: socket.socket) -> None:
        if len(self._talks) >= self._most:
            self._end(next(iter(self._talks)))
        connection.setblocking(False)
        talk = _Talk(connection, PlainConnection(self._site), self._clock())
        self._talks[talk] = None
        self._nobody.clear()
        self._loop.add_reader(talk.number, self._read, talk)
        self._keep_ticking()

    def _read(self, talk: _Talk) -> None:
        going_on = False
        try:
            with contextlib.suppress(OSError):  # the client has left
                going_on = talk.read(self._clock())
        finally:
            if going_on:
                self._arrange(talk)
            else:
                self._end(talk)

    def _write(self, talk: _Talk) -> None:
        going_on = False
        with contextlib.suppress(OSError):
            going_on = talk.write()
        if going_on:
            self._arrange(talk)
        else:
            self._end(talk)

    def _arrange(self, talk: _Talk) -> None:
        """Wait for what the connection waits for. Reading rests until the next tick: one byte after the other would
        cost the loop a turn each."""
        if talk.unsent:
            self._loop.remove_reader(talk.number)
            self._loop.add_writer(talk.number, self._write, talk)
        else:
            self._loop.remove_writer(talk.number)
            self._loop.remove_reader(talk.number)
            talk.resting = True

    def _end(self, talk: _Talk) -> None:
        del self._talks[talk]
        self._loop.remove_reader(talk.number)
        self._loop.remove_writer(talk.number)
        talk.socket.close()
        if not self._talks:
            self._nobody.set()

    # --- the tick

    def _keep_ticking(self) -> None:
        if self._ticking is None and (self._talks or not (self._accepting or self._closing)):
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = self._clock()
        for talk in list(self._talks):
            if talk.until <= now:
                self._end(talk)
            elif talk.resting:
                talk.resting = False
                self._loop.add_reader(talk.number, self._read, talk)
        self._budget = ACCEPTS_A_TICK
        if now >= self._short_until:
            self._resume_accepting()
        self._keep_ticking()


def _descriptors_allowed() -> float:
    """From this number on they are not the listener's to take."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else max(limit - RESERVED_DESCRIPTORS, limit // 2)


class _Talk:
    """One connection. `until`: when it is over at the latest; `unsent`: what is left of the answer; `resting`: not
    read until the next tick."""

    def __init__(self, connection: socket.socket, http: PlainConnection, now: float) -> None:
        self.socket = connection
        self.number = connection.fileno()  # a loop that is given a socket makes a text of it again and again
        self.began_at = now
        self.until = now + CONNECTION_SECONDS
        self.unsent = b""
        self.resting = False
        self._http = http
        self._discarded = 0

    def read(self, now: float) -> bool:
        """Take what has come, and answer. False: it is over. Raises OSError."""
        try:
            data = self.socket.recv(_DISCARD_BYTES if self._http.answered else LONGEST_HEAD)
        except (BlockingIOError, InterruptedError):
            return True
        if not data:
            return False
        if self._http.answered:
            self._discarded += len(data)
            return self._discarded <= MOST_DISCARDED
        answer = self._http.feed(data, time.time())
        if answer is None:
            return True
        self.unsent = answer
        self.until = min(self.until, now + LINGER_SECONDS)
        return self.write()

    def write(self) -> bool:
        """Send what is left of the answer, and then that nothing follows. True: the client may go on sending, which is
        read, since a connection closed on unread bytes is reset, and its answer lost. Raises OSError."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        if not self.unsent:
            self.socket.shutdown(socket.SHUT_WR)
        return True

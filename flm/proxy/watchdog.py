"""One timer for all the waiting one request does towards its client.

Arming only moves a number; the timer behind it is set again when it fires early, or when a nearer deadline comes.
So a request costs one timer, however many pieces its body and its answer have.

Does not know what is waited for: whoever arms it says what to raise when time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

Reason = Callable[[], Exception]

_CLOCK_STEP: Final = 0.002  # uvloop rounds to milliseconds: a timer may fire this much early
_NEVER: Final = float("inf")


class Watchdog:
    """Calls `interrupt` with the reason last armed, once, when the deadline passes."""

    __slots__ = ("_deadline", "_fires_at", "_handle", "_interrupt", "_loop", "_reason")

    def __init__(self, loop: asyncio.AbstractEventLoop, interrupt: Callable[[Exception], None]) -> None:
        self._loop = loop
        self._interrupt = interrupt
        self._deadline = self._fires_at = _NEVER
        self._handle: asyncio.TimerHandle | None = None
        self._reason: Reason | None = None

    def arm(self, deadline: float, reason: Reason) -> None:
        """From now on `reason()` is what happens at loop time `deadline`; replaces what was armed before."""
        self._deadline = deadline
        self._reason = reason
        if deadline < self._fires_at:
            self._schedule()

    def disarm(self) -> None:
        """Nothing is waited for. The timer may still fire; it then does nothing."""
        self._deadline = _NEVER

    def close(self) -> None:
        """The request is over."""
        self._deadline = _NEVER
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._fires_at = self._deadline
        self._handle = self._loop.call_at(self._deadline, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._fires_at = _NEVER
        if self._deadline is _NEVER or self._reason is None:
            return
        if self._loop.time() + _CLOCK_STEP < self._deadline:
            self._schedule()
            return
        self._deadline = _NEVER
        self._interrupt(self._reason())

"""What of the wall clock is believed when rows are deleted by their age.

A clock that jumps ahead (a wrong answer of a time server, a virtual machine that was resumed) makes every row too old
at once, and a row that is deleted does not come back when the clock is right again. So a jump of more than STEP_SECONDS
is believed only when the clock has said so for DOUBT_SECONDS in which this process ran; until then time goes on from
where it was. A clock that goes back is believed at once: that deletes nothing.

Pure: both clocks are arguments. Knows no rows. A jump while no process ran cannot be told from a pause.
"""

from __future__ import annotations

from typing import Final

STEP_SECONDS: Final = 86_400.0
DOUBT_SECONDS: Final = 86_400.0


class BelievedTime:
    """The time by which rows are too old. A machine that slept counts as one whose clock jumped."""

    def __init__(self) -> None:
        self._offset: float | None = None  # the Unix time at which the monotonic clock was at zero, as believed
        self._doubted: tuple[float, float] | None = None  # since when, and the least jump seen since then

    def at(self, wall: float, monotonic: float) -> float:
        """Unix seconds. `wall` is what the wall clock says, `monotonic` never steps; both in seconds."""
        offset = wall - monotonic
        if self._offset is None or offset <= self._offset + STEP_SECONDS:
            self._offset, self._doubted = offset, None
        elif self._doubted is None:
            self._doubted = monotonic, offset
        else:
            since, least = self._doubted[0], min(self._doubted[1], offset)
            if monotonic < since + DOUBT_SECONDS:
                self._doubted = since, least
            else:
                self._offset, self._doubted = least, None
        return monotonic + self._offset

"""The end of an attempt: how much time is left, what was being done when it was over, and how long to wait between two
looks at what a CA does. Monotonic; blocking.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final

from flm.tls.refusal import Refused, duration

# Most CAs are done within a second or two, so the first looks come early; then as the CA asks (Retry-After).
EARLY_POLLS: Final = (0.1, 0.25, 0.5, 1.0)  # seconds
LATER_POLLS: Final = 2.0  # seconds, if the CA does not ask for more
LONGEST_POLL: Final = 15.0  # seconds; a CA that asks for more would make an attempt late that goes well


class Deadline:
    """`seconds` from now. `doing`: what is done just then, for the message; completes "it was still …"."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds
        self.doing = "starting"

    def left(self) -> float:
        """Seconds left, more than 0. Raises Refused if there are none."""
        self.check()
        return max(0.001, self._end - self._clock())

    def check(self) -> None:
        """Raises Refused when the time is over."""
        if self._clock() >= self._end:
            raise too_late(self._seconds, self.doing)

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until the time is over, which raises Refused."""
        time.sleep(min(seconds, self.left()))
        self.check()


def too_late(seconds: float, doing: str) -> Refused:
    """The refusal of an attempt that took longer than `seconds`."""
    return Refused(
        "deadline",
        f"there was no certificate after {duration(seconds)}: it was still {doing}. "
        "An order that the CA has taken is gone on with by the next attempt",
    )


def polls(deadline: Deadline) -> Iterator[Callable[[float], None]]:
    """For each look at what a CA does, a function that waits for the next one; it takes the seconds that the CA asked
    for, 0 if it did not. Endless but for the deadline, which raises Refused."""
    for count in itertools.count():
        early = EARLY_POLLS[count] if count < len(EARLY_POLLS) else None
        yield functools.partial(_wait, deadline, early)


def _wait(deadline: Deadline, early: float | None, asked: float) -> None:
    deadline.sleep(early if early is not None else min(max(LATER_POLLS, asked), LONGEST_POLL))

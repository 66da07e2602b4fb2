"""How often something may be done at a CA in a while, counted over restarts: the arithmetic.

Public CAs count failed validations of a name (Let's Encrypt: five an hour) and certificates for the same names (five
a week), and a service that is started again and again would use both up. So each use is noted with its moment, and
there is no further one while as many as are allowed lie in the last while.

Strategy: a moment is told by two clocks. The wall clock outlives the machine's restarts and may be wrong; the seconds
since the machine was started are right and do not outlive them. Within one run of the machine only the latter count,
so a clock that is set neither forgets a use nor keeps it longer. At the first look of another run the wall clock says
how old a use is, and one that it puts into the future was just now: then it is over after one while at most.

Pure: moments are arguments. Knows no CA, no database and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec


class Limit(msgspec.Struct, frozen=True):
    """`most` uses in any `seconds`."""

    most: int
    seconds: float


FAILED_VALIDATIONS: Final = Limit(5, 3600.0)  # of one name, at one directory
# At Let's Encrypt's staging directory, which allows 200 an hour: whoever opens a port step by step starts often.
FAILED_REHEARSALS: Final = Limit(60, 3600.0)
# Certificates because the file of the one before was damaged: of the five for the same names that Let's Encrypt issues
# in a week the first one, a renewal and a person's own need the rest.
DAMAGED_FILES: Final = Limit(2, 7 * 86_400.0)


class Instant(msgspec.Struct, frozen=True):
    """A moment. `wall`: Unix seconds. `boot`: names a run of this machine, empty if nothing does; `up`: the seconds
    since that began."""

    wall: float
    boot: str = ""
    up: float = 0.0


def rebased(then: Instant, now: Instant) -> Instant:
    """`then` as this run of the machine tells it; never later than `now`."""
    age = now.up - then.up if then.boot and then.boot == now.boot else now.wall - then.wall
    age = max(0.0, age) if math.isfinite(age) else 0.0
    return Instant(now.wall - age, now.boot, now.up - age)


def wait(uses: Iterable[Instant], limit: Limit, now: Instant) -> float:
    """Seconds from `now` until there may be another use; 0: at once. Never more than `limit.seconds`."""
    ages = sorted(now.wall - rebased(use, now).wall for use in uses)
    if len(ages) < limit.most:
        return 0.0
    return max(0.0, limit.seconds - ages[limit.most - 1])

"""When to renew a certificate, when to look again, and how long to wait after a failure: the arithmetic of time.

Strategy: a certificate is due when a third of its life is left, a little earlier by chance, so that those issued
together are not renewed together. A window that the CA suggests (RFC 9773) takes the place of that where it makes
sense, and where it is past it means now; where it does not, it is ignored. Nothing is put off beyond the last tenth.

Pure: times and chance are arguments, so a clock that jumps is only another argument. Times are Unix seconds. Knows no
clock, no CA and no certificate.
"""

from __future__ import annotations

import math
from typing import Final

LEFT_WHEN_DUE: Final = 1 / 3  # of the lifetime: Let's Encrypt's advice, 30 of 90 days, and 2 of 6
EARLIER_BY: Final = 0.05  # of the lifetime, at most and by chance
LEFT_AT_LATEST: Final = 0.1  # of the lifetime, whatever a CA suggests: what a failure or two may take
LONG_PAST_SECONDS: Final = 86_400.0  # a window that closed this long before the certificate began is a mistake

# A certificate that gave way sooner than this part of its life says that a CA wants each one renewed at once, or that
# the clock here is wrong: then the next ones are put apart, by a minute, four, sixteen, and this part at most.
BRIEF_LIFE: Final = 0.05
APART_SECONDS: Final = 60.0
LONGEST_APART_SECONDS: Final = 21_600.0

LOOK_SECONDS: Final = 600.0  # a clock that was set, or a certificate that was swapped, is noticed by then
SHORTEST_LOOK_SECONDS: Final = 5.0

LONGEST_BACKOFF_SECONDS: Final = 691_200.0  # eight days: limits of public CAs are over in a week
JITTER: Final = 0.25  # of a wait, on top of it
# Kind of failure (`words.KINDS`) to its first wait and its longest, in seconds; each failure doubles it.
BACKOFF: Final[dict[str, tuple[float, float]]] = {
    "network": (15.0, 3600.0),
    "server": (30.0, 3600.0),
    "deadline": (30.0, 3600.0),
    "tls": (60.0, 3600.0),
    "local": (60.0, 3600.0),
    # Let's Encrypt allows five failed validations of a name an hour. Two at a start and then one each quarter of an
    # hour are five.
    "validation": (900.0, 3600.0),
    "rejected": (900.0, 21_600.0),  # nobody but a person can change the answer
    "rate_limited": (900.0, 21_600.0),
}
_OTHER: Final = (60.0, 3600.0)
_MOST_DOUBLINGS: Final = 16  # more would be beyond every longest wait


def due(not_before: float, not_after: float, window: tuple[float, float] | None, chance: float) -> float:
    """When a certificate is to be renewed: from `not_before` to the moment when a tenth of its life is left.

    `window`: start and end that the CA suggests, None for no suggestion. `chance`: 0 to 1, the same for one
    certificate at each call. One that was never valid is due at the earlier of its dates. Raises ValueError for dates
    that are no numbers.
    """
    lifetime = not_after - not_before
    if not math.isfinite(lifetime):
        raise ValueError(f"a certificate is valid from a moment to another, not from {not_before} to {not_after}")
    if lifetime <= 0:
        return not_after
    latest = not_after - LEFT_AT_LATEST * lifetime
    moment = not_after - (LEFT_WHEN_DUE + EARLIER_BY * _within(chance)) * lifetime
    if window is not None and _makes_sense(window, not_before, not_after):
        start, end = window
        moment = start + _within(chance) * (end - start)
    return max(not_before, min(moment, latest))


def _makes_sense(window: tuple[float, float], not_before: float, not_after: float) -> bool:
    """Whether it is a window at all, and one for this certificate. One that is past makes sense: it says now."""
    start, end = window
    in_order = math.isfinite(start) and math.isfinite(end) and start <= end
    return in_order and end <= not_after and end >= not_before - LONG_PAST_SECONDS


def lived_briefly(former: float, not_before: float, not_after: float) -> bool:
    """Whether the certificate that was valid from `former` on gave way too soon to one of these dates."""
    return not_before - former < BRIEF_LIFE * (not_after - not_before)


def apart(brief: int, not_before: float, not_after: float) -> float:
    """Seconds for which a certificate is not renewed for being due, after `brief` in a row that lived briefly. None
    is kept back for its last tenth: a wait is a twentieth of the life at most, and six hours."""
    if brief <= 0:
        return 0.0
    longest = min(LONGEST_APART_SECONDS, BRIEF_LIFE * max(0.0, not_after - not_before))
    return min(APART_SECONDS * 4.0 ** min(brief - 1, _MOST_DOUBLINGS), longest)


def next_check(now: float, due: float) -> float:
    """Seconds to wait at `now` before looking again at what is `due` then: 5 to 600, whatever the two are."""
    wait = due - now
    return min(max(wait, SHORTEST_LOOK_SECONDS), LOOK_SECONDS) if math.isfinite(wait) else LOOK_SECONDS


def backoff(failures: int, kind: str, retry_after: float, chance: float) -> float:
    """Seconds to wait after `failures` failures in a row, 1 or more, the last one of `kind`: never less than
    `retry_after`, which the CA asked for (0: it did not), but eight days at most. `chance`: 0 to 1."""
    first, longest = BACKOFF.get(kind, _OTHER)
    wait = min(first * 2.0 ** min(max(failures - 1, 0), _MOST_DOUBLINGS), longest)
    wait *= 1 + JITTER * _within(chance)
    asked = 0.0 if math.isnan(retry_after) else min(retry_after, LONGEST_BACKOFF_SECONDS)
    return max(wait, asked)


def _within(chance: float) -> float:
    return min(max(0.0, chance), 1.0)  # no number is 0

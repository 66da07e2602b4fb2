"""How people say until when: `90s`, `12h`, `30d`, `8w`, or a moment as RFC 3339 has it.

Knows no clock: now is an argument. Moments are whole Unix seconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from flm.errors import CommandCode, CommandError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhdw])")
# RFC 3339 §5.6, which wants a time zone; the parser of the standard library takes more than that.
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_LAST: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())  # what a date can still be written as
_SHOWN: Final = 80  # characters of what was given that an error repeats


def seconds(text: str, what: str) -> int:
    """A duration in seconds, 1 at least. `what` is named in the error. Raises USAGE."""
    found = _DURATION.fullmatch(text.strip())
    length = int(found[1]) * _UNITS[found[2]] if found else 0
    if length < 1:
        raise _wrong(text, what, "a duration above zero: `90s`, `15m`, `12h`, `30d` or `8w`")
    return length


def moment(text: str, what: str, now: float) -> int:
    """When that is: a duration from `now` on, or a moment after it. Raises USAGE."""
    found = _MOMENT.fullmatch(text.strip())
    at = _parsed(found[0]) if found else int(now) + _length(text, what)
    if at is None:
        raise _wrong(text, what, "a moment that there is")
    if at <= now:
        raise _wrong(text, what, "in the future")
    if at > _LAST:
        raise _wrong(text, what, "before the year 10000")
    return at


def _length(text: str, what: str) -> int:
    try:
        return seconds(text, what)
    except CommandError:
        allowed = (
            "a duration above zero, such as `90s`, `15m`, `12h`, `30d`, `8w`, or a moment such as "
            "`2030-01-31T12:00:00Z` (RFC 3339, with its zone)"
        )
        raise _wrong(text, what, allowed) from None


def _parsed(text: str) -> int | None:
    try:
        return int(datetime.fromisoformat(text.upper()).timestamp())
    except (ValueError, OverflowError):
        return None


def _wrong(text: str, what: str, allowed: str) -> CommandError:
    return CommandError(CommandCode.USAGE, f"{what} must be {allowed}, not {text[:_SHOWN]!r}")

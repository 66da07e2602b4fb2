"""Times as people and programs read them: RFC 3339 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


def rfc3339(seconds: float | None) -> str | None:
    """Unix seconds as `2026-11-24T09:00:00Z`, with milliseconds if there are any. What no date can say, as another
    program may have stored it, is the first or the last one that there is: a list must not fail by one of its rows."""
    if seconds is None:
        return None
    seconds = min(max(seconds, _FIRST), _LAST)
    precision = "seconds" if seconds == int(seconds) else "milliseconds"
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")

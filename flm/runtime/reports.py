"""What a worker tells its supervisor: of engines that failed a request, so that the failure counts as a check; and
which keys were used.

Does not know what a failure is (the pool decides), nor what follows from one (the prober does). Strategy: at most one
report per engine and REPORT_SECONDS, so that a thousand requests that fail at once are one piece of news; sending
never blocks, and a report that does not fit is lost: the next failure, the next check, or the next use of the key says
the same. For a request the use of its key costs one look into a set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flm.runtime.boot import Word

REPORT_SECONDS: Final = 1.0
MAX_ENGINES: Final = 1024  # remembered at once; more are rather reported twice
MAX_TEXT: Final = 500  # characters of what went wrong
USE_SECONDS: Final = 2.0  # between two reports of used keys
MAX_KEYS: Final = 1024  # collected until they are told, however soon that is
_KEYS_IN_A_WORD: Final = 128  # 2 KB

Clock = Callable[[], float]


class FailureReports:
    """`say` sends one word to the supervisor, without blocking; `clock` is monotonic seconds."""

    def __init__(self, say: Callable[[Word], None], clock: Clock = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._last: dict[str, float] = {}

    def __call__(self, engine_id: str, message: str) -> None:
        now = self._clock()
        last = self._last.get(engine_id)
        if last is not None and now < last + REPORT_SECONDS:
            return
        if len(self._last) >= MAX_ENGINES:
            self._last.clear()
        self._last[engine_id] = now
        self._say(Word("engine-failed", message[:MAX_TEXT], engine_id))


class UsedKeys:
    """Which keys requests came with since the last report. `say` as above."""

    def __init__(self, say: Callable[[Word], None]) -> None:
        self._say = say
        self._used: set[str] = set()

    def __call__(self, key_id: str) -> None:
        if key_id not in self._used:
            self._used.add(key_id)
            if len(self._used) >= MAX_KEYS:
                self.tell()

    def tell(self) -> None:
        """Report them, and begin anew."""
        used = sorted(self._used)
        self._used.clear()
        for begin in range(0, len(used), _KEYS_IN_A_WORD):
            self._say(Word("keys-used", keys=tuple(used[begin : begin + _KEYS_IN_A_WORD])))

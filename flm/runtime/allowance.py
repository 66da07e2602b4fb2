"""What one folder has used of what CAs allow in a while: looked up before, noted before it is used, and taken back
where it was not used after all.

Strategy: a use counts from before it happens, so whoever is killed meanwhile has counted too much, and never too
little; what is known to have gone well is taken back. Everything is in `security.db`, since it is a restart that must
not begin anew. A note that cannot be written means that there is no use.

Knows the clocks and the database. What follows from a count is `flm.tls.allowance`, what is done about it `acme`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from flm.errors import CommandError
from flm.runtime import instance
from flm.store import allowances
from flm.store.allowances import Use
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.tls.allowance import Instant, Limit, rebased, wait
from flm.tls.refusal import Refused, duration

_UP: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # both go on while the machine sleeps
_LONGEST_NAME: Final = 253  # characters, of a name in DNS

log = logging.getLogger("flm.supervisor")


def instant() -> Instant:
    """Now, by this machine's clocks."""
    return Instant(time.time(), _boot(), time.clock_gettime(_UP))


@functools.cache
def _boot() -> str:
    return instance.boot_id()


class Allowance:
    """The uses of one `kind` under one limit, or another one at the directories in `apart`. `now`: as `instant`."""

    def __init__(
        self,
        folder: Folder,
        kind: str,
        limit: Limit,
        now: Callable[[], Instant] = instant,
        apart: Mapping[str, Limit] | None = None,
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._now = now
        self._limit = limit
        self._apart = dict(apart or {})

    def limit(self, directory: str) -> Limit:
        """The one that holds there."""
        return self._apart.get(directory, self._limit)

    async def wait(self, directory: str, names: Iterable[str]) -> tuple[float, str]:
        """The longest wait of `names` at `directory` in seconds, 0 for none, and whose it is. No wait where that cannot
        be known: then noting the use will fail too."""
        try:
            uses = await self._change(lambda uses: uses)  # which settles moments of a clock that was ahead
        except CommandError as error:
            log.warning("what CAs were asked for lately cannot be read now: %s", error.message)
            uses = []
        return max(((self._wait(uses, directory, name), name) for name in names), default=(0.0, ""))

    async def note(self, directory: str, name: str = "") -> float:
        """Note a use, and return 0; or the seconds until there may be one. Raises DB_ERROR; then nothing is noted."""
        left = 0.0

        def add(uses: list[Use]) -> list[Use]:
            nonlocal left
            left = self._wait(uses, directory, name)
            return uses if left > 0 else [*uses, self._use(directory, name, self._now())]

        await self._change(add)
        return left

    async def take_back(self, directory: str, name: str = "") -> None:
        """The last use was none. Raises DB_ERROR."""
        await self._change(lambda uses: _without_last(uses, directory, name))

    async def confirm(self, directory: str, name: str = "") -> None:
        """The last use was one, and ended only now. Raises DB_ERROR."""
        use = self._use(directory, name, self._now())
        await self._change(lambda uses: [*_without_last(uses, directory, name), use])

    def _wait(self, uses: list[Use], directory: str, name: str) -> float:
        wanted = (directory, _subject(name))
        moments = [_moment(use) for use in uses if (use.directory, use.name) == wanted]
        return wait(moments, self.limit(directory), self._now())

    async def _change(self, change: Callable[[list[Use]], list[Use]]) -> list[Use]:
        """The uses that still count, by the clocks of now, after `change`."""
        now = self._now()
        async with await open_security(self._folder) as database, database.transaction() as transaction:
            found = await allowances.read_all(transaction, self._kind)
            moments = [(use, rebased(_moment(use), now)) for use in found]
            kept = [
                self._use(use.directory, use.name, moment)
                for use, moment in moments
                if now.wall - moment.wall < self.limit(use.directory).seconds
            ]
            changed = change(kept)
            if changed != found:
                await allowances.replace_all(transaction, self._kind, changed)
            return changed

    def _use(self, directory: str, name: str, at: Instant) -> Use:
        return Use(self._kind, directory, _subject(name), at.wall, at.boot, at.up)


class CountedLooks:
    """The looks that one attempt has a CA take at names, each counted as failed until it is known not to have."""

    def __init__(self, allowance: Allowance, directory: str) -> None:
        self._allowance = allowance
        self._directory = directory
        self._open: list[str] = []

    async def look(self, name: str) -> None:
        """Raises Refused if as many have failed as there may, and DB_ERROR if it could not be noted."""
        left = await self._allowance.note(self._directory, name)
        if left > 0:
            most = self._allowance.limit(self._directory).most
            raise Refused(
                "rate_limited",
                f"{most} validations of {name} have failed within an hour, and CAs count them: "
                f"FLM has it looked at again in {duration(left)}",
                left,
            )
        self._open.append(name)

    async def spared(self, name: str) -> None:
        """Raises DB_ERROR."""
        await self._allowance.take_back(self._directory, name)
        if name in self._open:
            self._open.remove(name)

    async def settle(self) -> None:
        """The attempt has come to nothing: the CA counts from about now, not from when it was told."""
        for name in self._open:
            try:
                await self._allowance.confirm(self._directory, name)
            except CommandError as error:
                log.warning("that a validation failed cannot be written now: %s", error.message)


def _subject(name: str) -> str:
    return name.lower()[:_LONGEST_NAME]


def _moment(use: Use) -> Instant:
    return Instant(use.at, use.boot, use.up)


def _without_last(uses: list[Use], directory: str, name: str) -> list[Use]:
    mine = [number for number, use in enumerate(uses) if (use.directory, use.name) == (directory, _subject(name))]
    return [use for number, use in enumerate(uses) if number not in mine[-1:]]

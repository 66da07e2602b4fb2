"""When keys were last used, as `flm api-keys list` shows it: collected from the workers' words, written in batches.

Away from all else: with a connection of its own, so that a database that another program holds keeps no change of a key
waiting, and without counting as a change itself. What cannot be written is kept for the next time. The time is that of
the worker's report, a few seconds after the request; what a worker did not report before it was killed is not known.

Knows ids and the store; no key, no worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from flm.errors import CommandError
from flm.store import keys as rows
from flm.store.database import open_security
from flm.store.folder import Folder

WRITE_SECONDS: Final = 5.0  # between two batches: one wait for the disk each
LAST_SECONDS: Final = 2.0  # for the last batch before a stop or a restart, which do not wait for it longer

log = logging.getLogger("flm.supervisor")


class LastUses:
    """The last uses of one folder's keys that are not written yet. `now` is Unix seconds."""

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._pending: dict[str, int] = {}  # no more than there are keys
        self._said = ""

    def note(self, key_ids: Sequence[str]) -> None:
        """Requests came with these keys. Returns at once."""
        self._pending |= dict.fromkeys(key_ids, int(self._now()))

    async def write(self) -> None:
        """Write what is known. What cannot be written stays for the next time; the log says why, once."""
        pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            if not await asyncio.to_thread(self._folder.security.exists):
                return  # somebody took the folder away: opening would make a new one
            async with await open_security(self._folder) as database, database.transaction() as transaction:
                await rows.used(transaction, pending)
        except BaseException as error:
            self._pending = pending | self._pending
            if not isinstance(error, CommandError):
                raise
            self._say(error.message)
        else:
            self._said = ""

    async def write_on(self) -> None:
        """A batch each WRITE_SECONDS. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.write()
            except Exception:  # a fault of FLM's own must not end the writing
                log.exception("writing when keys were last used failed")

    async def write_last(self) -> None:
        """The batch before an end, if that does not take long."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.write()
        except TimeoutError:
            log.warning("when keys were used in the last seconds could not be written in time")

    def _say(self, message: str) -> None:
        if message != self._said:
            log.warning("when keys were last used cannot be written now: %s", message)
        self._said = message

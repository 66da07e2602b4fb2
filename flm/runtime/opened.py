"""The databases a running proxy has open, and whether they are still the files at their names.

SQLite goes on reading a file that was moved or deleted, as if nothing had happened: what commands write to the one that
now stands at its name, a revocation too, would never be seen. Strategy: the identity of each file is looked at before
it is read. One that is missing or empty is an error, and nothing of it is read until it is back; another whole one in
its place is opened instead.

Knows no rows.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

from flm.errors import CommandCode, CommandError
from flm.store.database import Database, open_config, open_security
from flm.store.folder import Folder

_Identity = tuple[int, int]  # of a file: its device and its number there
_OPENERS: Final = (open_config, open_security)

log = logging.getLogger("flm.supervisor")


class Opened:
    """config.db and security.db of one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._databases: list[Database] = []
        self._identities: list[_Identity | None] = []
        self._former: list[Database] = []  # somebody may be reading from them yet
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Open, create or migrate them. Raises CommandError."""
        for number in range(len(_OPENERS)):
            await self._open(number)

    async def close(self) -> None:
        databases, self._databases, self._identities, self._former = self._databases + self._former, [], [], []
        for database in databases:
            await database.close()

    def both(self) -> tuple[Database, Database]:
        """Raises DB_ERROR if they could not be opened."""
        if len(self._databases) < len(_OPENERS):
            raise CommandError(CommandCode.DB_ERROR, "the databases are not open; the log says why")
        config, security = self._databases
        return config, security

    async def look(self) -> bool:
        """Whether one was replaced, and is opened anew. Raises CommandError if one is missing, or cannot be opened."""
        async with self._turn:
            return any([await self._renew(number) for number in range(len(self.both()))])

    async def _renew(self, number: int) -> bool:
        database = self.both()[number]
        found = await asyncio.to_thread(_identity, database.path)
        if found is None:
            raise CommandError(
                CommandCode.DB_ERROR,
                f"{database.path} was moved away, deleted or emptied by another program; put it back",
            )
        if found == self._identities[number]:
            return False
        await self._open(number)
        log.warning("%s was replaced by another program; the one that is there now is read", database.path)
        return True

    async def _open(self, number: int) -> None:
        database = await _OPENERS[number](self._folder)
        self._former += self._databases[number : number + 1]
        self._databases[number : number + 1] = [database]
        self._identities[number : number + 1] = [await asyncio.to_thread(_identity, database.path)]
        while len(self._former) > len(_OPENERS):
            await self._former.pop(0).close()


def _identity(path: Path) -> _Identity | None:
    """None for a file that is missing or empty."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None

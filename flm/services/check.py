"""`CheckService`: are the databases, the policy and the pepper of a data folder whole? Looks, and mends nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from flm.errors import CommandCode, CommandError
from flm.store import audit_file, keys, policy
from flm.store.database import Database, open_config, open_security
from flm.store.folder import Folder
from flm.store.pepper import load_pepper


class Checked(msgspec.Struct, frozen=True):
    """One file. `problems` is empty if all is well; `exists` is false in a folder that was never used.

    `bytes`: its size. `generation`: changes so far, of a database that could be read.
    """

    name: str
    path: str
    exists: bool
    problems: tuple[str, ...]
    bytes: int | None = None
    generation: int | None = None

    @property
    def well(self) -> bool:
        return not self.problems


class CheckService:
    """The integrity of one data folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def check(self) -> list[Checked]:
        """Check every database in full, and the pepper. Creates nothing in a folder that was never used. Raises
        IO_ERROR if the folder cannot be looked into."""
        folder = self._folder
        if not any(map(_exists, (folder.config, folder.security, folder.pepper))):
            never_used = (folder.config, folder.security, folder.pepper, folder.audit)
            return [Checked(path.name, str(path), False, ()) for path in never_used]
        return [
            await self._database(folder.config, open_config),
            await self._database(folder.security, open_security),
            await self._pepper(),
            await self._audit(),
        ]

    async def _database(self, path: Path, opened: Callable[[Folder], Awaitable[Database]]) -> Checked:
        generation = None
        try:
            async with await opened(self._folder) as database:
                problems = tuple(await database.damage())
                generation = await database.generation()
                if opened is open_security and not problems:
                    await policy.current(database)
        except CommandError as error:
            problems = (error.message,)
        return Checked(path.name, str(path), _exists(path), problems, _size(path), generation)

    async def _audit(self) -> Checked:
        """The audit log, which may be missing: it is made by the first proxy, or anew by the next."""
        path = self._folder.audit
        problems: tuple[str, ...] = ()
        try:
            database = await audit_file.open_for_reading(self._folder)
            if database is not None:
                async with database:
                    problems = tuple(await database.damage())
        except CommandError as error:
            problems = (error.message,)
        return Checked(path.name, str(path), _exists(path), problems, _size(path))

    async def _pepper(self) -> Checked:
        path = self._folder.pepper
        problems: tuple[str, ...] = ()
        try:
            async with await open_security(self._folder) as database:
                needed = bool(await keys.all_keys(database))
            if needed or _exists(path):
                await asyncio.to_thread(load_pepper, self._folder, create=False)
        except CommandError as error:
            problems = (error.message,)
        return Checked(path.name, str(path), _exists(path), problems, _size(path))


def _exists(path: Path) -> bool:
    """Raises IO_ERROR if that cannot be seen: what nobody could look at is not called well."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CommandError(
            CommandCode.IO_ERROR,
            f"{path} cannot be looked at: {error.strerror or error}; run flm as the user whose folder that is, or set "
            "FLM_HOME to the folder you mean",
        ) from None
    return True


def _size(path: Path) -> int | None:
    try:
        return os.lstat(path).st_size
    except OSError:
        return None

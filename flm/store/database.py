"""An open database on an event loop: reading, and writing in transactions.

Strategy: one aiosqlite connection, whose thread does everything that blocks; opening blocks another one. Writes
begin IMMEDIATE, so that a transaction waits for its turn at its start and not in its middle, where SQLite would refuse
to. A task that is cancelled in a transaction rolls it back before it goes.

Knows no table but `generation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import aiosqlite

from flm.errors import CommandCode, CommandError
from flm.store import opening
from flm.store.folder import Folder
from flm.store.schema import CONFIG, SECURITY, Schema

Row = tuple[Any, ...]
Parameters = Sequence[object]
_CHUNK = 64  # rows that aiosqlite fetches at once when iterating, which nothing here does


class Reader(Protocol):
    """What can be asked: a database, or a transaction of it."""

    async def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]: ...


async def open_config(folder: Folder) -> Database:
    """Open `config.db`, creating or migrating it first. Raises DB_ERROR, MIGRATION_FAILED, IO_ERROR."""
    return await _open(folder, CONFIG)


async def open_security(folder: Folder) -> Database:
    """Open `security.db`; as `open_config`."""
    return await _open(folder, SECURITY)


async def _open(folder: Folder, schema: Schema) -> Database:
    return await open_by(lambda: opening.open_connection(folder, schema), opening.path_of(folder, schema))


async def open_by(connect: Callable[[], sqlite3.Connection], path: Path) -> Database:
    """The database at `path`, whose connection `connect` opens, in a thread. Raises what `connect` does."""
    connecting = asyncio.ensure_future(_connect(connect))
    try:
        return Database(await asyncio.shield(connecting), path)
    except asyncio.CancelledError:  # the thread is opening it all the same: wait for it, and close it again
        with contextlib.suppress(CommandError):
            await (await connecting).close()
        raise


async def _connect(connect: Callable[[], sqlite3.Connection]) -> aiosqlite.Connection:
    # Not by aiosqlite's own thread: after a connection that failed it would outlive the loop it reports to.
    connection = await asyncio.to_thread(connect)
    return await aiosqlite.Connection(lambda: connection, _CHUNK)


class Transaction:
    """Reads and writes that hold together. Made by `Database.transaction`, used in its `async with` block only."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return cast(list[Row], await self._connection.execute_fetchall(sql, parameters))

    async def change(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one INSERT, UPDATE or DELETE; the number of rows it changed."""
        cursor = await self._connection.execute(sql, parameters)
        changed = cursor.rowcount
        await cursor.close()
        return changed

    async def change_each(self, sql: str, parameters: Sequence[Parameters]) -> None:
        """Run one INSERT, UPDATE or DELETE for each of many parameters."""
        cursor = await self._connection.executemany(sql, parameters)
        await cursor.close()


class Database:
    """An open database. `async with` closes it; so does `close`, once."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()  # one connection has one transaction: others must not slip into it
        self.path = path

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """The rows of one SELECT, as committed. Raises DB_ERROR."""
        async with self._turn:
            with self._plainly():
                return await Transaction(self._connection).rows(sql, parameters)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """All of the block or nothing of it. Raises DB_ERROR, also if another process writes for over ten seconds."""
        async with self._turn:
            with self._plainly():
                try:
                    await self._connection.execute_fetchall("BEGIN IMMEDIATE")
                    yield Transaction(self._connection)
                    await self._connection.execute_fetchall("COMMIT")
                except BaseException:
                    await asyncio.shield(self._roll_back())
                    raise

    async def generation(self) -> int:
        """A number that grows with each change a running proxy should know of, whoever made it."""
        ((value,),) = await self.rows("SELECT value FROM generation")
        return int(value)

    async def damage(self) -> list[str]:
        """What SQLite's full integrity check finds; empty if all is well. Raises DB_ERROR if it cannot even look."""
        found = [str(row[0]) for row in await self.rows("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    async def give_back(self) -> None:
        """Give the disk back what deleted rows have left, of a database that `shrinks`. Raises DB_ERROR."""
        async with self._turn:
            with self._plainly():
                # A script is run to its end; a statement without columns would be left after its first page.
                await self._connection.executescript("PRAGMA incremental_vacuum")
                await self._connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")  # or not, if someone reads

    async def close(self) -> None:
        """Close the connection and end its thread. Closing twice is fine."""
        await self._connection.close()

    async def _roll_back(self) -> None:
        # Asked on the connection's thread, after whatever was cancelled half-way: only there it is known whether a
        # transaction had begun; "no transaction is active" is then the good news.
        with contextlib.suppress(sqlite3.OperationalError):
            await self._connection.execute_fetchall("ROLLBACK")

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise CommandError(CommandCode.DB_ERROR, f"{self.path}: {error}; {_next_step(error)}") from error


def _next_step(error: Exception) -> str:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return "nothing was changed; another program holds the database: end it (lsof shows it) and try again"
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return "nothing was changed; free disk space and try again"
    return "nothing was changed; `flm check` says more"

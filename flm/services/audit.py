"""`AuditService`: what the audit log says, once or as it grows.

Strategy: the database is read as it is, beside the proxy that writes it. A running proxy is asked first to store the
rows it still holds, so that a request whose answer has been read is always in the list.

Knows the store and the control socket; changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.store import audit as table
from flm.store import audit_file, keys
from flm.store.audit import Filter
from flm.store.database import Database, Row, open_security
from flm.store.folder import Folder

USUAL: Final = 100  # rows of a list, unless told otherwise
MOST: Final = 100_000  # rows of a list: some tens of megabytes
FOLLOW_SECONDS: Final = 0.5  # between two looks for new rows
ANEW_SECONDS: Final = 5.0  # for the proxy to set a log aside that somebody has spoilt
STORE_SECONDS: Final = 10.0  # for the proxy to store what it holds
_BATCH: Final = 1000
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ago = re.compile(r"(\d{1,9})([smhdw])").fullmatch
_statuses = re.compile(r"([1-5])(\d\d|xx)").fullmatch

log = logging.getLogger("flm.audit")


class AuditEntry(msgspec.Struct, frozen=True):
    """One finished request. `timestamp`: RFC 3339, of its end. Times are milliseconds, sizes bytes of bodies."""

    timestamp: str
    request_id: str
    client_ip: str
    api_key_id: str | None
    method: str
    endpoint: str
    engine_id: str | None
    model: str | None
    status: int
    latency_ms: float
    ttft_ms: float | None
    bytes_in: int
    bytes_out: int
    error_type: str | None


class Query(msgspec.Struct, frozen=True):
    """Which rows, as a person says it: `since` and `until` are RFC 3339 times, or ages such as `90s`, `12h`, `30d`;
    `key` is an id or a label; `model` is the name that was asked for, with `*` for anything; `status` is `404` or
    `4xx`; `errors`: only requests that failed."""

    since: str | None = None
    until: str | None = None
    key: str | None = None
    engine: str | None = None
    model: str | None = None
    status: str | None = None
    errors: bool = False


class AuditService:
    """The audit log of one data folder. `now` is the Unix time in seconds."""

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    async def entries(self, query: Query, limit: int = USUAL) -> list[AuditEntry]:
        """The last `limit` rows that pass, oldest first. Raises USAGE, DB_ERROR, IO_ERROR, MIGRATION_FAILED."""
        if not 1 <= limit <= MOST:
            raise CommandError(CommandCode.USAGE, f"a list has from 1 to {MOST} rows, not {limit}")
        chosen = await self._filter(query)
        await self._store()
        database = await audit_file.open_for_reading(self._folder)
        if database is None:
            return []
        async with database:
            return [_entry(row) for row in await table.newest(database, chosen, limit)]

    async def follow(self, query: Query, first: int = 0) -> AsyncIterator[AuditEntry]:
        """The last `first` rows that pass, and then each that is stored, as it comes. Never ends; raises as
        `entries`."""
        if query.until is not None:
            raise CommandError(CommandCode.USAGE, "what is followed has no end: leave out --until")
        chosen = await self._filter(query)
        await self._store()
        database, identity, last = None, None, None  # the file that is open, and the last row of it that was shown
        try:
            while True:
                found = await asyncio.to_thread(_identity, self._folder)
                if last is None or found != identity:
                    if database is not None:
                        await database.close()
                        database = None
                    database, identity = await (self._open() if last is None else self._open_anew())
                    if last is not None or database is None:
                        last = 0  # it has just been made, or was set aside and begun anew
                    else:
                        last = await table.last_id(database)
                        for row in await table.newest(database, chosen, first):
                            last = max(last, row[0])
                            yield _entry(row)
                rows = await table.following(database, chosen, last, _BATCH) if database is not None else []
                for row in rows:
                    last = row[0]
                    yield _entry(row)
                if len(rows) < _BATCH:
                    await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            if database is not None:
                await database.close()

    async def _open(self) -> tuple[Database | None, tuple[int, int] | None]:
        """The database and which file it is; (None, None) while there is none, or an empty one."""
        while True:
            before = await asyncio.to_thread(_identity, self._folder)
            database = await audit_file.open_for_reading(self._folder)
            if database is None:
                return None, None
            if before is not None and before == await asyncio.to_thread(_identity, self._folder):
                return database, before
            await database.close()  # it was replaced meanwhile: which of the two it is cannot be told

    async def _open_anew(self) -> tuple[Database | None, tuple[int, int] | None]:
        """As `_open`, of a log that was replaced. What cannot be used the proxy sets aside in a moment, so only what is
        still there after ANEW_SECONDS is an error."""
        patience = time.monotonic() + ANEW_SECONDS
        while True:
            try:
                return await self._open()
            except CommandError:
                if time.monotonic() >= patience:
                    raise
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _filter(self, query: Query) -> Filter:
        return Filter(
            since=self._time(query.since),
            until=self._time(query.until),
            keys=await self._keys(query.key) if query.key is not None else None,
            engine=query.engine,
            model=query.model,
            statuses=_status_range(query.status) if query.status is not None else None,
            errors=query.errors,
        )

    def _time(self, text: str | None) -> int | None:
        """Unix milliseconds."""
        if text is None:
            return None
        age = _ago(text)
        try:
            if age:
                return int((self._now() - int(age[1]) * _UNITS[age[2]]) * 1000)
            found = datetime.fromisoformat(text)
            return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            message = f"a time is `2026-11-24T09:00:00Z`, or an age such as 90s, 15m, 12h, 30d or 8w, not {text!r:.80}"
            raise CommandError(CommandCode.USAGE, message) from None

    async def _keys(self, name: str) -> tuple[str, ...]:
        """The ids that a name may mean: it is one itself, also of a key of another database, or a label."""
        if not await asyncio.to_thread(self._folder.security.exists):
            return (name,)
        async with await open_security(self._folder) as database:
            known = await keys.all_keys(database)
        if not any(name in (key.id, key.label) for key in known):
            # Without the name: it may be a whole key, given by mistake.
            log.warning("no key here has the id or label that was asked for; `flm api-keys list` shows them")
        return (name, *(key.id for key in known if key.label == name))

    async def _store(self) -> None:
        """Let the running proxy, if there is one, store what it holds. That it cannot is a warning: there is a list all
        the same."""
        socket = self._folder.run / "control.sock"
        if not await asyncio.to_thread(socket.exists):
            return
        from flm.runtime import control  # only here, as in `notice`

        try:
            await control.ask(socket, control.Request("store-audit"), STORE_SECONDS)
        except TimeoutError:
            log.warning("the running proxy has not answered for %g s: its last requests are missing", STORE_SECONDS)
        except CommandError as error:
            if error.code is not CommandCode.PROXY_NOT_RUNNING:
                log.warning("the last requests are missing: %s", error.message)


def _status_range(text: str) -> tuple[int, int]:
    found = _statuses(text.lower())
    if not found:
        raise CommandError(CommandCode.USAGE, f"a status is a number such as 404, or 4xx, not {text!r:.80}")
    hundreds = int(found[1]) * 100
    if found[2] == "xx":
        return hundreds, hundreds + 99
    return hundreds + int(found[2]), hundreds + int(found[2])


def _entry(row: Row) -> AuditEntry:
    _, milliseconds, *rest = row
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return AuditEntry(moment.replace("+00:00", "Z"), *rest)


def _identity(folder: Folder) -> tuple[int, int] | None:
    try:
        found = os.lstat(folder.audit)
    except OSError:
        return None
    return found.st_dev, found.st_ino

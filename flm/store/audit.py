"""The audit log as rows: added in batches, read with filters in the order of their times, deleted oldest first. When
there are too many, those without a key go before all others: anybody can cause them, as often as he likes.

A row that comes again (its batch was stored, and the writer killed before it could say so; or what became of an answer
was known only after its row) takes the place of the first, by its serial number. Request ids do not serve: a proxy in
front may send them, and send them twice. Times are Unix milliseconds here.

Knows SQL; does not know where rows come from, nor when they are too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from flm.store.database import Database, Reader, Row
from flm.store.schema import Migration, Schema

COLUMNS: Final = (
    "timestamp", "request_id", "client_ip", "api_key_id", "method", "endpoint", "engine_id", "model", "status",
    "latency_ms", "ttft_ms", "bytes_in", "bytes_out", "error_type",
)  # fmt: skip
CHUNK: Final = 10_000  # rows deleted at once: a tenth of a second, in which the writer's rows wait
_NAMES: Final = ", ".join(COLUMNS)
_ADD: Final = (
    f"INSERT INTO audit_logs (serial, {_NAMES}) VALUES (?{', ?' * len(COLUMNS)}) "  # noqa: S608 - constants
    f"ON CONFLICT (serial) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS)}"
)

_AUDIT_1: Final[Migration] = (
    # AUTOINCREMENT: an id is never used again, so that whoever follows the log misses nothing.
    """CREATE TABLE audit_logs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, serial INTEGER NOT NULL UNIQUE, timestamp INTEGER NOT NULL,
        request_id TEXT NOT NULL, client_ip TEXT NOT NULL, api_key_id TEXT, method TEXT NOT NULL,
        endpoint TEXT NOT NULL, engine_id TEXT, model TEXT, status INTEGER NOT NULL, latency_ms REAL NOT NULL,
        ttft_ms REAL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, error_type TEXT)""",
    "CREATE INDEX audit_logs_by_time ON audit_logs (timestamp)",
    # For `shrink`, which without it (a log that is older than it) looks through all rows.
    "CREATE INDEX audit_logs_without_key ON audit_logs (id) WHERE api_key_id IS NULL",
)
AUDIT: Final = Schema(
    name="audit",
    application_id=0x464C4D41,  # "FLMA"
    migrations=(_AUDIT_1,),
    tables=frozenset({"audit_logs"}),
    synchronous="NORMAL",
    shrinks=True,
)


class Filter(msgspec.Struct, frozen=True):
    """Which rows; what is None does not matter. `since` is included, `until` is not. `keys`: any of these ids.
    `model`: the name that was asked for, `*` for anything. `statuses`: first and last. `errors`: only requests that
    failed."""

    since: int | None = None
    until: int | None = None
    keys: tuple[str, ...] | None = None
    engine: str | None = None
    model: str | None = None
    statuses: tuple[int, int] | None = None
    errors: bool = False


async def add(database: Database, rows: Sequence[Row]) -> None:
    """Store rows (serial number, *COLUMNS), all or none. Raises DB_ERROR."""
    async with database.transaction() as transaction:
        await transaction.change_each(_ADD, rows)


async def newest(reader: Reader, chosen: Filter, limit: int) -> list[Row]:
    """(id, *COLUMNS) of the last `limit` rows that pass, oldest first: by their times, for rings are emptied one after
    the other."""
    rows = await _select(reader, chosen, "", (), f"ORDER BY timestamp DESC, id DESC LIMIT {int(limit)}")
    return rows[::-1]


async def following(reader: Reader, chosen: Filter, last: int, limit: int) -> list[Row]:
    """(id, *COLUMNS) of the first `limit` rows that pass and came after the one with the id `last`."""
    return await _select(reader, chosen, "id > ?", (last,), f"ORDER BY id LIMIT {int(limit)}")


async def last_id(reader: Reader) -> int:
    ((last,),) = await reader.rows("SELECT coalesce(max(id), 0) FROM audit_logs")
    return int(last)


async def oldest(reader: Reader) -> int | None:
    """The time of the oldest row; None if there is none."""
    ((time,),) = await reader.rows("SELECT min(timestamp) FROM audit_logs")
    return time if time is None else int(time)


async def expire(database: Database, before: int) -> int:
    """Delete rows older than `before`, CHUNK at most; how many they were."""
    async with database.transaction() as transaction:
        return await transaction.change(
            "DELETE FROM audit_logs WHERE id IN "
            "(SELECT id FROM audit_logs WHERE timestamp < ? ORDER BY timestamp LIMIT ?)",
            (before, CHUNK),
        )


async def shrink(database: Database, most: int) -> int:
    """If the rows take more than `most` bytes, delete a tenth of them, CHUNK at most; how many they were. The oldest
    without a key go; the oldest of all only when there are none."""
    ((pages,),), ((free,),), ((size,),) = [
        await database.rows(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
    ]
    if (pages - free) * size <= most:
        return 0
    async with database.transaction() as transaction:
        ((count,),) = await transaction.rows("SELECT count(*) FROM audit_logs")
        chunk = (min(CHUNK, -(-count // 10)),)
        return await transaction.change(
            "DELETE FROM audit_logs WHERE id IN "
            "(SELECT id FROM audit_logs WHERE api_key_id IS NULL ORDER BY id LIMIT ?)",
            chunk,
        ) or await transaction.change(
            "DELETE FROM audit_logs WHERE id IN (SELECT id FROM audit_logs ORDER BY id LIMIT ?)", chunk
        )


async def _select(reader: Reader, chosen: Filter, first: str, values: Sequence[object], rest: str) -> list[Row]:
    conditions, parameters = ([first] if first else []), list(values)
    for condition, found in _conditions(chosen):
        conditions.append(condition)
        parameters += found
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    return await reader.rows(f"SELECT id, {_NAMES} FROM audit_logs {where}{rest}", parameters)  # noqa: S608 - constants


def _conditions(chosen: Filter) -> Iterable[tuple[str, Sequence[object]]]:
    if chosen.since is not None:
        yield "timestamp >= ?", (chosen.since,)
    if chosen.until is not None:
        yield "timestamp < ?", (chosen.until,)
    if chosen.keys is not None:
        yield f"api_key_id IN ({', '.join('?' * len(chosen.keys))})", chosen.keys
    if chosen.engine is not None:
        yield "engine_id = ?", (chosen.engine,)
    if chosen.model is not None:
        yield "model GLOB ?", ("".join("[[]" if c == "[" else "[?]" if c == "?" else c for c in chosen.model),)
    if chosen.statuses is not None:
        yield "status BETWEEN ? AND ?", chosen.statuses
    if chosen.errors:
        yield "(error_type IS NOT NULL OR status >= 400)", ()

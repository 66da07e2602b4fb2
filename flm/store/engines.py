"""Engines: those registered by hand, FLM's credentials for them, what was last seen of each, and model aliases.

Registered engines, the cache and aliases live in `config.db`, credentials in `security.db`; a function's first argument
is a reader or a transaction of the right one. Knows no engine and asks none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from flm.snapshot import Model
from flm.store.database import Reader, Row, Transaction

_UPSTREAM = "id, kind, url, connect_timeout, first_byte_timeout, between_bytes_timeout, total_timeout, created_at, ca"
_SEEN = "id, kind, url, status, source, version, latency_ms, last_error, models, checked_at"


class Upstream(msgspec.Struct, frozen=True):
    """An engine that somebody registered. Timeouts are seconds, None takes the setting; `created_at` Unix seconds.

    `ca`: PEM text of the authorities that its certificate is verified by, None for the system's.
    """

    id: str
    kind: str
    url: str
    connect_timeout: float | None
    first_byte_timeout: float | None
    between_bytes_timeout: float | None
    total_timeout: float | None
    created_at: int
    ca: str | None = None


class SeenEngine(msgspec.Struct, frozen=True):
    """What was seen of one engine at `checked_at` (Unix seconds). `source`: `detected` or `registered`."""

    id: str
    kind: str
    url: str
    status: str
    source: str
    version: str | None
    latency_ms: float | None
    last_error: str | None
    models: tuple[Model, ...]
    checked_at: float


async def registered(reader: Reader) -> list[Upstream]:
    """From config.db, by id."""
    return [Upstream(*row) for row in await reader.rows(f"SELECT {_UPSTREAM} FROM upstreams ORDER BY id")]  # noqa: S608


async def register(transaction: Transaction, upstream: Upstream) -> None:
    """In config.db."""
    await transaction.change(
        f"INSERT INTO upstreams ({_UPSTREAM}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        msgspec.structs.astuple(upstream),
    )


async def unregister(transaction: Transaction, engine_id: str) -> bool:
    """In config.db, with what was seen of it. False if it was not registered."""
    await transaction.change("DELETE FROM engines_cache WHERE id = ?", (engine_id,))
    return await transaction.change("DELETE FROM upstreams WHERE id = ?", (engine_id,)) > 0


async def aliases(reader: Reader) -> dict[str, str]:
    """From config.db, by alias: alias to the model id or plain name it stands for."""
    rows = await reader.rows("SELECT alias, target FROM model_aliases ORDER BY alias")
    return {str(alias): str(target) for alias, target in rows}


async def put_alias(transaction: Transaction, alias: str, target: str) -> None:
    """In config.db, instead of what the alias stood for before."""
    await transaction.change(
        "INSERT INTO model_aliases VALUES (?, ?) ON CONFLICT (alias) DO UPDATE SET target = excluded.target",
        (alias, target),
    )


async def remove_alias(transaction: Transaction, alias: str) -> bool:
    """In config.db. False if there was no such alias."""
    return await transaction.change("DELETE FROM model_aliases WHERE alias = ?", (alias,)) > 0


async def credentials(reader: Reader) -> dict[str, str]:
    """From security.db: engine id to FLM's bearer token for it. Secret."""
    return {str(key): str(value) for key, value in await reader.rows("SELECT * FROM engine_credentials")}


async def put_credential(transaction: Transaction, engine_id: str, credential: str) -> None:
    """In security.db."""
    await transaction.change(
        "INSERT INTO engine_credentials VALUES (?, ?) "
        "ON CONFLICT (engine_id) DO UPDATE SET credential = excluded.credential",
        (engine_id, credential),
    )


async def remove_credential(transaction: Transaction, engine_id: str) -> None:
    """In security.db."""
    await transaction.change("DELETE FROM engine_credentials WHERE engine_id = ?", (engine_id,))


async def seen(reader: Reader, since: float, until: float = math.inf) -> list[SeenEngine]:
    """From config.db: what was seen from `since` to `until` (Unix seconds), by id.

    Rows of the future are left behind by a clock that was set back; they are as little current as old ones.
    """
    rows = await reader.rows(
        f"SELECT {_SEEN} FROM engines_cache WHERE checked_at BETWEEN ? AND ? ORDER BY id",  # noqa: S608 - constants
        (since, until),
    )
    return [engine for engine in map(_seen, rows) if engine is not None]


async def replace_seen(transaction: Transaction, engines: Sequence[SeenEngine]) -> None:
    """In config.db: what was seen in one look at everything, instead of all that was there."""
    await transaction.change("DELETE FROM engines_cache")
    for engine in engines:
        await transaction.change(
            f"INSERT OR REPLACE INTO engines_cache ({_SEEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*msgspec.structs.astuple(engine)[:8], msgspec.json.encode(engine.models).decode(), engine.checked_at),
        )


_models = msgspec.json.Decoder(tuple[Model, ...])


def _seen(row: Row) -> SeenEngine | None:
    """None for a row that another program spoiled: it is a cache, and the engine is looked at again."""
    engine_id, kind, url, status, source, version, latency, error, models, checked_at = row
    try:
        known = _models.decode(models)
    except (msgspec.MsgspecError, TypeError):
        return None
    return SeenEngine(engine_id, kind, url, status, source, version, latency, error, known, checked_at)

"""API keys as rows: everything about a key but the key itself, which is never stored.

Knows no cryptography: salt and digest are bytes that others made. A row that another program spoiled is no valid key,
and hinders none of the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from flm.store.database import Reader, Row, Transaction

_COLUMNS = (
    "id, slot, label, scopes, models, engines, salt, digest, "
    "created_at, expires_at, revoked_at, last_used_at, replaced_by"
)
_MARKS = ", ".join("?" * len(_COLUMNS.split(",")))
_ID: Final = re.compile(r"[0-9A-Za-z]{12}")
_SALT_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_SLOTS: Final = 1 << 31  # more than keys can ever be made; from here on they are others' (flm/runtime/publish.py)


class StoredKey(msgspec.Struct, frozen=True):
    """One key. `slot` is its number in shared memory: 0, 1, 2 … in order of creation. Times are Unix seconds.

    `models`, `engines`: patterns and ids it is restricted to, none: all. `replaced_by`: the id of the key that took its
    place when it was rotated. `damaged`: the row holds what FLM never writes, and is shown without it.
    """

    id: str
    slot: int
    label: str
    scopes: tuple[str, ...]
    salt: bytes
    digest: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None
    models: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    replaced_by: str | None = None
    damaged: bool = False


async def all_keys(reader: Reader) -> list[StoredKey]:
    """Every key ever made, revoked ones too, oldest first."""
    return [_key(row) for row in await reader.rows(f"SELECT {_COLUMNS} FROM api_keys ORDER BY slot")]  # noqa: S608 - constants


async def next_slot(transaction: Transaction) -> int:
    """The slot of the next key: the number of keys ever made, since none is ever deleted."""
    ((slot,),) = await transaction.rows("SELECT coalesce(max(slot) + 1, 0) FROM api_keys WHERE slot < ?", (_SLOTS,))
    return int(slot)


async def add(transaction: Transaction, key: StoredKey) -> None:
    await transaction.change(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({_MARKS})",  # noqa: S608 - constants
        (
            key.id,
            key.slot,
            key.label,
            " ".join(key.scopes),
            "\n".join(key.models),
            "\n".join(key.engines),
            key.salt,
            key.digest,
            key.created_at,
            key.expires_at,
            key.revoked_at,
            key.last_used_at,
            key.replaced_by,
        ),
    )


async def revoke(transaction: Transaction, key_id: str, at: int) -> None:
    """Mark a key as revoked; one that is revoked already keeps its time."""
    await transaction.change("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))


async def replace(transaction: Transaction, key_id: str, successor: str, expires_at: int | None) -> None:
    """Say which key took this one's place, and until when (Unix seconds) this one is valid yet."""
    await transaction.change(
        "UPDATE api_keys SET replaced_by = ?, expires_at = ? WHERE id = ?", (successor, expires_at, key_id)
    )


async def used(transaction: Transaction, last: Mapping[str, int]) -> None:
    """Note when keys were last used, by id (Unix seconds). No change of the keys: `generation` stays.

    The latest time stays, unless it lies so far ahead that it came of a wrong clock: it would hide every later use.
    """
    await transaction.change_each(
        "UPDATE api_keys SET last_used_at = ? "
        "WHERE id = ? AND (coalesce(last_used_at, 0) < ? OR last_used_at > ? + 86400)",
        [(at, key_id, at, at) for key_id, at in last.items()],
    )


def _key(row: Row) -> StoredKey:
    identity, slot, label, scopes, models, engines, salt, digest, *times, replaced_by = row
    if not _is_whole(row):
        revoked_at = row[10] if row[10] is None or isinstance(row[10], int) else 0
        return StoredKey(f"{identity}", -1, "(damaged)", (), b"", b"", 0, revoked_at=revoked_at, damaged=True)
    key = StoredKey(identity, slot, label, tuple(scopes.split()), salt, digest, *times)
    return msgspec.structs.replace(key, models=_lines(models), engines=_lines(engines), replaced_by=replaced_by)


def _is_whole(row: Row) -> bool:
    """SQLite keeps values of any type in any column."""
    identity, slot, label, scopes, models, engines, salt, digest, created_at, *times, replaced_by = row
    return (
        all(isinstance(text, str) for text in (identity, label, scopes, models, engines))
        and isinstance(replaced_by, str | None)
        and _ID.fullmatch(identity) is not None
        and all(isinstance(number, int) for number in (slot, created_at))
        and 0 <= slot < _SLOTS
        and all(isinstance(time, int | None) for time in times)
        and all(isinstance(data, bytes) for data in (salt, digest))
        and (len(salt), len(digest)) == (_SALT_BYTES, _DIGEST_BYTES)
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n")) if text else ()

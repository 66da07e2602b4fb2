"""API keys as rows: everything about a key but the key itself, which is never stored.

Knows no cryptography: salt and digest are bytes that others made.
"""

from __future__ import annotations

import msgspec

from flm.store.database import Reader, Row, Transaction

_COLUMNS = "id, slot, label, scopes, salt, digest, created_at, expires_at, revoked_at, last_used_at"


class StoredKey(msgspec.Struct, frozen=True):
    """One key. `slot` is its number in shared memory: 0, 1, 2 … in order of creation. Times are Unix seconds."""

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


async def all_keys(reader: Reader) -> list[StoredKey]:
    """Every key ever made, revoked ones too, oldest first."""
    return [_key(row) for row in await reader.rows(f"SELECT {_COLUMNS} FROM api_keys ORDER BY slot")]  # noqa: S608 - constants


async def next_slot(transaction: Transaction) -> int:
    """The slot of the next key: the number of keys ever made, since none is ever deleted."""
    ((slot,),) = await transaction.rows("SELECT coalesce(max(slot) + 1, 0) FROM api_keys")
    return int(slot)


async def add(transaction: Transaction, key: StoredKey) -> None:
    await transaction.change(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        (
            key.id,
            key.slot,
            key.label,
            " ".join(key.scopes),
            key.salt,
            key.digest,
            key.created_at,
            key.expires_at,
            key.revoked_at,
            key.last_used_at,
        ),
    )


async def revoke(transaction: Transaction, key_id: str, at: int) -> None:
    """Mark a key as revoked; one that is revoked already keeps its time."""
    await transaction.change("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))


def _key(row: Row) -> StoredKey:
    identity, slot, label, scopes, *rest = row
    return StoredKey(identity, slot, label, tuple(scopes.split()), *rest)

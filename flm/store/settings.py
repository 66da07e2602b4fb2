"""Settings that somebody has set: text by key. What a key may be and what its text means is `flm.config`'s business."""

from __future__ import annotations

from flm.store.database import Reader, Transaction


async def all_settings(reader: Reader) -> dict[str, str]:
    return {str(key): str(value) for key, value in await reader.rows("SELECT key, value FROM settings")}


async def put(transaction: Transaction, key: str, value: str) -> None:
    await transaction.change(
        "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )


async def remove(transaction: Transaction, key: str) -> bool:
    """False if it was not set."""
    return await transaction.change("DELETE FROM settings WHERE key = ?", (key,)) > 0

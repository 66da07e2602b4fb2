"""What was used of what CAs allow in a while: each use with its moment, so that a restart begins to count at none.

In `security.db`, and no change that requests need. Old uses are removed when new ones are written, so there are no more
than the allowance for each subject. Knows no limit: that arithmetic is `flm.tls.allowance`.
"""

from __future__ import annotations

import msgspec

from flm.store.database import Reader, Transaction


class Use(msgspec.Struct, frozen=True):
    """One use. `kind`: of what; `directory`: URL of the CA's directory; `name`: of whom, empty where that is nobody.

    `at`: Unix seconds. `boot`, `up`: the run of the machine and the seconds since it began.
    """

    kind: str
    directory: str
    name: str
    at: float
    boot: str
    up: float


async def read_all(reader: Reader, kind: str) -> list[Use]:
    """From security.db, in the order they were written. Raises DB_ERROR."""
    sql = "SELECT kind, directory, name, at, boot, up FROM allowances WHERE kind = ? ORDER BY id"
    return [Use(*row) for row in await reader.rows(sql, (kind,))]


async def replace_all(transaction: Transaction, kind: str, uses: list[Use]) -> None:
    """Let these be all of `kind`; their order is kept."""
    await transaction.change("DELETE FROM allowances WHERE kind = ?", (kind,))
    await transaction.change_each(
        "INSERT INTO allowances (kind, directory, name, at, boot, up) VALUES (?, ?, ?, ?, ?, ?)",
        [(kind, use.directory, use.name, use.at, use.boot, use.up) for use in uses],
    )

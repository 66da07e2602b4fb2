"""What is known of FLM's certificates: whose they are, when they are renewed, how the last attempt went.

In `security.db`, so it outlives restarts: a CA's wait is kept to, and failures go on being counted. The certificates
and keys themselves are files; knows none of them, and no CA.
"""

from __future__ import annotations

import msgspec

from flm.store.database import Reader, Row, Transaction


class CertificateRow(msgspec.Struct, frozen=True):
    """One certificate, by `id`: `acme` is the one of a public authority. Times are Unix seconds, None: not known, or
    never.

    Of the certificate that is held: `directory` (URL of the CA's directory that issued it, empty: none did),
    `domains`, `issuer`, `serial` and `fingerprint` in hex (None while there is no certificate), `trusted` (whether
    clients know its root). `window_start`, `window_end`: when the CA wants it renewed; `window_next_at`: when that may
    be asked for again. `renew_after`: when it is due. `failures`: in a row; `next_attempt_at`: not before then, and
    `wait_asked` if it is the CA that asked for the wait. `next_on_staging`: rehearse before asking the CA proper.
    `refused`: what the last failure was an answer to, empty if there was none; to anything else a CA may say yes.
    """

    id: str
    directory: str = ""
    domains: tuple[str, ...] = ()
    issuer: str | None = None
    serial: str | None = None
    fingerprint: str | None = None
    not_before: float | None = None
    not_after: float | None = None
    trusted: bool = False
    renew_after: float | None = None
    window_start: float | None = None
    window_end: float | None = None
    window_next_at: float | None = None
    last_attempt_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    next_attempt_at: float | None = None
    wait_asked: bool = False
    next_on_staging: bool = False
    updated_at: float | None = None
    refused: str = ""


_FIELDS = CertificateRow.__struct_fields__
_COLUMNS = ", ".join(_FIELDS)
_MARKS = ", ".join("?" * len(_FIELDS))


async def read(reader: Reader, certificate_id: str) -> CertificateRow | None:
    """From security.db; None if nothing is known. Raises DB_ERROR."""
    rows = await reader.rows(f"SELECT {_COLUMNS} FROM certificates WHERE id = ?", (certificate_id,))  # noqa: S608 - constants
    return _certificate(rows[0]) if rows else None


async def read_all(reader: Reader) -> list[CertificateRow]:
    """From security.db, by id. Raises DB_ERROR."""
    return [_certificate(row) for row in await reader.rows(f"SELECT {_COLUMNS} FROM certificates ORDER BY id")]  # noqa: S608 - constants


async def write(transaction: Transaction, row: CertificateRow) -> None:
    """In security.db, instead of what was known of it before. No change of what requests need: `generation` stays."""
    error = row.last_error
    values = {
        **msgspec.structs.asdict(row),
        "domains": "\n".join(row.domains),
        # It may name a file whose name is no UTF-8, which no database takes.
        "last_error": error and error.encode(errors="backslashreplace").decode(),
    }
    await transaction.change(
        f"INSERT OR REPLACE INTO certificates ({_COLUMNS}) VALUES ({_MARKS})",  # noqa: S608 - constants
        tuple(values.values()),
    )


def _certificate(row: Row) -> CertificateRow:
    values = dict(zip(_FIELDS, row, strict=True))
    values["domains"] = tuple(values["domains"].split("\n")) if values["domains"] else ()
    for flag in ("trusted", "wait_asked", "next_on_staging"):
        values[flag] = bool(values[flag])
    return CertificateRow(**values)

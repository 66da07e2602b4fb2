"""The certificates FLM has, as a list: a public authority's from the database, the local root's from its own file.

Strategy: what `flm security certificates list` shows is what is on record, so it is there whether a proxy runs or not,
and a failed attempt is shown with its reason also before there is any certificate.

Knows the rows and the files; asks no CA, and a running proxy only which of them it serves.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from flm.errors import CommandError
from flm.runtime.loglines import timestamp
from flm.services.notice import Served, running_proxy
from flm.store import certificates as rows
from flm.store.certificates import CertificateRow
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.tls.files import read_pair
from flm.tls.local import LEAF_FILE
from flm.tls.schedule import LEFT_WHEN_DUE

_MODES: Final = {"acme": "https-acme"}
_LOCAL: Final = "dev-selfsigned"


class Certificate(msgspec.Struct, frozen=True):
    """One certificate. Times are RFC 3339, None: not known, or never.

    `served`: by the running proxy, at this moment. `mode`: the one it is made for. `directory`: URL of the CA's
    directory. `serial`, `fingerprint` (SHA-256): hex. `trusted`: clients need no file of FLM's for it. `renew_after`:
    when it is due. `failures`: attempts in a row that failed; there is none before `next_attempt_at`.
    """

    mode: str
    domains: tuple[str, ...] = ()
    issuer: str | None = None
    not_before: str | None = None
    not_after: str | None = None
    trusted: bool = False
    renew_after: str | None = None
    last_attempt_at: str | None = None
    last_error: str | None = None
    failures: int = 0
    next_attempt_at: str | None = None
    directory: str | None = None
    serial: str | None = None
    fingerprint: str | None = None
    served: bool = False


async def certificates_of(folder: Folder) -> list[Certificate]:
    """Every certificate there is or was asked for. Raises DB_ERROR."""
    async with await open_security(folder) as database:
        found = [_shown(row) for row in await rows.read_all(database)]
    local = await asyncio.to_thread(_local, folder)
    running = await running_proxy(folder)
    line = running.certificate if running is not None else None
    return [_as_served(each, line) for each in (*found, *([local] if local is not None else []))]


def _as_served(each: Certificate, line: Served | None) -> Certificate:
    """`each`; the one that is served with what only its proxy knows: that the clock is wrong, or the disk full."""
    if line is None or line.fingerprint is None or each.fingerprint != line.fingerprint:
        return each
    return msgspec.structs.replace(each, served=True, last_error=each.last_error or line.last_error)


def _shown(row: CertificateRow) -> Certificate:
    return Certificate(
        mode=_MODES.get(row.id, row.id),
        domains=row.domains,
        issuer=row.issuer,
        not_before=_moment(row.not_before),
        not_after=_moment(row.not_after),
        trusted=row.trusted,
        renew_after=_moment(row.renew_after),
        last_attempt_at=_moment(row.last_attempt_at),
        last_error=row.last_error,
        failures=row.failures,
        next_attempt_at=_moment(row.next_attempt_at),
        directory=row.directory or None,
        serial=row.serial,
        fingerprint=row.fingerprint,
    )


def _moment(seconds: float | None) -> str | None:
    """As `flm proxy status` writes it."""
    return None if seconds is None else timestamp(seconds)


def _local(folder: Folder) -> Certificate | None:
    """The certificate of the local root; None if there is none. What is wrong with its file is its error."""
    try:
        pair = read_pair(folder.certs / LEAF_FILE)
    except CommandError as error:
        return Certificate(_LOCAL, last_error=error.message)
    if pair is None:
        return None
    return Certificate(
        mode=_LOCAL,
        domains=pair.domains,
        issuer=pair.issuer,
        not_before=_moment(pair.not_before),
        not_after=_moment(pair.not_after),
        renew_after=_moment(pair.not_after - LEFT_WHEN_DUE * (pair.not_after - pair.not_before)),
        serial=pair.serial,
        fingerprint=pair.fingerprint,
    )

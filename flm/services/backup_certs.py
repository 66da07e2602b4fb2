"""The certificates of a backup: collected when it is made, and looked at before they replace anything.

Strategy: when a backup is made they are read into memory and go from there into the file that is sealed, so that no
copy of a key lies anywhere. What cannot be used is left out and named: a damaged file is no reason to have no backup at
all. When a backup is restored it is the other way round: a file that is not what its name says makes all of it invalid.

Names are those of a backup, `certs/…`. Knows no seal and no database. Blocking.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from flm.disk.private import write_atomically
from flm.errors import CommandError
from flm.store.folder import Folder
from flm.store.swap import CERTS, absent_from, certs_in
from flm.tls import safekeeping
from flm.tls.files import locked, read_private
from flm.tls.local import PUBLIC_FILE

_PREFIX: Final = f"{CERTS}/"


class Collected(msgspec.Struct, frozen=True):
    """What goes into a backup, by name, and what does not though it is there, each with the reason."""

    files: dict[str, bytes]
    left_out: tuple[str, ...]


def belongs(name: str) -> bool:
    """Whether a backup may have this file among its certificates."""
    return name.startswith(_PREFIX) and safekeeping.belongs(name.removeprefix(_PREFIX))


def collect(folder: Folder) -> Collected:
    """What there is of it in the data folder, also while a proxy runs: each file is whole, and nobody is replacing the
    local root meanwhile."""
    if not os.path.lexists(folder.certs):
        return Collected({}, ())
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    try:
        with locked(folder.certs):
            for name in safekeeping.found(folder.certs):
                data, why = _usable(folder.certs, name)
                if why:
                    left_out.append(f"{_PREFIX}{name}: {why}")
                elif data:
                    files[_PREFIX + name] = data
    except CommandError as error:
        return Collected({}, (f"{CERTS}: {error.message}",))
    return Collected(files, tuple(left_out))


def _usable(certs: Path, name: str) -> tuple[bytes | None, str]:
    """What a file holds, None if it is gone by now, and why that cannot be used."""
    try:
        data = read_private(certs / name)
    except CommandError as error:
        return None, error.message
    return data, "" if data is None else safekeeping.fault(name, data)


def fault(staged: Path) -> str:
    """What is wrong with the certificates that were unpacked into `staged`; empty if nothing is."""
    for name in filter(belongs, certs_in(staged)):
        try:
            why = safekeeping.fault(*_read(staged, name))
        except CommandError as error:
            why = error.message
        if why:
            return f"{name}: {why}"
    return ""


def leave_out_expired(staged: Path, now: float) -> tuple[str, ...]:
    """Take what has had its time at `now` (Unix seconds) out of `staged`, which has no fault: what is there at present
    is better. The names, each with the reason."""
    expired = [name for name in certs_in(staged) if safekeeping.is_over(*_read(staged, name), now)]
    for name in expired:
        os.unlink(staged / name)
    return tuple(f"{name}: it has expired" for name in expired)


def complete(staged: Path) -> None:
    """Write into `staged`, which has no fault, what is made of what is there, so that it changes together."""
    for name in certs_in(staged):
        for beside, content in safekeeping.derived(*_read(staged, name)).items():
            write_atomically(staged / CERTS / beside, content)


def _read(staged: Path, name: str) -> tuple[str, bytes]:
    return name.removeprefix(_PREFIX), read_private(staged / name) or b""


def of_former(kept: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The certificates that a folder of former files has, and those that there were none of. Raises IO_ERROR."""
    known = [name for name in certs_in(kept) if _may_be_kept(name)]
    return tuple(known), tuple(filter(_may_be_kept, absent_from(kept)))


def _may_be_kept(name: str) -> bool:
    return belongs(name) or name == _PREFIX + PUBLIC_FILE

"""The order that is under way: its URL and the certificate's key, kept in `pending.json`, 0600, from its beginning.

Strategy: an attempt that is killed leaves an order that the CA still has, and perhaps a certificate that was issued
and never fetched. The next attempt finds it here and goes on with it, so nothing is asked for, validated or issued
twice. It is forgotten when whoever asked has the certificate.

Blocking. Asks no CA.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from flm.disk.private import write_atomically
from flm.tls.account_file import load_key
from flm.tls.files import read_private

FILE: Final = "pending.json"


class Pending(msgspec.Struct, frozen=True):
    """An order with a CA. `key`: the certificate's, PKCS#8 PEM. `account`: URL of the account that made it."""

    url: str
    account: str
    names: list[str]
    profile: str
    key: str

    def __repr__(self) -> str:
        """Without the key."""
        return f"Pending({self.url!r}, names={self.names!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("url", self.url)]


def read(folder: Path) -> Pending | None:
    """What is under way; None if nothing is, or nothing that can be read. Raises IO_ERROR."""
    data = read_private(folder / FILE)
    if data is None:
        return None
    try:
        pending = msgspec.json.decode(data, type=Pending)
        load_key(pending.key)
    except (msgspec.MsgspecError, ValueError):  # UnicodeDecodeError is one
        return None
    return pending


def write(folder: Path, pending: Pending) -> None:
    """Raises IO_ERROR."""
    write_atomically(folder / FILE, msgspec.json.encode(pending))


def forget(folder: Path) -> None:
    """Begin anew next time. One that cannot be removed is recognised by its certificate (`issuer`)."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()

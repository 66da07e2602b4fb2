"""What of the folder `certs` is worth a place in a backup, and whether a file is what its name there says.

In it: the local root; of each CA the account, and the certificate that it issued last. Not in it: what is made again
out of these (the root's certificate alone, the leaf that it signs), an order under way, and roots out of use, whose
keys had better be forgotten.

Names are relative to `certs`, with slashes. Knows no backup, and nothing of how they come there. Blocking.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from flm.errors import CommandError
from flm.tls import account_file, pair
from flm.tls.files import CERTIFICATE_FILE, folder_of
from flm.tls.local import PUBLIC_FILE, ROOT_FILE, not_ours

MOST: Final = 128  # files that a backup has of it; people have a handful
_NAME: Final = re.compile(
    rf"{re.escape(ROOT_FILE)}|acme/([a-z0-9_-][a-z0-9._-]{{0,99}}-[0-9a-f]{{12}})/"
    rf"(?:{re.escape(account_file.FILE)}|{re.escape(CERTIFICATE_FILE)})"
)


def belongs(name: str) -> bool:
    """Whether a backup may have a file of this name. No such name leads out of `certs`."""
    return _NAME.fullmatch(name) is not None


def found(certs: Path) -> tuple[str, ...]:
    """The names of what is there of it, the root first; of very many, the first ones. Empty if there is no folder."""
    paths = [certs / ROOT_FILE, *sorted(certs.glob("acme/*/*"))]
    names = [str(path.relative_to(certs)) for path in paths if os.path.lexists(path)]
    return tuple(filter(belongs, names))[:MOST]


def fault(name: str, data: bytes) -> str:
    """Why `data` cannot be what a file of this name holds, without a byte of it; empty if it can."""
    try:
        if name.endswith(f"/{account_file.FILE}"):
            kept = account_file.parse(data)
            is_its = folder_of(kept.directory) == Path(name).parent.name
            return "" if is_its else "it is an account with another authority than its folder's"
        read = pair.read(data)
        return not_ours(read) if name == ROOT_FILE else ""
    except CommandError as error:
        return error.message
    except ValueError as error:
        return str(error)


def is_over(name: str, data: bytes, now: float) -> bool:
    """Whether a file without a fault has had its time, so that what is there now is better. A root never has: it is
    for a person to replace one. `now`: Unix seconds."""
    return name.endswith(f"/{CERTIFICATE_FILE}") and pair.read(data).not_after < now


def derived(name: str, data: bytes) -> dict[str, bytes]:
    """What lies beside a file without a fault and is made of it."""
    return {PUBLIC_FILE: pair.read(data).chain_pem} if name == ROOT_FILE else {}

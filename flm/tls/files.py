"""The files of certificates and keys, each whole and private (`flm.disk.private`).

Strategy: a pair is one file, so that key and certificate change in one rename.

Knows no certificate but that a pair can be read. Blocking, so on an event loop it runs in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flm.disk.locks import holding
from flm.disk.private import read_file, secure_folder
from flm.errors import CommandCode, CommandError
from flm.tls import pair as pairs
from flm.tls.pair import MAX_PEM_BYTES, Pair

CERTIFICATE_FILE: Final = "current.pem"  # in the folder of a CA: what it issued last
MAX_BYTES: Final = 4 * MAX_PEM_BYTES  # of any file here: a pair, or the notes of an order with its certificates
LOCK_SECONDS: Final = 30.0  # far longer than a key takes to make; after it, somebody hangs
_HOST_CHARACTERS: Final = 100  # of a folder's name; file systems allow 255 bytes
_HASH_CHARACTERS: Final = 12


def folder_of(directory_url: str) -> str:
    """The name of the folder for what belongs to one CA: its host, for people, and a hash of the whole URL."""
    try:
        host = urlsplit(directory_url).netloc.lower().rpartition("@")[2]
    except ValueError:
        host = ""
    readable = re.sub(r"[^a-z0-9.-]", "_", host)[:_HOST_CHARACTERS].lstrip(".") or "ca"
    return f"{readable}-{hashlib.sha256(directory_url.encode(errors='surrogatepass')).hexdigest()[:_HASH_CHARACTERS]}"


def read_private(path: Path) -> bytes | None:
    """What a file of ours holds; None if it is not there. Raises IO_ERROR, also if it is larger than MAX_BYTES."""
    data = read_file(path, MAX_BYTES + 1)
    if data is not None and len(data) > MAX_BYTES:
        raise CommandError(
            CommandCode.IO_ERROR,
            f"{path} is not used for keys: it is larger than {MAX_BYTES} bytes; move it away",
        )
    return data


def read_pair(path: Path) -> Pair | None:
    """The pair a file holds; None if it is not there. Raises IO_ERROR as `read_private`, PROXY_CERT_FAILED as
    `pair.read`, which then names the file."""
    data = read_private(path)
    if data is None:
        return None
    try:
        return pairs.read(data)
    except CommandError as error:
        raise CommandError(error.code, f"{path}: {error.message}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that makes something in `folder`, which is made if need be. Raises IO_ERROR, after LOCK_SECONDS
    too."""
    secure_folder(folder)
    with holding(folder, LOCK_SECONDS, CommandCode.IO_ERROR, "at work in"):
        yield

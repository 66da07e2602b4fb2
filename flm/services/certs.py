"""`CertsService`: the local root of one data folder, for those who are to trust it.

Strategy: what is handed out is the certificate alone, and how to trust it is told and never done. The root is made
when it is first asked for, so that it can be trusted before the proxy has ever run.

Knows where the root is kept; nothing of servers. Its key never comes this far.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.services.times import rfc3339
from flm.store.folder import Folder
from flm.store.swap import settle
from flm.tls.local import LocalAuthority
from flm.tls.pair import MAX_PEM_BYTES
from flm.tls.trust import Root, Store, read_root, stores

_PUBLIC_FILE = 0o644  # others are to read it


class RootFacts(msgspec.Struct, frozen=True):
    """The local root's certificate. `file`: where it lies without its key; `fingerprint`: SHA-256 of it, in hex;
    `vouches_for`: the domains, with all below them, and the networks it may sign for."""

    name: str
    file: str
    fingerprint: str
    not_before: str
    not_after: str
    vouches_for: tuple[str, ...]


class Exported(RootFacts, frozen=True):
    """`file` is the one it was exported to, if one was named. `pem`: the certificate itself."""

    pem: str


class Trust(RootFacts, frozen=True):
    """The root, and where and how it can be trusted and forgotten again."""

    stores: tuple[Store, ...]


class Replaced(RootFacts, frozen=True):
    """A new root. `former`: the file with the one before and its key, None if there was none; `former_public`: with
    its certificate alone, None if that could not be read; `next`: what to do."""

    former: str | None
    former_public: str | None
    next: str


class CertsService:
    """The local root. `now` is the Unix time in seconds.

    Every call raises PROXY_CERT_FAILED for a root that is damaged or no root of FLM's (but for `replace`) and IO_ERROR.
    """

    def __init__(self, folder: Folder, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._authority = LocalAuthority(folder.certs)
        self._now = now

    async def export(self, output: Path | None = None) -> Exported:
        """The root's certificate without its key, also written to `output`, 0644, if that is named: a file that is not
        there yet, or is this very certificate."""
        return await asyncio.to_thread(self._export, output)

    async def trust(self, former: Path | None = None) -> Trust:
        """The commands for each system and program, for the root, or for `former`, a file with the certificate of one
        that was replaced. Changes nothing but that the root is made if there is none."""
        return await asyncio.to_thread(self._trust, former)

    async def replace(self) -> Replaced:
        """Put a new root in the place of the one there, which is kept under another name."""
        return await asyncio.to_thread(self._replace)

    def _export(self, output: Path | None) -> Exported:
        pem = self._root()
        file = self._authority.public_file
        if output is not None:
            file = Path(os.path.abspath(output))
            _write_public(file, pem)
        return Exported(**_facts(read_root(pem), file), pem=pem.decode())

    def _trust(self, former: Path | None) -> Trust:
        file, root = self._authority.public_file, read_root(self._root())
        if former is not None:
            file = Path(os.path.abspath(former))
            root = _read_former(file)
        return Trust(**_facts(root, file), stores=stores(file, root))

    def _replace(self) -> Replaced:
        secure_folder(self._folder.root)
        settle(self._folder)
        made = self._authority.replace(self._now())
        steps = "trust the new root where the old one was trusted (`flm certs trust --print`)"
        if made.former_public is not None:
            command = f"flm certs trust --print --of {shlex.quote(str(made.former_public))}"
            steps += f", and remove the old one there (`{command}`)"
        return Replaced(
            **_facts(read_root(made.root.chain_pem), self._authority.public_file),
            former=str(made.former) if made.former else None,
            former_public=str(made.former_public) if made.former_public else None,
            next=f"{steps}; a running proxy has a certificate of the new one within a minute",
        )

    def _root(self) -> bytes:
        secure_folder(self._folder.root)
        settle(self._folder)  # a restore that was cut off may have left another root
        return self._authority.root(self._now()).chain_pem


def _facts(root: Root, file: Path) -> dict[str, Any]:
    return {
        "name": root.name,
        "file": str(file),
        "fingerprint": root.fingerprint,
        "not_before": rfc3339(root.not_before),
        "not_after": rfc3339(root.not_after),
        "vouches_for": root.vouches_for,
    }


def _read_former(file: Path) -> Root:
    try:
        with open(file, "rb") as reading:
            return read_root(reading.read(MAX_PEM_BYTES))
    except OSError as error:
        raise CommandError(CommandCode.IO_ERROR, f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise CommandError(
            CommandCode.PROXY_CERT_FAILED, f"{file} does not begin with the certificate of a local root of FLM's"
        ) from None


def _write_public(file: Path, pem: bytes) -> None:
    """Write a file that is not there yet, whole or not at all."""
    waiting = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if file.is_file() and file.stat().st_size == len(pem) and file.read_bytes() == pem:
            return
        descriptor = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _PUBLIC_FILE)
        try:
            with open(descriptor, "wb") as writing:
                writing.write(pem)
            os.link(waiting, file, follow_symlinks=False)  # never over another file
        finally:
            os.unlink(waiting)
    except FileExistsError:
        raise CommandError(
            CommandCode.IO_ERROR, f"{file} is there already and was left as it is; take another name"
        ) from None
    except OSError as error:
        raise CommandError(CommandCode.IO_ERROR, f"{file} could not be written: {error.strerror or error}") from None

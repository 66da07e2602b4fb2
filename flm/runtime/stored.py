"""The file in which the certificate of a CA lies with its key: read at start, written when there is a new one, and
compared with what is served meanwhile.

Strategy: what is served was verified and is in memory, so the file can always be written again; nothing is ever taken
from it while there is a pair to serve. What is wrong with it is told once, not at each look.

Knows one path for each CA; decides nothing about new certificates.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Literal

from flm.disk.private import write_atomically
from flm.errors import CommandError
from flm.store.folder import Folder
from flm.tls.files import CERTIFICATE_FILE, folder_of, read_pair
from flm.tls.pair import Pair

State = Literal["whole", "gone", "spoilt"]
"""What was found where the pair that is served should be: that one, nothing, or something else."""

log = logging.getLogger("flm.supervisor")


class StoredPair:
    """`unread`: why what is there cannot be used. `unsaved`: why the last pair could not be written. None: it was."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.unread: str | None = None
        self.unsaved: str | None = None

    def place(self, directory: str) -> Path:
        """The folder of one CA, by the URL of its directory."""
        return self._folder.certs / "acme" / folder_of(directory)

    def path(self, directory: str) -> Path:
        return self.place(directory) / CERTIFICATE_FILE

    async def read(self, directory: str) -> Pair | None:
        """The pair on disk; one that cannot be read is no pair, and the log says why, once."""
        try:
            stored = await asyncio.to_thread(read_pair, self.path(directory))
        except CommandError as error:
            if error.message != self.unread:
                log.error("the stored certificate is not used: %s", error.message)
            self.unread = error.message
            return None
        self.unread = None
        return stored

    async def write(self, pair: Pair, directory: str) -> None:
        """What goes wrong is `unsaved`."""
        try:
            await asyncio.to_thread(write_atomically, self.path(directory), pair.pem)
            self.unsaved = self.unread = None
        except (CommandError, OSError) as error:
            self.unsaved = f"the new certificate is served, but cannot be stored: {error}"
            log.error("%s", self.unsaved)

    async def mend(self, pair: Pair, directory: str) -> State:
        """Let `pair` be on disk; what was found there."""
        path = self.path(directory)
        if not await asyncio.to_thread(os.path.lexists, path):
            log.warning("%s was gone, and is written again", path)
            await self.write(pair, directory)
            return "gone"
        stored = await self.read(directory)
        if stored is not None and stored.fingerprint == pair.fingerprint:
            return "whole"
        log.error("%s is not the certificate that is served, which is written there again", path)
        await self.write(pair, directory)
        return "spoilt"

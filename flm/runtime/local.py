"""The keeper of `dev-selfsigned`: a leaf of FLM's own local root for the names and addresses this machine has now.

Knows when to look again, and nothing of how a root or a leaf is made: that is `flm.tls.local`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from flm.config import Mode, Settings
from flm.errors import CommandError
from flm.runtime.front import Step
from flm.runtime.handle import CertificateLine
from flm.runtime.loglines import timestamp
from flm.store.folder import Folder
from flm.tls.interfaces import local_names
from flm.tls.local import LocalAuthority
from flm.tls.pair import Pair

LOOK_SECONDS: Final = 30.0  # how soon an address that this machine has got is in the certificate

log = logging.getLogger("flm.supervisor")


class LocalKeeper:
    """The local certificate of one folder. `clock`: Unix seconds."""

    mode: Mode = "dev-selfsigned"

    def __init__(self, folder: Folder, clock: Callable[[], float] = time.time) -> None:
        self._authority = LocalAuthority(folder.certs)
        self._clock = clock
        self.pair: Pair | None = None
        self.last_error: str | None = None

    async def obtain(self, settings: Settings, step: Step) -> Pair:
        """Raises CommandError: the root cannot be used."""
        pair = self.pair = await asyncio.to_thread(self._leaf)
        step("certificate", f"of FLM's own local root, for {', '.join(pair.domains)}")
        return pair

    async def resume(self, pair: Pair) -> None:
        self.pair = pair

    async def look(self, settings: Settings) -> None:
        try:
            self.pair = await asyncio.to_thread(self._leaf)
            self.last_error = None
        except CommandError as error:
            if error.message != self.last_error:
                log.error("the local certificate cannot be renewed: %s", error.message)
            self.last_error = error.message

    def _leaf(self) -> Pair:
        return self._authority.leaf(local_names(), self._clock())

    def pause(self) -> float:
        return LOOK_SECONDS

    def line(self) -> CertificateLine | None:
        pair = self.pair
        if pair is None:
            return None
        return CertificateLine(
            mode=self.mode,
            domains=list(pair.domains),
            issuer=pair.issuer,
            not_before=timestamp(pair.not_before),
            not_after=timestamp(pair.not_after),
            renew_after=timestamp(pair.not_after - (pair.not_after - pair.not_before) / 3),
            last_attempt_at=None,
            next_attempt_at=None,
            last_error=self.last_error,
            trusted=False,
            fingerprint=pair.fingerprint,
            hint="`flm certs trust --print` says how to have this machine's clients trust it",
        )

    async def close(self) -> None:
        """Nothing is under way."""

"""Keeps what requests see up to date while a proxy runs: the databases' changes once a second, the engines' in rounds.

Knows the publisher and the prober, and whose turn it is; knows no worker and no control socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from flm.errors import CommandError
from flm.runtime.memory import Memory
from flm.runtime.publish import Publisher

if TYPE_CHECKING:
    from flm.runtime.prober import Prober

FIRST_ROUND_SECONDS: Final = 1.0  # how long a start waits for the engines to be known
WATCH_SECONDS: Final = 1.0  # how soon a change holds that nobody told the proxy of

log = logging.getLogger("flm.supervisor")


class Upkeep:
    """One proxy's published state and where it comes from."""

    def __init__(self, publisher: Publisher, memory: Memory) -> None:
        self._publisher = publisher
        self._memory = memory
        self._prober: Prober | None = None
        self._round: asyncio.Task[None] | None = None

    async def publish(self) -> None:
        """Publish for the first time, or again after a restart. Raises CommandError."""
        await self._publisher.refresh(self._memory)

    def begin_rounds(self, known_for: float) -> None:
        """Look for engines in the background, beginning with those seen in the last `known_for` seconds."""
        self._round = asyncio.create_task(self._first_round(time.time() - known_for))

    async def first_round(self) -> None:
        """Return when the engines are known, or FIRST_ROUND_SECONDS have passed."""
        if self._round is not None:
            await asyncio.wait([self._round], timeout=FIRST_ROUND_SECONDS)

    async def end(self) -> None:
        """No round is under way afterwards."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    async def _first_round(self, since: float) -> None:
        """Look for engines, beginning with those seen at `since` (Unix seconds) or later: names stay, states go on."""
        await asyncio.sleep(0)
        from flm.runtime.prober import Prober  # not above: this import would be a fifth of a restart

        prober = Prober()
        try:
            await prober.recall(self._publisher.databases()[0], since)
        except CommandError as error:
            self._note(error.message)
        self._prober = prober
        await self.look_for_engines()

    async def refresh(self) -> int:
        """Everything as the databases have it now is in force when this returns; its epoch. Raises CommandError."""
        if self._prober and await self._prober.registered_changed(*self._publisher.databases()):
            await self.look_for_engines()
        return await self._publisher.refresh(self._memory)

    async def watch_databases(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if await self._publisher.changed():
                    await self.refresh()
                    log.info("a change of keys, engines or settings by another program is in force")
            except CommandError as error:
                self._note(error.message)
            except Exception:  # a fault of FLM's own must not end the watching
                log.exception("looking for changes in the databases failed")

    async def watch_engines(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(self._publisher.resolved.settings.engine_check_interval_seconds)
            await self.look_for_engines()

    async def look_for_engines(self) -> None:
        """One round of the prober; what changed is in force afterwards. Errors are remembered, not raised."""
        if self._prober is None:
            return
        from flm.runtime.prober import describe_change

        try:
            before = self._publisher.engines
            if await self._prober.look(*self._publisher.databases(), self._publisher.resolved.settings):
                self._publisher.engines = self._prober.engines
                log.info("engines: %s", describe_change(before, self._prober.engines))
                await self._publisher.refresh(self._memory)
        except CommandError as error:
            self._note(error.message)
        except TimeoutError:
            log.warning("a round of looking for engines took too long and was given up")
        except Exception:  # a fault of FLM's own must not end the rounds
            log.exception("a round of looking for engines failed")

    def _note(self, message: str) -> None:
        if self._publisher.last_error != message:
            log.error("requests go on with what was known before: %s", message)
        self._publisher.last_error = message

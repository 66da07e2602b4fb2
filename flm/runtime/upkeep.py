"""Keeps what requests see up to date while a proxy runs: the databases' changes once a second, the engines' in rounds.

An engine that failed a request, or a check, is followed: checked alone at once, and again each second while nothing
listens there, until it is well or known to be down. So the truth does not wait for the next rounds.

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
from flm.runtime.reports import REPORT_SECONDS
from flm.snapshot import Engine

if TYPE_CHECKING:
    from flm.runtime.prober import Prober

FIRST_ROUND_SECONDS: Final = 1.0  # how long a start waits for the engines to be known
WATCH_SECONDS: Final = 1.0  # how soon a change holds that nobody told the proxy of
FOLLOW_SECONDS: Final = 1.0  # between two checks of an engine where nothing listens

log = logging.getLogger("flm.supervisor")


class Upkeep:
    """One proxy's published state and where it comes from."""

    def __init__(self, publisher: Publisher, memory: Memory) -> None:
        self._publisher = publisher
        self._memory = memory
        self._prober: Prober | None = None
        self._round: asyncio.Task[None] | None = None
        self._recalled = asyncio.Event()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._counted: dict[str, float] = {}
        self._resting = False
        self._owed = False  # a change that is not in force yet

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
        """No round is under way afterwards, and until `watch_engines` begins again no engine is followed or asked for
        its models."""
        self._resting = True
        tasks = [*self._following.values(), *([self._round] if self._round is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._prober is not None:
            await self._prober.end()

    async def _first_round(self, since: float) -> None:
        """Look for engines, beginning with those seen at `since` (Unix seconds) or later: names stay, states go on."""
        await asyncio.sleep(0)
        from flm.runtime.prober import Prober  # not above: this import would be a fifth of a restart

        prober = Prober(self._in_force, self._publisher.engines)
        try:
            await prober.recall(*self._publisher.databases(), since)
            await prober.tell()
        except CommandError as error:
            self._note(error.message)
        finally:
            self._prober = prober
            self._recalled.set()
        await self.look_for_engines()

    async def refresh(self) -> int:
        """Everything as the databases have it now is in force when this returns; its epoch. Raises CommandError."""
        if self._round is not None:
            await self._recalled.wait()
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
                    log.info("a change of keys, policy, engines or settings by another program is in force")
            except CommandError as error:
                self._note(error.message)
            except Exception:  # a fault of FLM's own must not end the watching
                log.exception("looking for changes in the databases failed")

    async def watch_engines(self) -> None:
        """Runs until it is cancelled."""
        self._resting = False
        if self._prober is not None:
            self._prober.resume()
        while True:
            await asyncio.sleep(self._publisher.resolved.settings.engine_check_interval_seconds)
            await self.look_for_engines()

    async def look_for_engines(self) -> None:
        """One round of the prober; what changed is in force afterwards. Errors are remembered, not raised."""
        if self._prober is None:
            return
        try:
            await self._prober.look(*self._publisher.databases(), self._publisher.resolved.settings)
        except CommandError as error:
            self._note(error.message)
        except TimeoutError:
            log.warning("a round of looking for engines took too long and was given up")
        except Exception:  # a fault of FLM's own must not end the rounds
            log.exception("a round of looking for engines failed")
        for engine_id in self._prober.ailing:
            self._follow(engine_id, FOLLOW_SECONDS)

    def engine_failed(self, engine_id: str, message: str) -> None:
        """A worker says that a request failed by its engine's fault: one failed check, at most one a REPORT_SECONDS
        whoever says it, and a reason to look. Returns at once."""
        now = asyncio.get_running_loop().time()
        if (
            self._prober is None
            or self._resting
            or now < self._counted.get(engine_id, -REPORT_SECONDS) + REPORT_SECONDS
        ):
            return
        if self._prober.count_failure(engine_id, message, self._publisher.resolved.settings):
            log.warning("a request to engine %s failed: %s", engine_id, message)
            self._counted = {known: at for known, at in self._counted.items() if now < at + REPORT_SECONDS}
            self._counted[engine_id] = now
            self._follow(engine_id, 0.0)

    def _follow(self, engine_id: str, seconds: float) -> None:
        """Check this engine alone in so many seconds, and on; nothing to do if that is going on already."""
        if engine_id not in self._following and not self._resting:
            task = asyncio.get_running_loop().create_task(self._follow_up(engine_id, seconds))
            self._following[engine_id] = task
            task.add_done_callback(lambda _: self._following.pop(engine_id, None))

    async def _follow_up(self, engine_id: str, seconds: float) -> None:
        prober = self._prober
        try:
            while prober is not None:
                await prober.tell()
                await asyncio.sleep(seconds)
                config, _ = self._publisher.databases()
                seen = await prober.check(engine_id, config, self._publisher.resolved.settings)
                if seen is None or seen.listening or engine_id not in prober.ailing:
                    return
                seconds = FOLLOW_SECONDS
        except CommandError as error:
            self._note(error.message)
        except Exception:  # a fault of FLM's own must not go unseen
            log.exception("checking engine %s failed", engine_id)

    async def _in_force(self, engines: tuple[Engine, ...]) -> None:
        """What requests should know of the engines, for every worker's next request. Raises CommandError."""
        from flm.runtime.prober import describe_change

        before, self._publisher.engines = self._publisher.engines, engines
        if engines != before:
            log.info("engines: %s", describe_change(before, engines))
            self._owed = True
        if self._owed:
            await self._publisher.refresh(self._memory)
            self._owed = False

    def _note(self, message: str) -> None:
        if self._publisher.last_error != message:
            log.error("requests go on with what was known before: %s", message)
        self._publisher.last_error = message

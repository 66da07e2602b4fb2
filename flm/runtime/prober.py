"""Watches the engines while the proxy runs, so that one that appears, moves, dies or swaps its model is seen without a
restart.

Each round looks for engines of every kind at once and asks those that serve for their models (see `lists`), without
waiting for slow ones; between rounds one engine can be checked alone, and a request that failed counts as a failed
check. What requests should know is shown as soon as it is known: a death at once, an engine that appears together with
its models. If that fails, the engines are asked on all the same. What was seen goes to the cache in config.db too, for
`flm engines list`.

Knows no kind of engine by name, and no worker: `show` takes what requests should know, whenever that may have changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from flm.config import Settings
from flm.engines.base import Verdict
from flm.engines.registry import DIALECTS
from flm.errors import CommandError
from flm.runtime.lists import ModelLists, place
from flm.snapshot import Engine
from flm.store import engines as rows
from flm.store.database import Database
from flm.upstream.detect import Detected, Registered, detect_engines, identify
from flm.upstream.health import INSTALLED, Observation, State, Thresholds, advance

ROUND_SECONDS: Final = 20.0  # looking takes 5 s at most; the rest is for a database that is busy
NEW_LISTS_SECONDS: Final = 3.0  # how long a round waits for the models of engines that have just appeared
LISTS_SECONDS: Final = 0.25  # and of the others, whose lists are in force whenever they come

Show = Callable[[tuple[Engine, ...]], Awaitable[None]]

log = logging.getLogger("flm.engines")


class Prober:
    """What is known of the engines, from round to round. `shown`: what requests know already."""

    def __init__(self, show: Show, shown: tuple[Engine, ...] = ()) -> None:
        self._show = show
        self._shown = shown
        self._found: list[Detected] = []
        self._lists = ModelLists(self._tell)
        self._untold: Exception | None = None  # why requests do not know what is known
        self._registered: tuple[list[rows.Upstream], dict[str, str]] = ([], {})
        self._looked = False
        self._turn = asyncio.Lock()

    async def recall(self, config: Database, security: Database, since: float) -> None:
        """Begin with what was seen at `since` (Unix seconds) or later, so that names stay and states go on.

        A registered engine that was not seen is there all the same: a request for it must hear that it is not known to
        answer yet, not that nobody ever heard of it.
        """
        self._registered = await rows.registered(config), await rows.credentials(security)
        for each in await rows.seen(config, since):
            state = State(each.status, each.checked_at, each.version, each.latency_ms, each.last_error)
            found = Detected(each.id, each.kind, each.url, each.source, state)
            self._found.append(found)
            self._lists.recall(found, each.models)
        known = {each.id for each in self._found}
        for upstream in self._registered[0]:
            if upstream.id not in known and upstream.kind in DIALECTS:
                pending = State(INSTALLED, since, last_error="it has not been looked at yet")
                self._found.append(Detected(upstream.id, upstream.kind, upstream.url, "registered", pending))

    async def look(self, config: Database, security: Database, settings: Settings) -> None:
        """One round. Raises DB_ERROR, TimeoutError after ROUND_SECONDS, and last what kept it from being shown."""
        async with self._turn, asyncio.timeout(ROUND_SECONDS):
            registered = await rows.registered(config), await rows.credentials(security)
            began = time.time()
            found = await detect_engines(
                list(DIALECTS.values()),
                os.environ,
                sys.platform,
                str(Path.home()),
                registered=_named(*registered),
                previous=self._found,
                discover=settings.engine_discover,
                thresholds=_thresholds(settings),
            )
            self._registered, self._looked = registered, True
            # One that was checked alone meanwhile is known better than this round can tell.
            newer = {place(each): each for each in self._found if each.state.checked_at > began}
            self._take(newer.get(place(each), each) for each in found)
            await self._tell()
            await self._list_models()
            await self._remember(config)
        self._raise_untold()

    async def check(self, engine_id: str, config: Database, settings: Settings) -> Observation | None:
        """Check one engine alone, and ask it for its models; None if there is no such engine. Raises DB_ERROR."""
        engine = self._engine_called(engine_id)
        if engine is None:
            return None
        seen = await identify(
            engine.url, DIALECTS[engine.kind], credential=self._credential(engine), ca=self._authorities(engine)
        )
        current = self._engine_called(engine_id)
        if current is None or place(current) != place(engine):
            return None  # it was removed, or is another one now
        self._advance(current, seen, settings)
        await self._tell()
        if (checked := self._engine_called(engine_id)) is not None and checked.state.serving and not _ails(checked):
            await _done(self._fetch(checked), None)
        await self._remember(config)
        self._raise_untold()
        return seen

    def count_failure(self, engine_id: str, message: str, settings: Settings) -> bool:
        """A request failed by the fault of this engine: one failed check. False if that is no news: it is unknown, or
        known to be down."""
        failed = self._engine_called(engine_id)
        if failed is None or not failed.state.serving:
            return False
        for each in list(self._found):  # one address may have several names
            if each.url == failed.url and each.state.serving:
                self._advance(each, Observation(Verdict.SILENT, detail=message), settings)
        return True

    @property
    def ailing(self) -> list[str]:
        """Ids of engines that serve still, though their last check failed."""
        return [each.id for each in self._found if _ails(each)]

    async def tell(self) -> None:
        """Show what is known now. Raises what keeps it from being shown."""
        await self._tell()
        self._raise_untold()

    async def end(self) -> None:
        """No engine is asked for its models afterwards, until `resume`."""
        await self._lists.end()

    def resume(self) -> None:
        self._lists.resume()

    async def registered_changed(self, config: Database, security: Database) -> bool:
        """Whether somebody registered, changed or removed an engine since the last round."""
        return not self._looked or (await rows.registered(config), await rows.credentials(security)) != self._registered

    # --- what is known -----------------------------------------------------------------------------------------------

    def _take(self, found: Iterable[Detected]) -> None:
        self._found = list(found)
        self._lists.keep(self._found)

    def _advance(self, engine: Detected, seen: Observation, settings: Settings) -> None:
        state = advance(engine.state, seen, _thresholds(settings), time.time())
        self._take(msgspec.structs.replace(each, state=state) if each.id == engine.id else each for each in self._found)

    def _engine_called(self, engine_id: str) -> Detected | None:
        return next((each for each in self._found if each.id == engine_id), None)

    def _credential(self, engine: Detected) -> str | None:
        return self._registered[1].get(engine.id) if engine.source == "registered" else None

    def _authorities(self, engine: Detected) -> str | None:
        own = self._record(engine)
        return own.ca if own else None

    def _record(self, engine: Detected) -> rows.Upstream | None:
        if engine.source != "registered":
            return None
        return next((each for each in self._registered[0] if each.id == engine.id), None)

    # --- models ------------------------------------------------------------------------------------------------------

    async def _list_models(self) -> None:
        """Ask all that answer; wait a little for those that are new, so that they appear with their models."""
        answering = [each for each in self._found if each.state.serving and not _ails(each)]
        new = [task for each in answering if not self._lists.known(each) for task in self._fetch(each)]
        others = [task for each in answering if self._lists.known(each) for task in self._fetch(each)]
        await _done(new, NEW_LISTS_SECONDS)
        await _done(others, LISTS_SECONDS)

    def _fetch(self, engine: Detected) -> list[asyncio.Task[None]]:
        return self._lists.fetch(engine, self._credential(engine), self._authorities(engine))

    # --- what requests know ------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        before = {(each.id, each.kind, each.url): each for each in self._shown}
        shown = []
        for each in self._found:
            if each.state.serving and not self._lists.known(each):  # it comes with its models, in a moment
                shown += [before[place(each)]] if place(each) in before else []
            else:
                shown.append(self._engine(each))
        self._shown = tuple(shown)
        try:
            await self._show(self._shown)
        except Exception as error:  # raised in the end: what is bad may be replaced by what comes next
            self._untold = error
        else:
            self._untold = None

    def _raise_untold(self) -> None:
        error, self._untold = self._untold, None
        if error is not None:
            raise error

    def _last_error(self, engine: Detected) -> str | None:
        return engine.state.last_error or self._lists.wanting(engine)

    def _engine(self, found: Detected) -> Engine:
        own = self._record(found)
        return Engine(
            id=found.id,
            kind=found.kind,
            url=found.url,
            status=found.state.status,
            last_error=self._last_error(found),
            version=found.state.version,
            credential=self._credential(found),
            models=self._lists.models(found),
            connect_timeout=own.connect_timeout if own else None,
            first_byte_timeout=own.first_byte_timeout if own else None,
            between_bytes_timeout=own.between_bytes_timeout if own else None,
            total_timeout=own.total_timeout if own else None,
            ca=own.ca if own else None,
        )

    async def _remember(self, config: Database) -> None:
        seen = [
            rows.SeenEngine(
                id=each.id,
                kind=each.kind,
                url=each.url,
                status=each.state.status,
                source=each.source,
                version=each.state.version,
                latency_ms=each.state.latency_ms,
                last_error=self._last_error(each),
                models=self._lists.models(each),
                checked_at=each.state.checked_at,
            )
            for each in self._found
        ]
        try:
            async with config.transaction() as transaction:
                await rows.replace_seen(transaction, seen)
        except CommandError as error:  # a cache: requests do not need it
            log.warning("what was seen of the engines was not written down: %s", error.message)


async def _done(tasks: list[asyncio.Task[None]], seconds: float | None) -> None:
    """Wait for them, for so long; they go on."""
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


def _ails(engine: Detected) -> bool:
    return engine.state.serving and engine.state.failures > 0


def _named(upstreams: list[rows.Upstream], credentials: dict[str, str]) -> list[Registered]:
    return [Registered(each.id, each.kind, each.url, credentials.get(each.id), each.ca) for each in upstreams]


def _thresholds(settings: Settings) -> Thresholds:
    return Thresholds(
        settings.engine_failure_threshold, settings.engine_recovery_threshold, settings.engine_degraded_latency_ms
    )


def describe_change(before: tuple[Engine, ...], after: tuple[Engine, ...]) -> str:
    """What changed between two moments, for the log."""
    old = {engine.id: engine for engine in before}
    new = {engine.id: engine for engine in after}
    changes = [change for name, engine in new.items() if (change := _change(old.get(name), engine))]
    changes += [f"{name}: gone" for name in old.keys() - new.keys()]
    return ", ".join(changes) or "nothing changed"


def _change(old: Engine | None, new: Engine) -> str:
    status = old.status if old is not None else "unknown"
    if status != new.status:
        return f"{new.id}: {status} -> {new.status}"
    if old is None or old == new:
        return ""
    if old.models != new.models:
        return f"{new.id}: other models"
    if old.last_error != new.last_error:
        return f"{new.id}: {new.last_error or 'answers as it should'}"
    return f"{new.id}: another address, version or time limit"

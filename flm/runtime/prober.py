"""Watches the engines while the proxy runs, so that one that appears, moves or dies is seen without a restart.

Each round looks for engines of every kind at once, asks those that serve for their models, and hands the result to the
publisher; what was seen goes to the cache in config.db too, for `flm engines list`. A model list that cannot be had
leaves the last one standing.

Knows no kind of engine by name, and no worker: whoever runs rounds publishes what changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Final

from flm.config import Settings
from flm.engines.base import ListingError
from flm.engines.registry import DIALECTS
from flm.errors import CommandError
from flm.snapshot import Engine, Model
from flm.store import engines as rows
from flm.store.database import Database
from flm.upstream.detect import Detected, Registered, detect_engines, list_models
from flm.upstream.health import State, Thresholds

ROUND_SECONDS: Final = 20.0  # looking takes 5 s at most, listing models 10 s

log = logging.getLogger("flm.engines")


class Prober:
    """What is known of the engines, from round to round."""

    def __init__(self) -> None:
        self.engines: tuple[Engine, ...] = ()
        self._found: list[Detected] = []
        self._models: dict[str, tuple[Model, ...]] = {}
        self._registered: tuple[list[rows.Upstream], dict[str, str]] | None = None
        self._turn = asyncio.Lock()

    async def recall(self, config: Database, since: float) -> None:
        """Begin with what was seen at `since` (Unix seconds) or later, so that names stay and states go on."""
        for each in await rows.seen(config, since):
            state = State(each.status, each.checked_at, each.version, each.latency_ms, each.last_error)
            self._found.append(Detected(each.id, each.kind, each.url, each.source, state))
            self._models[each.id] = each.models

    async def look(self, config: Database, security: Database, settings: Settings) -> bool:
        """One round. True if what requests should know has changed. Raises DB_ERROR."""
        async with self._turn, asyncio.timeout(ROUND_SECONDS):
            upstreams = await rows.registered(config)
            credentials = await rows.credentials(security)
            self._found = await detect_engines(
                list(DIALECTS.values()),
                os.environ,
                sys.platform,
                str(Path.home()),
                registered=[
                    Registered(each.id, each.kind, each.url, credentials.get(each.id), each.ca) for each in upstreams
                ],
                previous=self._found,
                discover=settings.engine_discover,
                thresholds=Thresholds(
                    settings.engine_failure_threshold,
                    settings.engine_recovery_threshold,
                    settings.engine_degraded_latency_ms,
                ),
            )
            self._registered = (upstreams, credentials)
            await self._list_models(credentials)
            engines = tuple(self._engine(each, upstreams, credentials) for each in self._found)
            changed, self.engines = engines != self.engines, engines
            await self._remember(config)
            return changed

    async def registered_changed(self, config: Database, security: Database) -> bool:
        """Whether somebody registered, changed or removed an engine since the last round."""
        return (await rows.registered(config), await rows.credentials(security)) != self._registered

    async def _list_models(self, credentials: dict[str, str]) -> None:
        serving = [each for each in self._found if each.state.serving]
        listings = await asyncio.gather(*(self._models_of(each, credentials.get(each.id)) for each in serving))
        self._models = {each.id: models for each, models in zip(serving, listings, strict=True)}

    async def _models_of(self, engine: Detected, credential: str | None) -> tuple[Model, ...]:
        try:
            return await list_models(engine.url, DIALECTS[engine.kind], credential=credential)
        except ListingError as error:
            log.warning("the models of %s: %s", engine.id, error)
            return self._models.get(engine.id, ())

    def _engine(self, found: Detected, upstreams: list[rows.Upstream], credentials: dict[str, str]) -> Engine:
        own = next((each for each in upstreams if each.id == found.id), None)
        return Engine(
            id=found.id,
            kind=found.kind,
            url=found.url,
            status=found.state.status,
            last_error=found.state.last_error,
            version=found.state.version,
            credential=credentials.get(found.id),
            models=self._models.get(found.id, ()),
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
                last_error=each.state.last_error,
                models=self._models.get(each.id, ()),
                checked_at=each.state.checked_at,
            )
            for each in self._found
        ]
        try:
            async with config.transaction() as transaction:
                await rows.replace_seen(transaction, seen)
        except CommandError as error:  # a cache: requests do not need it
            log.warning("what was seen of the engines was not written down: %s", error.message)


def describe_change(before: tuple[Engine, ...], after: tuple[Engine, ...]) -> str:
    """What changed between two rounds, for the log."""
    old = {engine.id: engine.status for engine in before}
    new = {engine.id: engine.status for engine in after}
    changes = [
        f"{name}: {old.get(name, 'unknown')} -> {status}" for name, status in new.items() if old.get(name) != status
    ]
    changes += [f"{name}: gone" for name in old.keys() - new.keys()]
    return ", ".join(changes) or "model lists changed"

"""`EngineService`: the engines of this machine and those registered by hand, and their models.

Strategy: looking costs up to 5 s, so what was seen is kept in `config.db` and served while it is current
(`engine.cache_ttl_seconds`); a running proxy keeps it so. A single look knows nothing of earlier failures: an engine
that does not answer now is not called healthy.

Knows no kind of engine by name.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import msgspec.structs

from flm import snapshot
from flm.config import Settings, resolve
from flm.engines.base import Dialect, ListingError, UpstreamRequest, Verdict
from flm.engines.registry import DIALECTS, dialect
from flm.errors import CommandCode, CommandError, RequestError
from flm.services import demo_process
from flm.services.notice import put_in_force
from flm.services.registration import EngineTimeouts, check_credential, upstream
from flm.services.times import rfc3339
from flm.snapshot import SERVING
from flm.snapshot import Model as EngineModel
from flm.store import engines as rows
from flm.store import settings as setting_rows
from flm.store.database import Database, open_config, open_security
from flm.store.engines import SeenEngine, Upstream
from flm.store.folder import Folder
from flm.upstream.detect import Detected, Registered, detect_engines, identify, list_models
from flm.upstream.health import State, Thresholds, advance
from flm.upstream.pool import Pool, Timeouts
from flm.upstream.roster import place_of

SELF_PROBE_SECONDS: Final = 1.5
KINDS: Final = tuple(DIALECTS)  # what an engine may be registered as

log = logging.getLogger("flm.engines")


class Engine(msgspec.Struct, frozen=True):
    """One engine. `source`: `detected` or `registered`; `latency_ms` of the slowest answer of the check."""

    id: str
    kind: str
    url: str
    status: str
    version: str | None
    latency_ms: float | None
    checked_at: str | None
    source: str
    last_error: str | None


class Model(msgspec.Struct, frozen=True):
    """One model: `id` is what a client writes, `name` the engine's own name. Lengths are tokens."""

    id: str
    engine_id: str
    name: str
    context_length: int | None
    trained_context_length: int | None
    loaded: bool | None
    capabilities: tuple[str, ...]


class EngineService:
    """The engines of one data folder. `now` is the Unix time in seconds."""

    def __init__(
        self,
        folder: Folder,
        environment: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._now = now

    async def detect_engines(self, kind: str | None = None, *, fresh: bool = False) -> tuple[Engine, ...]:
        """Every engine that is there, and every registered one, by id; of one kind if asked. 5 s at most.

        `fresh` looks again, however recent the last look is. Raises ENGINE_NOT_FOUND for an unknown kind.
        """
        if kind is not None and kind not in DIALECTS:
            raise CommandError(
                CommandCode.ENGINE_NOT_FOUND,
                f"there is no engine kind {kind!r:.80}; known kinds: {', '.join(DIALECTS)}",
            )
        seen = await self._see(fresh=fresh)
        return tuple(_shown(engine) for engine in seen if kind in (None, engine.kind))

    async def list(self) -> tuple[Engine, ...]:
        """As `detect_engines`: every engine FLM would send requests to, with the ones registered by hand."""
        return await self.detect_engines()

    async def models(self, engine: str | None = None) -> tuple[Model, ...]:
        """The models of all engines that serve, or of those whose id or kind is `engine`.

        An engine that does not give its list is left out with a warning, or raises ENGINE_API_ERROR if it was asked
        for. Raises ENGINE_NOT_FOUND, and ENGINE_NETWORK_ERROR if the one asked for does not serve.
        """
        seen = await self._see(fresh=False)
        if engine is not None:
            seen = _wanted(engine, seen)
        lists = await self._lists(seen, strict=engine is not None)
        return tuple(_model(each, model) for each in seen for model in lists.get(each.id, ()))

    async def serving(self) -> tuple[snapshot.Engine, ...]:
        """Every engine as requests see it now, without its credential; one that gives no model list has no models."""
        seen = await self._see(fresh=False)
        models = await self._lists(seen, strict=False)
        return tuple(
            snapshot.Engine(
                each.id, each.kind, each.url, each.status, models=models.get(each.id, ()), last_error=each.last_error
            )
            for each in seen
        )

    async def add(
        self,
        engine_id: str,
        kind: str,
        url: str,
        *,
        credential: str | None = None,
        ca: bytes | None = None,
        timeouts: EngineTimeouts = EngineTimeouts(),  # noqa: B008 - frozen
    ) -> Engine:
        """Register an engine that cannot be found by itself, and say how it is now; it need not run yet.

        `credential` is FLM's bearer token for it, stored 0600 and never shown again. `ca` is the content of a PEM file:
        an https engine is then verified by the certificates in it alone, else by the system's. Raises USAGE for an
        argument that is not valid, CONFIG_INVALID for an id that is taken or an address where FLM itself answers. Logs
        a warning if an engine that was found by itself had this id.
        """
        spoken = dialect(kind)
        engine = upstream(engine_id, kind, url, timeouts, ca, int(self._now()))
        check_credential(credential)
        if await _is_flm(engine):
            raise CommandError(
                CommandCode.CONFIG_INVALID,
                f"FLM itself answers at {engine.url}, and must not be its own engine: give the engine's own address",
            )
        former = await self._found_as(engine)
        await self._store(engine, credential)
        state = await self._state(engine, spoken, credential)
        await put_in_force(self._folder)
        if former is not None:
            log.warning(
                "%s was the id of the engine found at %s, which goes by another one now: `flm engines list` shows it",
                engine_id,
                former.url,
            )
        return _shown(_seen(Detected(engine_id, kind, engine.url, "registered", state)))

    async def remove(self, engine_id: str) -> str:
        """Unregister an engine and forget its credential; its id. The demo engine that FLM started is ended too.

        Raises ENGINE_NOT_FOUND, and IO_ERROR if the demo engine will not go.
        """
        async with await open_config(self._folder) as config, await open_security(self._folder) as security:
            async with config.transaction() as transaction:
                urls = [each.url for each in await rows.registered(transaction) if each.id == engine_id]
                found = await rows.unregister(transaction, engine_id)
                await rows.replace_seen(transaction, [])
            async with security.transaction() as transaction:
                await rows.remove_credential(transaction, engine_id)
        if not found:
            raise CommandError(
                CommandCode.ENGINE_NOT_FOUND,
                f"no engine {engine_id!r:.80} is registered; `flm engines list` shows those whose source "
                "is `registered` (one that is `detected` goes away when it ends)",
            )
        await put_in_force(self._folder)
        for url in urls:
            await demo_process.end_at(self._folder, url)
        return engine_id

    async def _see(self, *, fresh: bool) -> Sequence[SeenEngine]:
        async with await open_config(self._folder) as config:
            settings = resolve(await setting_rows.all_settings(config), self._environment).settings
            now = self._now()
            current = await rows.seen(config, now - settings.engine_cache_ttl_seconds, now)
            if current and not fresh and len(current) == len(await rows.seen(config, -math.inf)):
                return current  # all of it: a part would look as if the others were gone
            seen = await self._look(config, settings)
            async with config.transaction() as transaction:
                await rows.replace_seen(transaction, seen)
            return seen

    async def _lists(self, engines: Sequence[SeenEngine], *, strict: bool) -> dict[str, tuple[EngineModel, ...]]:
        """The models of those that serve, by engine id. Raises ENGINE_API_ERROR for a list that fails, if `strict`."""
        async with await open_config(self._folder) as config, await open_security(self._folder) as security:
            credentials = await rows.credentials(security)
            authorities = {each.id: each.ca for each in await rows.registered(config)}
        serving = [each for each in engines if each.status in SERVING]
        lists = await asyncio.gather(
            *(_models(each, credentials.get(each.id), authorities.get(each.id), strict=strict) for each in serving)
        )
        return {each.id: models for each, models in zip(serving, lists, strict=True)}

    async def _look(self, config: Database, settings: Settings) -> Sequence[SeenEngine]:
        async with await open_security(self._folder) as security:
            credentials = await rows.credentials(security)
        found = await detect_engines(
            list(DIALECTS.values()),
            self._environment,
            sys.platform,
            str(Path.home()),
            registered=[
                Registered(each.id, each.kind, each.url, credentials.get(each.id), each.ca)
                for each in await rows.registered(config)
            ],
            discover=settings.engine_discover,
            thresholds=_thresholds(settings),
            now=self._now,
        )
        return [_seen(each) for each in found]

    async def _found_as(self, engine: Upstream) -> SeenEngine | None:
        """The engine that was found by itself and has this id, at another place than this one."""
        if not engine.id.startswith(KINDS):  # found ones are called by their kind
            return None
        for each in await self._see(fresh=False):
            if (each.id, each.source) == (engine.id, "detected") and place_of(each.url) != place_of(engine.url):
                return each
        return None

    async def _store(self, upstream: Upstream, credential: str | None) -> None:
        async with (
            await open_config(self._folder) as config,
            await open_security(self._folder) as security,
            config.transaction() as transaction,
        ):
            if any(each.id == upstream.id for each in await rows.registered(transaction)):
                raise CommandError(
                    CommandCode.CONFIG_INVALID,
                    f"an engine {upstream.id!r} is registered already; remove it first, or choose another id",
                )
            async with security.transaction() as secrets:  # first: an engine must not exist without its credential
                await rows.remove_credential(secrets, upstream.id)
                if credential is not None:
                    await rows.put_credential(secrets, upstream.id, credential)
            await rows.register(transaction, upstream)
            await rows.replace_seen(transaction, [])  # what was seen before is not all there is any more

    async def _state(self, upstream: Upstream, spoken: Dialect, credential: str | None) -> State:
        async with await open_config(self._folder) as config:
            settings = resolve(await setting_rows.all_settings(config), self._environment).settings
        observation = await identify(upstream.url, spoken, credential=credential, ca=upstream.ca)
        if observation.verdict is Verdict.FOREIGN:
            kind = await _kind_there(upstream, spoken, credential, self._environment)
            if kind is not None:
                detail = f"{observation.detail}; it looks like kind {kind}: remove it, and add it with --kind {kind}"
                observation = msgspec.structs.replace(observation, detail=detail)
        return advance(None, observation, _thresholds(settings), self._now())


async def _kind_there(
    engine: Upstream, spoken: Dialect, credential: str | None, environment: Mapping[str, str]
) -> str | None:
    """The kind of what answers there and does not speak as was said; rather one that is looked for by itself."""
    others = [each for each in DIALECTS.values() if each.kind != spoken.kind]
    others.sort(key=lambda each: not each.addresses(environment, {}))
    seen = await asyncio.gather(*(identify(engine.url, each, credential=credential, ca=engine.ca) for each in others))
    return next((each.kind for each, one in zip(others, seen, strict=True) if one.verdict is Verdict.RECOGNISED), None)


async def _is_flm(engine: Upstream) -> bool:
    """Whether FLM answers there: by its own mark, which every answer of FLM carries. Sends no credential."""
    timeouts = Timeouts(SELF_PROBE_SECONDS, SELF_PROBE_SECONDS, SELF_PROBE_SECONDS, SELF_PROBE_SECONDS)
    pool = Pool(engine.url, credential=None, ca=engine.ca, idle_seconds=1.0, timeouts=timeouts, max_in_flight=0)
    try:
        response = await pool.send(UpstreamRequest("/health", b"", "GET", ()))
        response.abort()
    except RequestError:
        return False
    finally:
        await pool.close(running=True)
    return response.headers.get(b"server", b"").strip().lower() == b"flm"


async def _models(
    engine: SeenEngine, credential: str | None, ca: str | None, *, strict: bool
) -> tuple[EngineModel, ...]:
    if engine.models:
        return engine.models
    try:
        return await list_models(engine.url, DIALECTS[engine.kind], credential=credential, ca=ca)
    except ListingError as error:
        if strict:
            raise CommandError(CommandCode.ENGINE_API_ERROR, f"{engine.id} gave no model list: {error}") from None
        log.warning("%s gave no model list: %s", engine.id, error)
        return ()


def _wanted(name: str, seen: Sequence[SeenEngine]) -> Sequence[SeenEngine]:
    wanted = [each for each in seen if each.id == name] or [each for each in seen if each.kind == name]
    if not wanted and name not in DIALECTS:
        known = ", ".join(each.id for each in seen) or "none at the moment"
        raise CommandError(CommandCode.ENGINE_NOT_FOUND, f"there is no engine {name!r:.80}; engines: {known}")
    if wanted and not any(each.status in SERVING for each in wanted):
        first = wanted[0]
        raise CommandError(
            CommandCode.ENGINE_NETWORK_ERROR,
            f"{first.id} does not serve ({first.status}): {first.last_error or 'it has not answered'}; start it, then "
            "`flm engines detect --fresh`",
        )
    return wanted


def _thresholds(settings: Settings) -> Thresholds:
    return Thresholds(
        settings.engine_failure_threshold, settings.engine_recovery_threshold, settings.engine_degraded_latency_ms
    )


def _seen(found: Detected) -> SeenEngine:
    state = found.state
    return SeenEngine(
        id=found.id,
        kind=found.kind,
        url=found.url,
        status=state.status,
        source=found.source,
        version=state.version,
        latency_ms=state.latency_ms,
        last_error=state.last_error,
        models=(),
        checked_at=state.checked_at,
    )


def _shown(engine: SeenEngine) -> Engine:
    return Engine(
        id=engine.id,
        kind=engine.kind,
        url=engine.url,
        status=engine.status,
        version=engine.version,
        latency_ms=None if engine.latency_ms is None else round(engine.latency_ms, 1),
        checked_at=rfc3339(engine.checked_at),
        source=engine.source,
        last_error=engine.last_error,
    )


def _model(engine: SeenEngine, model: EngineModel) -> Model:
    return Model(
        id=f"flm://{engine.id}/{model.name}",
        engine_id=engine.id,
        name=model.name,
        context_length=model.context_length,
        trained_context_length=model.trained_context_length,
        loaded=model.loaded,
        capabilities=model.capabilities,
    )

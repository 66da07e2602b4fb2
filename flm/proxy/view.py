"""What requests see of the world at one epoch: settings, routes, the model list, and a pool for each engine.

Built when the epoch in shared memory has moved, by the first request that notices; requests that are running keep
the view they began with. Pools outlive a view as long as their engine stays what it was, so that warm connections
survive a change elsewhere.

Does not know who publishes snapshots, nor how bytes travel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from flm.engines import registry
from flm.engines.base import Dialect
from flm.errors import ErrorKind, Header, RequestError
from flm.policy.closing import parse_openings
from flm.policy.restrictions import Restriction
from flm.policy.routing import Route, RouteIndex, model_id
from flm.proxy.gate import Gate
from flm.snapshot import SERVING, Engine, Model, Snapshot
from flm.upstream.pool import Pool, Timeouts
from flm.wire.http1 import parse_address

PoolKey = tuple[str, str, str | None, str | None, Timeouts, int, float, float]
OpenPool = Callable[[Engine, "Dialect", Timeouts, int], Pool]
EngineFailed = Callable[[str, str], None]

_encoder = msgspec.json.Encoder()


class Listed(msgspec.Struct):
    """One entry of GET /v1/models: OpenAI's fields, and FLM's under the names of `flm models list`."""

    id: str
    object: str
    created: int
    owned_by: str
    engine_id: str
    name: str
    context_length: int | None
    trained_context_length: int | None
    loaded: bool | None
    capabilities: tuple[str, ...]


class _List(msgspec.Struct):
    object: str
    data: list[Listed]


def open_pool(
    engine: Engine, dialect: Dialect, timeouts: Timeouts, max_in_flight: int, engine_failed: EngineFailed
) -> Pool:
    """`engine_failed` is told the id of an engine that failed a request by its own fault, and what happened."""

    def report(error: RequestError) -> None:
        engine_failed(engine.id, error.message)

    return Pool(
        engine.url,
        credential=engine.credential,
        ca=engine.ca,
        idle_seconds=dialect.idle_seconds,
        timeouts=timeouts,
        max_in_flight=max_in_flight,
        drain_seconds=dialect.drain_seconds(engine.version),
        on_failure=report,
    )


class Target:
    """One engine, ready to be asked: its record, its dialect, its pool."""

    __slots__ = ("dialect", "engine", "pool")

    def __init__(self, engine: Engine, dialect: Dialect, pool: Pool) -> None:
        self.engine = engine
        self.dialect = dialect
        self.pool = pool


class View:
    """One epoch's world. `pools` are those of the view before, by key, and `gate` its gate: what is still as it was is
    taken over. `names`: hosts the listener's certificate is for."""

    def __init__(
        self,
        epoch: int,
        snapshot: Snapshot,
        pools: dict[PoolKey, Pool],
        opener: OpenPool,
        gate: Gate | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        settings = snapshot.settings
        self.epoch: Final = epoch
        self.settings: Final = settings
        same = gate is not None and gate.policy == snapshot.policy and gate.bind == settings.proxy_bind
        self.gate: Final = gate if gate is not None and same else Gate(snapshot.policy, settings.proxy_bind, names)
        self.routes: Final[RouteIndex[Engine]] = RouteIndex(
            snapshot.engines, snapshot.aliases, serving=SERVING, plain_names=settings.routing_plain_names
        )
        self.openings: Final = parse_openings(settings.passthrough_open_routes)
        self.restrictions: Final = snapshot.restrictions
        self._engines: Final = snapshot.engines
        listed = [entry for each in snapshot.engines for entry in _entries(each)]
        self._listed: Final = listed + _alias_entries(self.routes, listed)
        self._models: Final = _encoder.encode(_List("list", self._listed))
        self.pools: Final[dict[PoolKey, Pool]] = {}
        self._targets: dict[str, Target] = {}
        for engine in snapshot.engines:
            self._add(engine, pools, opener)

    def _add(self, engine: Engine, pools: dict[PoolKey, Pool], opener: OpenPool) -> None:
        dialect = registry.DIALECTS.get(engine.kind)
        if dialect is None:  # a kind of a newer FLM: the others go on
            return
        timeouts = self._timeouts(engine)
        limit = self.settings.engine_max_in_flight
        drain = dialect.drain_seconds(engine.version)
        key = (engine.id, engine.url, engine.credential, engine.ca, timeouts, limit, dialect.idle_seconds, drain)
        try:
            pool = pools.get(key) or self.pools.get(key) or opener(engine, dialect, timeouts, limit)
        except ValueError:  # of a row that another program spoiled: the others go on
            return
        self.pools[key] = pool
        self._targets[engine.id] = Target(engine, dialect, pool)

    def _timeouts(self, engine: Engine) -> Timeouts:
        settings = self.settings
        return Timeouts(
            _chosen(engine.connect_timeout, settings.engine_connect_timeout_seconds),
            _chosen(engine.first_byte_timeout, settings.engine_first_byte_timeout_seconds),
            _chosen(engine.between_bytes_timeout, settings.engine_between_bytes_timeout_seconds),
            _chosen(engine.total_timeout, settings.engine_total_timeout_seconds),
        )

    def target(self, route: Route[Engine]) -> Target:
        """Raises RequestError NOT_IMPLEMENTED for an engine of a kind this FLM does not know, ENGINE_UNAVAILABLE for
        one whose address or credential cannot be used."""
        return self._target(route.engine)

    def engine(self, engine_id: str) -> Target:
        """The engine of this id. Raises like RouteIndex.engine and `target`."""
        return self._target(self.routes.engine(engine_id))

    def _target(self, engine: Engine) -> Target:
        target = self._targets.get(engine.id)
        if target is None and engine.kind in registry.DIALECTS:
            message = f"what is stored of engine {engine.id!r} cannot be used: remove it, and add it again"
            raise RequestError(ErrorKind.ENGINE_UNAVAILABLE, message)
        if target is None:
            message = f"engine {engine.id!r} is of kind {engine.kind!r}, which this FLM cannot speak to"
            raise RequestError(ErrorKind.NOT_IMPLEMENTED, message)
        return target

    def introduction(self, address: str) -> tuple[Header, ...]:
        """What an engine is told of the client, whose address FLM has decided on: nothing unless it was set."""
        if not self.settings.engine_forward_client_address:
            return ()
        return ((b"x-forwarded-for", address.encode()),)

    def by_ids(self, text: str, engine_id: str | None) -> str:
        """`text` for an API client, who has no business with where engines are: each is called by its id there, not by
        its address. `engine_id`: the one that was asked, whose name is meant where several are at one address."""
        named = {}
        for engine in sorted(self._engines, key=lambda engine: engine.id == engine_id):
            named.update(dict.fromkeys(_addresses(engine), engine.id))
        for address in sorted(named, key=len, reverse=True):
            if address in text:
                whole = rf"(?<![\w.-])(?:the engine at )?{re.escape(address)}(?![\w-]|\.\w|:\d)"
                text = re.sub(whole, f"engine '{named[address]}'", text)
        return text

    def models(self, restriction: Restriction | None) -> bytes:
        """The list of all models that a key with this restriction may use."""
        if restriction is None:
            return self._models
        allowed = [entry for entry in self._listed if _allows(restriction, entry)]
        return _encoder.encode(_List("list", allowed))

    def model(self, name: str, restriction: Restriction | None) -> bytes:
        """The list entry of one model, under its full id, or under its alias. Raises like RouteIndex.resolve."""
        route = self.routes.resolve(name, restriction)
        entry = next(entry for entry in _entries(route.engine) if entry.name == route.model.name)
        if name in self.routes.aliases:
            entry.id = name
        return _encoder.encode(entry)


def _allows(restriction: Restriction, entry: Listed) -> bool:
    full_id = model_id(entry.engine_id, entry.name)  # its `id` may be an alias
    return restriction.allows_engine(entry.engine_id) and restriction.allows_model(full_id, entry.name)


def _addresses(engine: Engine) -> Iterable[str]:
    """How messages name where an engine is (see `upstream`)."""
    try:
        address = parse_address(engine.url)
    except ValueError:  # of a kind of a newer FLM: there is no pool that has looked at it
        return (engine.url,)
    return engine.url, address.origin, address.authority


def _chosen(own: float | None, general: float) -> float:
    return general if own is None else own


def _entries(engine: Engine) -> list[Listed]:
    if engine.status not in SERVING:
        return []
    return [_entry(engine, model) for model in engine.models]


def _alias_entries(routes: RouteIndex[Engine], listed: list[Listed]) -> list[Listed]:
    """An entry for each alias that leads somewhere: clients that let people choose offer only what is listed."""
    by_id = {entry.id: entry for entry in listed}
    found = []
    for alias in sorted(routes.aliases):
        try:
            route = routes.resolve(alias)
        except RequestError:
            continue
        found.append(msgspec.structs.replace(by_id[model_id(route.engine.id, route.model.name)], id=alias))
    return found


def _entry(engine: Engine, model: Model) -> Listed:
    return Listed(
        id=model_id(engine.id, model.name),
        object="model",
        created=model.created,
        owned_by=engine.id,
        engine_id=engine.id,
        name=model.name,
        context_length=model.context_length,
        trained_context_length=model.trained_context_length,
        loaded=model.loaded,
        capabilities=model.capabilities,
    )

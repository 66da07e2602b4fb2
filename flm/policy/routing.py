"""To which engine a model name leads: `flm://{engine}/{model}`, an alias, or a plain name that one engine has.

The index is built once per snapshot, so that a request costs a few dictionary look-ups. It is generic over the engine
records it is handed; all it asks of them are the few attributes of the protocols below.

Does not know how an engine is reached or spoken to, nor who asks, but for what the caller's key is restricted to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

from flm.errors import ErrorKind, RequestError, shown
from flm.policy.restrictions import Restriction, denied, matches

SCHEME: Final = "flm://"
_SHOWN_CANDIDATES: Final = 8  # ids listed in an error; more would only be noise


class ModelFacts(Protocol):
    """One model under its engine's own name."""

    @property
    def name(self) -> str: ...
    @property
    def other_names(self) -> tuple[str, ...]: ...
    @property
    def any_case(self) -> bool: ...
    @property
    def capabilities(self) -> tuple[str, ...]: ...


class EngineFacts(Protocol):
    """One engine with the state it is in, why it is in it, and the models it is known to have."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def models(self) -> Sequence[ModelFacts]: ...


E = TypeVar("E", bound=EngineFacts)


def model_id(engine_id: str, model: str) -> str:
    """The id under which the model of an engine is listed and can be asked for."""
    return f"{SCHEME}{engine_id}/{model}"


def split_model_id(name: str) -> tuple[str, str]:
    """(engine id, model) of a name that begins with `flm://`. Raises RequestError INVALID_MODEL if it is malformed."""
    engine_id, slash, model = name[len(SCHEME) :].partition("/")
    if not (engine_id and slash and model) or not name.isprintable() or " " in engine_id:
        message = "a model id has the form `flm://{engine}/{model}`; GET /v1/models lists them"
        raise RequestError(ErrorKind.INVALID_MODEL, message, param="model")
    return engine_id, model


class Route(Generic[E]):
    """Where one request goes: the engine and its model."""

    __slots__ = ("engine", "model")

    def __init__(self, engine: E, model: ModelFacts) -> None:
        self.engine = engine
        self.model = model


class RouteIndex(Generic[E]):
    """All names that lead somewhere, at one moment.

    `serving` are the statuses in which an engine takes requests; `aliases` maps a name to a model id or a plain name
    (never to another alias); `plain_names` says whether a plain name is accepted at all.
    """

    def __init__(
        self,
        engines: Iterable[E],
        aliases: Mapping[str, str],
        *,
        serving: Collection[str],
        plain_names: bool,
    ) -> None:
        self._engines = {engine.id: engine for engine in engines}
        self._aliases = aliases
        self._serving = serving
        self._plain_names = plain_names
        self._by_id: dict[str, dict[str, Route[E]]] = {}
        self._by_name: dict[str, list[Route[E]]] = {}
        self._by_other_name: dict[str, list[Route[E]]] = {}
        # For names whose engine does not care about case: by the name in lower case.
        self._by_lower_id: dict[str, dict[str, Route[E]]] = {}
        self._by_lower_name: dict[str, list[Route[E]]] = {}
        for engine_id, engine in self._engines.items():
            routes = {model.name: Route(engine, model) for model in engine.models}
            others = {name: route for route in routes.values() for name in route.model.other_names}
            self._by_id[engine_id] = {**others, **routes}
            for name, route in routes.items():
                self._by_name.setdefault(name, []).append(route)
            for name, route in others.items():
                self._by_other_name.setdefault(name, []).append(route)
            lower = {name.lower(): route for name, route in self._by_id[engine_id].items() if route.model.any_case}
            self._by_lower_id[engine_id] = lower
            for name, route in lower.items():
                self._by_lower_name.setdefault(name, []).append(route)

    @property
    def aliases(self) -> Collection[str]:
        """The names that stand for another, whether they lead somewhere or not."""
        return self._aliases.keys()

    def resolve(self, name: str, restriction: Restriction | None = None) -> Route[E]:
        """The route of a model name as a caller wrote it, who may only use what `restriction` allows.

        Raises RequestError: INVALID_MODEL for a malformed id or a plain name of several engines, ENGINE_NOT_FOUND,
        MODEL_NOT_FOUND, ENGINE_UNAVAILABLE for an engine that is known and down. With a restriction all that leads to
        nothing it allows is one and the same PERMISSION_DENIED, whether there is such a thing or not.
        """
        target = self._aliases.get(name)
        if restriction is not None and not self._leads_to_allowed(name if target is None else target, restriction):
            raise denied(f"model {shown(name)}, or there is none", param="model")
        if target is None:
            return self._resolve(name, restriction)
        try:
            return self._resolve(target, restriction)
        except RequestError as error:  # it speaks of a name that the caller never wrote
            error.message = f"the alias {shown(name)} stands for {shown(target)}: {error.message}"
            raise

    def _resolve(self, target: str, restriction: Restriction | None) -> Route[E]:
        if target.startswith(SCHEME):
            return self._resolve_id(target)
        return self._resolve_plain(target, restriction)

    def engine(self, engine_id: str, *, param: str | None = None) -> E:
        """The engine of this id, which answers. Raises RequestError ENGINE_NOT_FOUND, ENGINE_UNAVAILABLE."""
        engine = self._engines.get(engine_id)
        if engine is None:
            message = f"there is no engine {shown(engine_id)}; known engines: {_some(list(self._engines))}"
            raise RequestError(ErrorKind.ENGINE_NOT_FOUND, message, param=param)
        if engine.status not in self._serving:
            raise _unavailable(engine)
        return engine

    def _resolve_id(self, name: str) -> Route[E]:
        engine_id, model = split_model_id(name)
        self.engine(engine_id, param="model")  # refuses one that is unknown or down
        route = self._of_engine(engine_id, model)
        if route is None:
            message = f"engine {engine_id!r} has no model {shown(model)}; GET /v1/models lists what there is"
            raise RequestError(ErrorKind.MODEL_NOT_FOUND, message, param="model")
        return route

    def _of_engine(self, engine_id: str, model: str) -> Route[E] | None:
        if engine_id not in self._engines:
            return None
        return self._by_id[engine_id].get(model) or self._by_lower_id[engine_id].get(model.lower())

    def _leads_to_allowed(self, target: str, restriction: Restriction) -> bool:
        """Whether there is a model of this name that the restriction allows, be its engine up or down.

        The list of an engine that is down may be out of date: there it may be one, if the restriction names the engine.
        """
        if not target.startswith(SCHEME):
            return bool(self._named(target, restriction))
        engine_id, model = split_model_id(target)
        route = self._of_engine(engine_id, model)
        if route is not None:
            return allows(restriction, route)
        engine = self._engines.get(engine_id)
        return engine is not None and engine.status not in self._serving and _named_in(restriction, engine_id, model)

    def _named(self, name: str, restriction: Restriction | None) -> list[Route[E]]:
        """The routes of a plain name: those of models really called so, else those that are called so too.

        What a restriction forbids is passed over as if it were not there.
        """
        if not self._plain_names:
            return []
        for index, key in ((self._by_name, name), (self._by_other_name, name), (self._by_lower_name, name.lower())):
            found = [route for route in index.get(key, ()) if restriction is None or allows(restriction, route)]
            if found:
                return found
        return []

    def _resolve_plain(self, name: str, restriction: Restriction | None) -> Route[E]:
        known = self._named(name, restriction)
        serving = [route for route in known if route.engine.status in self._serving]
        if len(serving) == 1:
            return serving[0]
        if serving:
            ids = _some([model_id(route.engine.id, route.model.name) for route in serving])
            message = f"several engines have a model {shown(name)}; name one of them by its id: {ids}"
            raise RequestError(ErrorKind.INVALID_MODEL, message, param="model")
        if known:
            raise _unavailable(known[0].engine)
        hint = "" if self._plain_names else " (plain names are off: use `flm://{engine}/{model}`)"
        message = f"there is no model {shown(name)}{hint}; GET /v1/models lists what there is"
        raise RequestError(ErrorKind.MODEL_NOT_FOUND, message, param="model")


def allows(restriction: Restriction, route: Route[E]) -> bool:
    """Whether a key with this restriction may use the model of `route`."""
    engine_id, name = route.engine.id, route.model.name
    return restriction.allows_engine(engine_id) and restriction.allows_model(model_id(engine_id, name), name)


def _named_in(restriction: Restriction, engine_id: str, model: str) -> bool:
    """Whether the restriction itself names the engine, so that nothing is told by naming it, and allows the model."""
    full_id = model_id(engine_id, model)
    if restriction.engines:
        return restriction.allows_engine(engine_id) and restriction.allows_model(full_id, model)
    return any(each.startswith(model_id(engine_id, "")) and matches(each, full_id) for each in restriction.models)


def _some(ids: Sequence[str]) -> str:
    """The first of `ids`, and how many more there are."""
    more = len(ids) - _SHOWN_CANDIDATES
    return (", ".join(ids[:_SHOWN_CANDIDATES]) or "none") + (f" and {more} more" if more > 0 else "")


def _unavailable(engine: EngineFacts) -> RequestError:
    reason = f": {engine.last_error}" if engine.last_error else ""
    message = f"engine {engine.id!r} is not answering ({engine.status}){reason}"
    return RequestError(ErrorKind.ENGINE_UNAVAILABLE, message, headers=((b"retry-after", b"5"),))

"""`ModelService`: the operator's own names for models.

An alias stands for a model id or a plain name, never for another alias, so that one look-up says where a name leads.
It may be set before its model is there; then the caller is warned.

Knows the store and what engines there are; does not know how a request is routed beyond asking `policy/routing`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

import msgspec
import msgspec.structs

from flm.config import resolve
from flm.errors import CommandCode, CommandError, RequestError
from flm.policy.routing import SCHEME, RouteIndex, model_id, split_model_id
from flm.services.engines import EngineService, Model
from flm.services.grants import refuse_key
from flm.services.notice import put_in_force
from flm.snapshot import SERVING, Engine
from flm.store import engines as rows
from flm.store import settings as setting_rows
from flm.store.database import open_config
from flm.store.folder import Folder

MAX_NAME: Final = 256  # characters of an alias or a target: beyond every model name there is, and it stays in a URL

log = logging.getLogger("flm.models")


class Alias(msgspec.Struct, frozen=True):
    """One alias and the model id or plain name it stands for."""

    alias: str
    target: str


class ModelService:
    """The aliases of one data folder. `environment` is where `FLM_…` variables and engines' own are looked up."""

    def __init__(self, folder: Folder, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment

    async def models(self, engine: str | None = None) -> tuple[Model, ...]:
        """As `EngineService.models`, and after them an entry for each alias that leads to one of them.

        An entry of an alias has the alias as its `id`, all else being its model's.
        """
        engines = EngineService(self._folder, self._environment)
        found = await engines.models(engine)
        aliases = {each.alias: each.target for each in await self.aliases()}
        if not aliases:
            return found
        routes = await self._routes(aliases)
        by_id = {model.id: model for model in found}
        named = []
        for alias in aliases:
            try:
                route = routes.resolve(alias)
            except RequestError:
                continue
            model = by_id.get(model_id(route.engine.id, route.model.name))
            if model is not None:
                named.append(msgspec.structs.replace(model, id=alias))
        return (*found, *named)

    async def aliases(self) -> tuple[Alias, ...]:
        """All aliases, by name."""
        async with await open_config(self._folder) as config:
            found = await rows.aliases(config)
        return tuple(Alias(alias, target) for alias, target in found.items())

    async def set_alias(self, alias: str, target: str) -> Alias:
        """Let `alias` stand for `target`, from a running proxy's next request on.

        Raises USAGE for a name that is not valid, CONFIG_INVALID where an alias would stand for an alias. Logs a
        warning if no model is there for it now.
        """
        _check_alias(alias)
        _check_target(target)
        async with await open_config(self._folder) as config, config.transaction() as transaction:
            _check_chain(alias, target, await rows.aliases(transaction))
            await rows.put_alias(transaction, alias, target)
        await put_in_force(self._folder)
        await self._warn(alias, target)
        return Alias(alias, target)

    async def remove_alias(self, alias: str) -> str:
        """Forget an alias; its name. Raises CONFIG_NOT_SET if there is none."""
        async with await open_config(self._folder) as config, config.transaction() as transaction:
            removed = alias.isprintable() and await rows.remove_alias(transaction, alias)
        if not removed:
            raise CommandError(
                CommandCode.CONFIG_NOT_SET,
                f"there is no alias {alias!r:.80}; `flm models alias list` shows what there is",
            )
        await put_in_force(self._folder)
        return alias

    async def _routes(self, aliases: Mapping[str, str]) -> RouteIndex[Engine]:
        """The names that lead somewhere at the moment."""
        async with await open_config(self._folder) as config:
            settings = resolve(await setting_rows.all_settings(config), self._environment).settings
        engines = await EngineService(self._folder, self._environment).serving()
        return RouteIndex(engines, aliases, serving=SERVING, plain_names=settings.routing_plain_names)

    async def _warn(self, alias: str, target: str) -> None:
        """Say so if the alias leads nowhere at the moment."""
        routes = await self._routes({})
        try:
            routes.resolve(target)
        except RequestError as error:
            log.warning(
                "%s is set and leads nowhere now: %s (`flm models list` shows the ids)",
                alias,
                error.message.partition("; GET /v1/models")[0],
            )


def _check_alias(alias: str) -> None:
    if alias.lower().startswith(SCHEME):
        message = f"an alias must not look like a model id (`{SCHEME}…`), which always means what it says"
        raise CommandError(CommandCode.USAGE, message)
    _check_text("an alias", alias)
    refuse_key(alias, "the alias")


def _check_target(target: str) -> None:
    _check_text("a target", target)
    refuse_key(target, "the target")
    if target.startswith(SCHEME):
        try:
            split_model_id(target)
        except RequestError:
            raise CommandError(
                CommandCode.USAGE,
                f"a model id has the form `{SCHEME}engine/model`, not {target!r:.80}; `flm models list` shows them",
            ) from None


def _check_text(what: str, text: str) -> None:
    if not text or len(text) > MAX_NAME or not text.isprintable() or text != text.strip():
        raise CommandError(
            CommandCode.USAGE,
            f"{what} has 1 to {MAX_NAME} printable characters and no blank at its ends, not {text!r:.80}",
        )


def _check_chain(alias: str, target: str, known: Mapping[str, str]) -> None:
    if target == alias:
        raise CommandError(CommandCode.CONFIG_INVALID, f"{alias!r:.80} cannot stand for itself")
    if target in known:
        raise CommandError(
            CommandCode.CONFIG_INVALID,
            f"{target!r:.80} is an alias itself, and an alias stands for a model: give what it stands for, "
            f"{known[target]!r:.80}",
        )
    behind = next((each for each, stands_for in known.items() if stands_for == alias), None)
    if behind is not None:
        raise CommandError(
            CommandCode.CONFIG_INVALID,
            f"{alias!r:.80} is the model that the alias {behind!r:.80} stands for, so it cannot be an alias too; "
            f"`flm models alias remove` forgets {behind!r:.80}",
        )

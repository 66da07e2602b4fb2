"""`ConfigService`: the settings of one data folder, as they hold for a proxy started now."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Final

import msgspec

from flm.config import ANY, SETTINGS, Effect, Value, parse, resolve, setting
from flm.errors import CommandCode, CommandError
from flm.policy.closing import parse_openings
from flm.services.notice import put_in_force
from flm.store import settings as rows
from flm.store.database import open_config
from flm.store.folder import Folder

_OPEN_ROUTES: Final = "passthrough.open_routes"
_STEPS: Final[Mapping[Effect, str]] = {
    "reload": "`flm proxy reload`",
    "restart": "`flm proxy restart`",
    "start": "`flm proxy stop` and `flm proxy start`",
}

log = logging.getLogger("flm.config")


class ConfigRow(msgspec.Struct, frozen=True):
    """One setting. `source` of its value: `default`, `config` (the database) or `environment`."""

    key: str
    value: Value
    default: Value
    source: str


class ConfigService:
    """Reads and changes settings. `environment` is where `FLM_…` variables are looked up."""

    def __init__(self, folder: Folder, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment

    async def list(self) -> tuple[ConfigRow, ...]:
        """All settings. Raises CONFIG_INVALID if a stored or environment value is none."""
        async with await open_config(self._folder) as database:
            return self._rows(await rows.all_settings(database))

    async def get(self, key: str) -> ConfigRow:
        """One setting. Raises CONFIG_INVALID for an unknown key."""
        setting(key)
        return next(row for row in await self.list() if row.key == key)

    async def set(self, key: str, value: str) -> ConfigRow:
        """Store `value` (text, as a person writes it). Raises CONFIG_INVALID saying what is allowed.

        A running proxy takes what concerns requests over at once; where it does not (`Setting.effect`), the log says
        what to do. It warns too of an engine to be opened that is not there.
        """
        text = _as_stored(key, value)
        async with await open_config(self._folder) as database:
            async with database.transaction() as transaction:
                await rows.put(transaction, key, text)
            stored = await rows.all_settings(database)
        await self._put_in_force(key)
        if key == _OPEN_ROUTES:
            await self._warn_of_strangers(text)
        return self._row(key, stored)

    async def unset(self, key: str) -> ConfigRow:
        """Go back to the default. Raises CONFIG_NOT_SET if it was not set, CONFIG_INVALID for an unknown key."""
        setting(key)
        async with await open_config(self._folder) as database:
            async with database.transaction() as transaction:
                removed = await rows.remove(transaction, key)
            stored = await rows.all_settings(database)
        if not removed:
            raise CommandError(CommandCode.CONFIG_NOT_SET, f"{key} is not set; `flm config list` shows what is")
        await self._put_in_force(key)
        return self._row(key, stored)

    async def _put_in_force(self, key: str) -> None:
        step = _STEPS.get(SETTINGS[key].effect)
        if await put_in_force(self._folder) and step is not None:
            log.warning("%s is stored; the running proxy goes by it after %s", key, step)

    async def _warn_of_strangers(self, openings: str) -> None:
        """Say so if a route is opened on an engine that is not there."""
        from flm.services.engines import EngineService  # only here: it takes its time to load

        wanted = {opening.engine for opening in parse_openings(openings)} - {"*"}
        known = {engine.id for engine in await EngineService(self._folder, self._environment).list()} if wanted else ()
        for engine_id in sorted(wanted.difference(known)):
            log.warning(
                "%s names the engine %s, which is not there now (`flm engines list` shows the ids)",
                _OPEN_ROUTES,
                engine_id,
            )

    def _row(self, key: str, stored: Mapping[str, str]) -> ConfigRow:
        return next(row for row in self._rows(stored) if row.key == key)

    def _rows(self, stored: Mapping[str, str]) -> tuple[ConfigRow, ...]:
        resolved = resolve(stored, self._environment)
        return tuple(
            ConfigRow(key, getattr(resolved.settings, spec.attribute), spec.default, resolved.sources[key])
            for key, spec in SETTINGS.items()
        )


def _as_stored(key: str, text: str) -> str:
    value = parse(key, text)
    if key == "proxy.bind":
        _check_address(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return text.strip()


def _check_address(text: str) -> None:
    if text == ANY:
        return
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise CommandError(
            CommandCode.CONFIG_INVALID,
            "proxy.bind must be an IP address, such as 127.0.0.1 (this machine only) or 0.0.0.0 (all of IPv4), or `*` "
            f"(all of IPv4 and IPv6), not {text!r}",
        ) from None

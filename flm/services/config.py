"""`ConfigService`: the settings of one data folder, as they hold for a proxy started now, and where one that runs has
others from its start: options and variables win over what is stored for as long as it runs."""

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
from flm.services.notice import Override, put_in_force, running_proxy
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
    """One setting. `value` is what a proxy started now goes by, without options; `source` of it: `default`, `config`
    (the database) or `environment`. `running`: what a running proxy goes by instead, as it had it from its start."""

    key: str
    value: Value
    default: Value
    source: str
    running: Override | None = None


class ChangedRow(ConfigRow, frozen=True, kw_only=True):
    """A setting that was changed. `warnings`: why it does not hold at once, and what to do for it."""

    warnings: tuple[str, ...] = ()


class ConfigService:
    """Reads and changes settings. `environment` is where `FLM_…` variables are looked up."""

    def __init__(self, folder: Folder, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment

    async def list(self) -> tuple[ConfigRow, ...]:
        """All settings. Raises CONFIG_INVALID if a stored or environment value is none."""
        async with await open_config(self._folder) as database:
            stored = await rows.all_settings(database)
        return self._rows(stored, await self._overrides())

    async def get(self, key: str) -> ConfigRow:
        """One setting. Raises CONFIG_INVALID for an unknown key."""
        setting(key)
        return next(row for row in await self.list() if row.key == key)

    async def set(self, key: str, value: str) -> ChangedRow:
        """Store `value` (text, as a person writes it). Raises CONFIG_INVALID saying what is allowed.

        A running proxy takes what concerns requests over at once; where it does not (`Setting.effect`, or its start
        said otherwise), `warnings` and the log say what to do. So they do of an engine to be opened that is not there.
        """
        text = _as_stored(key, value)
        async with await open_config(self._folder) as database:
            async with database.transaction() as transaction:
                await rows.put(transaction, key, text)
            stored = await rows.all_settings(database)
        return await self._changed(key, stored, text if key == _OPEN_ROUTES else "")

    async def unset(self, key: str) -> ChangedRow:
        """Go back to the default, with `warnings` as of `set`. Raises CONFIG_NOT_SET if it was not set, CONFIG_INVALID
        for an unknown key."""
        setting(key)
        async with await open_config(self._folder) as database:
            async with database.transaction() as transaction:
                removed = await rows.remove(transaction, key)
            stored = await rows.all_settings(database)
        if not removed:
            raise CommandError(CommandCode.CONFIG_NOT_SET, f"{key} is not set; `flm config list` shows what is")
        return await self._changed(key, stored)

    async def _changed(self, key: str, stored: Mapping[str, str], openings: str = "") -> ChangedRow:
        """Put the change in force; the row of it, with what is to be said. `openings`: routes that it opens."""
        runs = await put_in_force(self._folder)
        row = self._row(key, stored, await self._overrides() if runs else {})
        told = (*_held_back(row, runs=runs), *(await self._strangers(openings) if openings else ()))
        for warning in told:
            log.warning("%s", warning)
        return ChangedRow(**msgspec.structs.asdict(row), warnings=told)

    async def _overrides(self) -> Mapping[str, Override]:
        found = await running_proxy(self._folder)
        return found.overrides if found is not None else {}

    async def _strangers(self, openings: str) -> tuple[str, ...]:
        """What to say if a route is opened on an engine that is not there."""
        from flm.services.engines import EngineService  # only here: it takes its time to load

        wanted = {opening.engine for opening in parse_openings(openings)} - {"*"}
        known = {engine.id for engine in await EngineService(self._folder, self._environment).list()} if wanted else ()
        return tuple(
            f"{_OPEN_ROUTES} names the engine {engine_id}, which is not there now (`flm engines list` shows the ids)"
            for engine_id in sorted(wanted.difference(known))
        )

    def _row(self, key: str, stored: Mapping[str, str], running: Mapping[str, Override]) -> ConfigRow:
        return next(row for row in self._rows(stored, running) if row.key == key)

    def _rows(self, stored: Mapping[str, str], running: Mapping[str, Override]) -> tuple[ConfigRow, ...]:
        resolved = resolve(stored, self._environment)
        return tuple(
            ConfigRow(
                key, getattr(resolved.settings, spec.attribute), spec.default, resolved.sources[key], running.get(key)
            )
            for key, spec in SETTINGS.items()
        )


def _held_back(row: ConfigRow, *, runs: bool) -> list[str]:
    """Why a change of `row` does not hold yet, and what to do for it."""
    told = []
    variable = SETTINGS[row.key].variable + (" or FLM_ACME_USE_PROD" if row.key == "acme.staging" else "")
    if row.source == "environment":
        told.append(
            f"{row.key} is stored, and {variable} in the environment here wins over it: a proxy that is started with "
            f"that goes by {row.value}; unset the variable first"
        )
    if row.running is not None:
        origin = "an option of its start, or a socket given to it," if row.running.source == "flag" else variable
        told.append(
            f"{row.key} is stored, and the running proxy keeps {row.running.value}: {origin} says so, which wins as "
            "long as it runs, over reload and restart too; `flm proxy stop`, then `flm proxy start` without it"
        )
    elif runs and (step := _STEPS.get(SETTINGS[row.key].effect)):
        told.append(f"{row.key} is stored; the running proxy goes by it after {step}")
    return told


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

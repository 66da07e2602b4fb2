"""Tells a running proxy that something was changed, and returns when the change is in force; asks it what
it serves, and which settings it has from its start, which no change reaches.

Knows the control socket; does not know what was changed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime.handle import Override as Override
from flm.store.folder import Folder

SECONDS: Final = 40.0  # a new engine is looked at and asked for its models first: 20 s at most, after a round under way

LOOK_SECONDS: Final = 5.0  # for what a proxy that is alive says from memory

log = logging.getLogger("flm.proxy")


class Served(msgspec.Struct):
    """Of the certificate: which it is, and what is wrong with it."""

    fingerprint: str | None = None
    last_error: str | None = None


class Running(msgspec.Struct):
    """As much of a running proxy's handle as other services look at; one of a former version may have less.
    `overrides`: the settings that it has from its start, whatever is stored."""

    overrides: dict[str, Override] = {}
    certificate: Served | None = None


async def running_proxy(folder: Folder) -> Running | None:
    """The proxy of this folder; None if none runs, or it does not answer, which is logged."""
    socket = folder.run / "control.sock"
    if not await asyncio.to_thread(socket.exists):
        return None
    from flm.runtime import control  # only here, as below

    try:
        said = await control.ask(socket, control.Request("status"), LOOK_SECONDS)
    except TimeoutError:
        log.warning(
            "the running proxy has not answered for %g s; what it serves, and goes by, is not known", LOOK_SECONDS
        )
        return None
    except CommandError:
        return None
    return msgspec.convert(said, Running)


async def put_in_force(folder: Folder) -> bool:
    """Make the databases' present state hold for the very next request. False if no proxy runs.

    Raises IO_ERROR if the proxy runs and could not take the change, which is stored all the same.
    """
    socket = folder.run / "control.sock"
    if not await asyncio.to_thread(socket.exists):
        return False
    from flm.runtime import control  # only here: most commands run without a proxy, and it takes its time to load

    try:
        await control.ask(socket, control.Request("refresh"), SECONDS)
    except TimeoutError:
        raise _not_yet(f"it has not answered for {SECONDS:g} s") from None
    except CommandError as error:
        if error.code is CommandCode.PROXY_NOT_RUNNING:
            return False
        raise _not_yet(error.message) from None
    return True


def _not_yet(why: str) -> CommandError:
    return CommandError(
        CommandCode.IO_ERROR,
        f"the change is stored, but the running proxy has not taken it over: {why}; `flm proxy status` says how it is",
    )

"""Tells a running proxy that something was changed, and returns when the change is in force.

Knows the control socket; does not know what was changed.
"""

from __future__ import annotations

import asyncio
from typing import Final

from flm.errors import CommandCode, CommandError
from flm.store.folder import Folder

SECONDS: Final = 40.0  # a new engine is looked at and asked for its models first: 20 s at most, after a round under way


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

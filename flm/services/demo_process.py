"""The demo engine's process of one data folder: started or found, and ended, with its failures as errors for people.

Does not know that it is registered as an engine: see `demo`.
"""

from __future__ import annotations

import asyncio

from flm.demo import process
from flm.demo.process import DemoEngine, DemoError
from flm.errors import CommandCode, CommandError
from flm.runtime import instance
from flm.store.folder import Folder


async def start(folder: Folder) -> DemoEngine:
    """Start it in the background, or find the one that runs. Raises IO_ERROR if it cannot be started."""
    try:
        return await asyncio.to_thread(process.start, folder.run, identify=_identity)
    except DemoError as error:
        raise CommandError(CommandCode.IO_ERROR, str(error)) from None


async def end(folder: Folder) -> bool:
    """End it. False if none was running. Raises IO_ERROR if it will not go."""
    try:
        return await asyncio.to_thread(process.stop, folder.run, _identity)
    except DemoError as error:
        raise CommandError(CommandCode.IO_ERROR, str(error)) from None


async def end_at(folder: Folder, url: str) -> None:
    """End it if it is the one at `url`. Raises IO_ERROR if it will not go."""
    running = await asyncio.to_thread(process.find, folder.run, _identity)
    if running is not None and running.url == url:
        await end(folder)


def _identity(pid: int) -> str | None:
    found = instance.identify(pid)
    return None if found is None else f"{pid} {found.start_time} {found.boot_id}"

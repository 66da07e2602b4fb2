"""`DemoService`: the built-in demo engine, for a machine where no real one runs: started, registered, and ended again.

Knows that it is an engine like any other once it runs: registered under the id `demo`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.services import demo_process
from flm.services.engines import Engine, EngineService
from flm.store.folder import Folder

DEMO_ID: Final = "demo"


class RunningDemo(msgspec.Struct, frozen=True):
    """The demo engine: its process, address and one model, and the registered engine it is."""

    pid: int
    url: str
    model: str
    engine: Engine


class DemoService:
    """The demo engine of one data folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._engines = EngineService(folder)

    async def start(self) -> RunningDemo:
        """Start it in the background, or find the one that runs; it is registered and serves when this returns.

        Raises IO_ERROR if it cannot be started.
        """
        for folder in (self._folder.root, self._folder.run):
            await asyncio.to_thread(secure_folder, folder)
        running = await demo_process.start(self._folder)
        engine = await self._registered(running.dialect, running.url)
        return RunningDemo(running.pid, running.url, f"flm://{DEMO_ID}/{running.model}", engine)

    async def stop(self) -> bool:
        """End it and unregister it. False if none was running. Raises IO_ERROR if it will not go."""
        ended = await demo_process.end(self._folder)
        await self._forget()
        return ended

    async def _registered(self, kind: str, url: str) -> Engine:
        for engine in await self._engines.detect_engines(kind, fresh=True):
            if (engine.id, engine.url) == (DEMO_ID, url):
                return engine
        await self._forget()  # an earlier one had another port
        return await self._engines.add(DEMO_ID, kind, url)

    async def _forget(self) -> None:
        try:
            await self._engines.remove(DEMO_ID)
        except CommandError as error:
            if error.code is not CommandCode.ENGINE_NOT_FOUND:
                raise

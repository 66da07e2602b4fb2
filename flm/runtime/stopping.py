"""The end of a supervisor, from the moment somebody asks for it: once, for good, and perhaps before it has begun.

Knows no worker and no signal: who may ask, and what is done then, is the supervisor's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from flm.errors import CommandCode, CommandError


class Stopping:
    """Whether, and within how many seconds, to stop. To be made on a running event loop."""

    def __init__(self) -> None:
        self._seconds: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()  # set when nothing is left

    @property
    def asked(self) -> bool:
        return self._seconds.done()

    def ask(self, seconds: float) -> None:
        """Stop; running requests may take `seconds` more. Only the first one who asks is heard."""
        if not self.asked:
            self._seconds.set_result(seconds)

    async def wait(self) -> float:
        """Seconds that running requests may take, when somebody has asked."""
        return await self._seconds

    def refuse(self) -> None:
        """Raises PROXY_NOT_RUNNING once somebody has asked: nothing new is begun."""
        if self.asked:
            raise CommandError(CommandCode.PROXY_NOT_RUNNING, "the proxy is stopping")

    async def unless(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, but not when a stop comes first: then let go of it, and return."""
        task = asyncio.ensure_future(work)
        waiting: list[asyncio.Future[Any]] = [task, self._seconds]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

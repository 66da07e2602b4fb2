"""Answers nobody waits for any more, read on to their end, because their engine breaks when it is cut.

Does not know which engines those are (a dialect says it, by version), nor why nobody waits. Strategy: one task for
each answer, owned here; every piece is thrown away as it comes. Bounded in time (`seconds`) and in number
(MAX_DRAINS): past either bound the connection is cut after all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flm.config import MAX_DRAINS
from flm.errors import RequestError
from flm.upstream.connection import Connection


class Drains:
    """The drains of one pool. `seconds`: how long one may take, 0 for none at all. `ended` is told each connection,
    and whether its answer was read to its end."""

    def __init__(self, seconds: float, ended: Callable[[Connection, bool], None]) -> None:
        self._seconds = seconds
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self, connection: Connection) -> bool:
        """Read the answer on, in the background. False: this connection is to be cut, and is still the caller's.

        An engine that does not have the whole request yet has not begun to work on it: cutting it breaks nothing.
        """
        if not self._seconds or self._closed or not connection.asked or not connection.usable:
            return False
        if len(self._tasks) >= MAX_DRAINS:
            return False
        task = asyncio.get_running_loop().create_task(self._read_on(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _read_on(self, connection: Connection) -> None:
        whole = False
        try:
            async with asyncio.timeout(self._seconds):
                await connection.answered()
                while await connection.read():
                    pass
            whole = True
        except (TimeoutError, RequestError):
            pass  # nobody asked: what the engine did is told by the next request that somebody does wait for
        finally:
            self._ended(connection, whole)

    async def close(self) -> None:
        """Cut all of them, and begin none from now on."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

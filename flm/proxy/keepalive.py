"""Comment lines while an engine is silent before the first byte of a stream, so that nobody in between gives up.

A cold model loads inside the request for minutes. The first comment commits the status 200: a failure after it can
only be an error event. A request whose engine answers in time costs one timer here, and no task.

Does not know why the engine is silent.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from flm.errors import Header
from flm.proxy.exchange import Exchange
from flm.proxy.respond import Responder

FIRST_COMMENT_SECONDS: Final = 5.0  # below the 10 s and more after which clients and balancers lose patience


class KeepAlive:
    """Sends a comment after FIRST_COMMENT_SECONDS and then every `interval` seconds, until stopped."""

    first_after: float = FIRST_COMMENT_SECONDS

    __slots__ = ("_exchange", "_headers", "_interval", "_responder", "_task", "_timer")

    def __init__(self, exchange: Exchange, responder: Responder, headers: tuple[Header, ...], interval: float) -> None:
        self._exchange = exchange
        self._responder = responder
        self._headers = headers
        self._interval = interval
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> KeepAlive:
        self._timer = self._exchange.loop.call_later(self.first_after, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _begin(self) -> None:
        self._task = self._exchange.loop.create_task(self._run())

    async def _run(self) -> None:
        await self._responder.begin_stream(self._headers)
        while True:
            await self._responder.comment()
            await asyncio.sleep(self._interval)

    async def stop(self) -> None:
        """No comment is sent after this returns. Raises what went wrong with one, if anything did."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

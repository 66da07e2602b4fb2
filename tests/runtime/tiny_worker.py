"""A worker with a tiny ASGI app, for tests of the process machinery alone: `python -m tests.runtime.tiny_worker`.

Routes: /health, /echo (pid and generation), /stream/N (N events 20 ms apart, then `[DONE]`; endless for 0), /drip/N
(the same with four a second), /hang (blocks the event loop for ever), /die (SIGKILL to itself).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from flm.errors import RequestError, error_event
from flm.runtime.listener import cut
from flm.runtime.worker import ServedApp, Services, begin

EVENT_SECONDS = 0.02
DRIP_SECONDS = 0.25


class TinyApp:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: set[asyncio.Event] = set()
        self._draining = False
        self._error: RequestError | None = None

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def drain(self) -> None:
        self._draining = True

    def abort_streams(self, error: RequestError) -> None:
        self._error = error
        for interrupted in self._running:
            interrupted.set()

    def end_revoked(self) -> None:
        """This app asks for no keys."""

    def cut_slow(self, client: tuple[str, str]) -> None:
        cut(client)

    async def aclose(self) -> None:
        pass

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        interrupted = asyncio.Event()
        self._running.add(interrupted)
        try:
            await self._serve(scope["raw_path"].decode(), receive, send, interrupted)
        finally:
            self._running.discard(interrupted)

    async def _serve(self, path: str, receive: Any, send: Any, interrupted: asyncio.Event) -> None:
        await receive()
        if path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        if path == "/hang":
            time.sleep(3600)  # the event loop hangs: that is the point
        for start, pause in (("/stream/", EVENT_SECONDS), ("/drip/", DRIP_SECONDS)):
            if path.startswith(start):
                await self._stream(int(path.removeprefix(start)), pause, receive, send, interrupted)
                return
        body = json.dumps({"pid": os.getpid(), "epoch": self._services.shared.epoch()}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": self._headers(b"application/json")})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, events: int, pause: float, receive: Any, send: Any, interrupted: asyncio.Event) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers(b"text/event-stream")})
        gone = asyncio.ensure_future(receive())
        sent = 0
        while not gone.done() and (not events or sent < events) and not interrupted.is_set():
            await send({"type": "http.response.body", "body": f"data: {sent}\n\n".encode(), "more_body": True})
            sent += 1
            await asyncio.wait([asyncio.ensure_future(interrupted.wait())], timeout=pause)
        gone.cancel()
        last = error_event(self._error, "tiny") if self._error else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last})

    def _headers(self, content_type: bytes) -> list[tuple[bytes, bytes]]:
        return [(b"content-type", content_type), *([(b"connection", b"close")] if self._draining else [])]


def create_app(services: Services) -> ServedApp:
    return TinyApp(services)


if __name__ == "__main__":
    begin(sys.argv[1:], create_app, lambda: None)

"""What the demo engine has seen and is doing: requests with their headers, open connections, who left and when.

A test asks over the same socket (`/demo/…`, see `admin`). Times are of CLOCK_MONOTONIC, which all processes of one
machine share, so that a test can subtract its own. Bounded: the newest MAX_RECORDS requests, MAX_BODY bytes of each.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping

import msgspec

from flm.demo.directives import Directives

MAX_RECORDS = 1000
MAX_BODY = 16 * 1024


class Record(msgspec.Struct):
    """One request. `outcome`: `running`, `finished`, `failed` (as told), `cancelled` (the client left first)."""

    serial: int
    connection: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: str
    body_bytes: int
    received_at: float
    status: int = 0
    outcome: str = "running"
    first_byte_at: float | None = None
    ended_at: float | None = None
    bytes_sent: int = 0


class Journal:
    """Events: `connection`, `request`, `first_byte`, `finished`, `failed`, `cancelled`, `held`, `closed`.

    Each is counted from the last `clear`, and can be awaited.
    """

    def __init__(self, keep: bool = True) -> None:
        """`keep` False: only counts; requests are not remembered, so that prompts stay with who sent them."""
        self._keep = keep
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.events: Counter[str] = Counter()
        self.faults: dict[str, Directives] = {}
        self.open_connections = 0
        self._released: dict[str, asyncio.Event] = {}
        self._waiting: set[tuple[str, int, asyncio.Future[None]]] = set()

    def clear(self) -> None:
        """Forget everything but the open connections: also faults and releases."""
        self.records.clear()
        self.events.clear()
        self.faults.clear()
        self._released.clear()

    def note(self, event: str) -> None:
        self.events[event] += 1
        for waiting in list(self._waiting):
            name, count, future = waiting
            if self.events[name] >= count and not future.done():
                future.set_result(None)

    def received(
        self,
        serial: int,
        connection: int,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> Record:
        if not self._keep:
            self.events["request"] += 1
            return Record(serial, connection, method, path, [], "", len(body), time.monotonic())
        text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        shown = body[:MAX_BODY].decode("utf-8", "replace")
        record = Record(serial, connection, method, path, text, shown, len(body), time.monotonic())
        self.records.append(record)
        self.note("request")
        return record

    def started(self, record: Record) -> None:
        record.first_byte_at = time.monotonic()
        self.note("first_byte")

    def finished(self, record: Record) -> None:
        self._ended(record, "finished")

    def failed(self, record: Record) -> None:
        self._ended(record, "failed")

    def cancelled(self, record: Record) -> None:
        self._ended(record, "cancelled")

    def _ended(self, record: Record, outcome: str) -> None:
        record.ended_at = time.monotonic()
        record.outcome = outcome
        self.note(outcome)

    async def hold(self, name: str) -> None:
        """Wait for `release(name)`; a release stays in force until `clear`."""
        event = self._released.setdefault(name, asyncio.Event())
        self.note("held")
        await event.wait()

    def release(self, name: str) -> None:
        self._released.setdefault(name, asyncio.Event()).set()

    async def wait(self, event: str, count: int, timeout: float) -> bool:
        """Until `event` has happened `count` times since the last clear. False after `timeout` seconds."""
        if self.events[event] >= count:
            return True
        waiting = (event, count, asyncio.get_running_loop().create_future())
        self._waiting.add(waiting)
        try:
            await asyncio.wait_for(waiting[2], timeout)
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiting)
        return True

    def report(self) -> Mapping[str, object]:
        return {
            "now": time.monotonic(),
            "open_connections": self.open_connections,
            "events": dict(self.events),
            "requests": list(self.records),
        }

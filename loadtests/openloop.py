"""An open-loop load: requests leave on a fixed clock, whatever the proxy does meanwhile, and each is accounted for.

Three kinds at once: new connections, connections that are used again and again, and streams. An open loop, because a
client that waits for the answer before it asks again asks nothing while the proxy is away, and sees no outage.

Raw sockets over asyncio, so that nothing is retried behind our back. Knows HTTP/1.1 as far as its own requests need.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from loadtests.answers import body_of, stream_fault, whole_fault

ANSWER_SECONDS = 30.0
MAX_OUTSTANDING = 1000  # more requests without an answer, and the proxy is not keeping up: that is a failure as well
SHOWN = 10  # failures described in words


class Outcome(enum.Enum):
    """What became of one request; everything but OK is a drop."""

    OK = "ok"
    REFUSED = "refused"  # no connection
    RESET_BEFORE = "reset before a byte"
    EMPTY = "closed before a byte"
    RESET_AFTER = "reset within the answer"
    CUT = "closed within the answer"
    STATUS = "a status other than 200"
    WRONG = "another answer than the right one"
    LATE = "no answer in time"


class AnswerError(Exception):
    """The request got no right answer."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(f"{outcome.value}: {detail}")
        self.outcome = outcome


class Tally:
    """How many requests of each kind had which outcome."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        self.failures: list[str] = []

    def add(self, kind: str, outcome: Outcome, detail: str = "") -> None:
        self.counts[kind, outcome] += 1
        if outcome is not Outcome.OK and len(self.failures) < SHOWN:
            self.failures.append(f"{kind}: {detail or outcome.value}")

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def dropped(self) -> int:
        return sum(count for (_, outcome), count in self.counts.items() if outcome is not Outcome.OK)

    def of(self, kind: str) -> int:
        return sum(count for (one, _), count in self.counts.items() if one == kind)

    def table(self) -> str:
        rows = sorted((kind, outcome.value, count) for (kind, outcome), count in self.counts.items())
        return "\n".join([*(f"  {kind:10} {outcome:34} {count:6}" for kind, outcome, count in rows), *self.failures])


class Connection:
    """One connection to the proxy, opened when it is first needed and again when it was announced to be closed."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, request: bytes) -> bytes:
        """The body of the answer. Raises AnswerError; then the connection is closed."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._exchange(request)
        except TimeoutError:
            self.close()
            raise AnswerError(Outcome.LATE, f"nothing for {ANSWER_SECONDS:g} s") from None
        except AnswerError:
            self.close()
            raise

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await self._open()
        head = b""
        try:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            return await self._answer(reader, head)
        except asyncio.IncompleteReadError as error:
            started = bool(head or error.partial)
            raise AnswerError(Outcome.CUT if started else Outcome.EMPTY, repr((head + error.partial)[-200:])) from None
        except ConnectionError as error:
            raise AnswerError(Outcome.RESET_AFTER if head else Outcome.RESET_BEFORE, repr(error)) from None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An idle connection may have been closed by the other side meanwhile: that is its right, and no drop."""
        if self._streams is not None and (self._streams[0].at_eof() or self._streams[0].exception()):
            self.close()
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
            except OSError as error:
                raise AnswerError(Outcome.REFUSED, repr(error)) from None
        return self._streams

    async def _answer(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        body = b""
        if headers.get(b"transfer-encoding") == b"chunked":
            body = await _chunked(reader)
        else:
            body = await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection") == b"close":
            self.close()
        if lines[0].split(b" ")[1] != b"200":
            raise AnswerError(Outcome.STATUS, f"{lines[0].decode()} {body[:200]!r}")
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)


class Load:
    """Rates are requests a second of each kind. `system`: a system message for every request, to plant an error."""

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        *,
        fresh: float = 20.0,
        reused: float = 20.0,
        streams: float = 5.0,
        connections: int = 8,
        system: str = "",
    ) -> None:
        self.tally = Tally()
        self._address = (host, port)
        self._key = key
        self._rates = {"fresh": fresh, "reused": reused, "stream": streams}
        self._connections = connections
        self._system = system
        self._numbers = itertools.count(1)
        self._stopped = asyncio.Event()
        self._requests: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Tally]:
        """The load runs inside; at the end, requests under way are waited for."""
        async with asyncio.TaskGroup() as clocks:
            clocks.create_task(self._clock("fresh", self._fresh))
            clocks.create_task(self._clock("stream", self._stream))
            for place in range(self._connections):
                clocks.create_task(self._reuse(place))
            try:
                yield self.tally
            finally:
                self._stopped.set()
        await asyncio.gather(*self._requests)

    async def _clock(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        if not self._rates[kind]:
            return
        started = asyncio.get_running_loop().time()
        for beat in itertools.count(1):
            if await self._stopped_by(started + beat / self._rates[kind]):
                return
            if len(self._requests) >= MAX_OUTSTANDING:
                self.tally.add(kind, Outcome.LATE, f"{MAX_OUTSTANDING} requests wait for an answer")
                continue
            task = asyncio.ensure_future(ask())
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _stopped_by(self, moment: float) -> bool:
        """Wait for the moment; True if the load was stopped first."""
        wait = moment - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._stopped.wait(), max(0.0, wait))
        except TimeoutError:
            return False
        return True

    async def _fresh(self) -> None:
        await self._ask("fresh", Connection(*self._address), stream=False)

    async def _stream(self) -> None:
        await self._ask("stream", Connection(*self._address), stream=True)

    async def _reuse(self, place: int) -> None:
        """One connection, asked in turn with its sisters."""
        if not self._rates["reused"]:
            return
        connection = Connection(*self._address)
        interval = self._connections / self._rates["reused"]
        started = asyncio.get_running_loop().time() + place * interval / self._connections
        for beat in itertools.count():
            if await self._stopped_by(started + beat * interval):
                break
            await self._ask("reused", connection, stream=False, close=False)
        connection.close()

    async def _ask(self, kind: str, connection: Connection, *, stream: bool, close: bool = True) -> None:
        number = next(self._numbers)
        body = body_of(number, stream=stream, system=self._system)
        try:
            answer = await connection.exchange(self._head(len(body)) + body)
            fault = stream_fault(answer, number) if stream else whole_fault(answer, number)
            if fault is not None:
                raise AnswerError(Outcome.WRONG, fault)
            self.tally.add(kind, Outcome.OK)
        except AnswerError as error:
            self.tally.add(kind, error.outcome, str(error))
        finally:
            if close:
                connection.close()

    def _head(self, length: int) -> bytes:
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            f"host: {self._address[0]}:{self._address[1]}",
            f"authorization: Bearer {self._key}",
            "content-type: application/json",
            f"content-length: {length}",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

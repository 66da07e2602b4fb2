"""Clients that stream while a certificate is renewed, and what became of them: one code for the test, whose certificate
lives for forty seconds, and for the gate, whose lives for five minutes (tests/gates/renewal.py).

Every client has a connection of its own, and reads one answer to its end; another one shakes hands and asks again and
again meanwhile. One of the streams can be cut, as the control: by a relay in front of the proxy, when the new
certificate is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flm.tls.files import read_pair
from tests.runtime.harness import get

if TYPE_CHECKING:
    from tests.acme.test_proxy import Proxy

CLIENTS = 200


@dataclass
class Seen:
    """What was seen of a renewal. Times in seconds; `life` and `apart` by the certificates' own dates."""

    life: float
    """Of the first certificate."""
    apart: float
    """From the beginning of the first to the beginning of the next one."""
    asked: int = 0
    """Handshakes, and requests on connections of their own, that were all answered until the new one was shown."""
    whole: int = 0
    """Streams that came to their end, with every event."""
    broken: list[str] = field(default_factory=list)
    """The others, each with what it was."""
    ended_early: int = 0
    """Streams that were over before the new certificate was shown: they prove nothing."""
    last_error: str | None = None

    def fault(self) -> str:
        """Why this is no renewal under CLIENTS streams without a dropped connection; empty if it is one."""
        if self.broken:
            return f"{len(self.broken)} of {CLIENTS} streams were not whole: {self.broken[0]}"
        if self.whole != CLIENTS or self.ended_early:
            return f"{self.whole} streams, of which {self.ended_early} ended before the renewal, not {CLIENTS}"
        if not 0 < self.apart < self.life:
            return f"renewed {self.apart:.0f} s after a certificate of {self.life:.0f} s"
        return self.last_error or ("" if self.asked else "nobody asked meanwhile")


async def renewed_under_streams(proxy: Proxy, events: int, seconds: float, *, cut: bool = False) -> Seen:
    """Stream `events` events, four a second, to each client; a certificate of `proxy`, which has just been started, is
    to be renewed meanwhile, within `seconds`."""
    first, began = await proxy.served(), read_pair(proxy.stored())
    assert began is not None
    context = proxy.believing()
    context.check_hostname = False
    async with relay(proxy.port) as (through, cutting):
        ports = [through if cut else proxy.port, *[proxy.port] * (CLIENTS - 1)]
        streams = [asyncio.create_task(_stream(port, events, context, seconds * 2)) for port in ports]
        asked = 0
        async with asyncio.timeout(seconds):
            while await proxy.served() == first:
                answer = await get(proxy.port, "/echo", tls=context)
                assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
                asked += 2
        renewed = read_pair(proxy.stored())
        early = sum(stream.done() for stream in streams)
        if cut:
            cutting.set()
        came = await asyncio.gather(*streams)
    assert renewed is not None
    handle = await proxy.handle()
    seen = Seen(began.not_after - began.not_before, renewed.not_before - began.not_before, asked)
    seen.broken = [each for each in came if each]
    seen.whole, seen.ended_early, seen.last_error = len(came) - len(seen.broken), early, handle.last_error
    return seen


async def _stream(port: int, events: int, context: ssl.SSLContext, seconds: float) -> str:
    """What is wrong with one stream; empty if it is whole."""
    try:
        answer = await get(port, f"/drip/{events}", seconds=seconds, tls=context)
    except (OSError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    if not answer.startswith(b"HTTP/1.1 200"):
        return f"was answered {answer[:60]!r}"
    done = b"data: [DONE]" in answer
    came = answer.count(b"data: ") - done
    return "" if done and came == events else f"it broke off after {came} of {events} events"


@contextlib.asynccontextmanager
async def relay(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """The port of a relay to `port`, and the event at which it cuts the connections through it."""
    cutting, relaying = asyncio.Event(), set[asyncio.Task[None]]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection("127.0.0.1", port)
        ways = {asyncio.create_task(_pass_on(reader, back)), asyncio.create_task(_pass_on(onward, writer))}
        until_cut = asyncio.create_task(cutting.wait())
        relaying.update(ways, (until_cut,))
        await asyncio.wait({*ways, until_cut}, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, back):
            end.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], cutting
        for task in relaying:
            task.cancel()
        await asyncio.gather(*relaying, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

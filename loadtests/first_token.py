"""What the proxy adds to the time to the first token at a hundred streams a second: reported, no gate yet.

The same open loop asks the engine itself and the proxy in turns; the difference of the percentiles is what the proxy
adds. The clock runs from the request being handed to the kernel to the first byte of the first event.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtests.answers import expected, prompt_of
from loadtests.stage import ENGINE_MODEL, MODEL, Stage

PER_SECOND = 100
SECONDS = 5  # a turn
TURNS = 2
AIM_ADDED_P95_MS = 5.0
ANSWER_SECONDS = 30.0
FAULT_BYTES = 500
SHOWN = 5  # faults described in words


@dataclass(frozen=True)
class Added:
    """Milliseconds to the first token, each list sorted, and what was wrong with the streams that were not right."""

    direct: list[float]
    through: list[float]
    faults: list[str]

    def report(self) -> str:
        rows = []
        for share in (50, 95):
            direct, through = percentile(self.direct, share), percentile(self.through, share)
            rows.append(f"p{share} {direct:.2f} ms from the engine, {through:.2f} ms through the proxy")
        added = percentile(self.through, 95) - percentile(self.direct, 95)
        aim = "reached" if added < AIM_ADDED_P95_MS and not self.faults else "missed"
        total = len(self.direct) + len(self.through) + len(self.faults)
        shown = "".join(f"\n  {fault}" for fault in self.faults[:SHOWN])
        return (
            f"first token at {PER_SECOND} streams a second: {'; '.join(rows)}; added p95 {added:.2f} ms "
            f"(aim {AIM_ADDED_P95_MS:g} ms: {aim}); {len(self.faults)} of {total} streams wrong{shown}"
        )


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


async def first_token(host: str, port: int, key: str, model: str, number: int) -> float | str:
    """Milliseconds to the first event of one stream, or what was wrong with it."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": prompt_of(number)}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\nconnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write((head + body).encode())
                asked = loop.time()
                received = await reader.readuntil(b"data: ")
                came = loop.time()
                received += await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return repr(error)
    return (came - asked) * 1000 if text_of(received) == expected(number) else repr(received[-FAULT_BYTES:])


def text_of(received: bytes) -> str | None:
    """The text of the stream, read without looking at the chunk framing: an event never crosses a chunk here."""
    if received.count(b"data: [DONE]") != 1:
        return None
    lines = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def _turn(url: str, key: str, model: str) -> list[float | str]:
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    started = loop.time()
    streams = []
    for number in range(PER_SECOND * SECONDS):
        await asyncio.sleep(max(0.0, started + number / PER_SECOND - loop.time()))
        ask = first_token(address.hostname or "", address.port or 0, key, model, number)
        streams.append(asyncio.ensure_future(ask))
    return await asyncio.gather(*streams)


async def _measure(stage: Stage) -> Added:
    direct: list[float | str] = []
    through: list[float | str] = []
    for _ in range(TURNS):
        direct += await _turn(stage.engine.url, "none", ENGINE_MODEL)
        through += await _turn(stage.url, stage.key, MODEL)
    return Added(_right(direct), _right(through), [one for one in direct + through if isinstance(one, str)])


def _right(values: list[float | str]) -> list[float]:
    return sorted(value for value in values if isinstance(value, float))


def measure(stage: Stage) -> Added:
    return asyncio.run(_measure(stage))

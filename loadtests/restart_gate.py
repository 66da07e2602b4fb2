"""How long `flm proxy restart` and `reload` take under load, and whether anybody notices.

Gate (the seed's): the median below MEDIAN_SECONDS, and no request refused or cut. Aim: AIM_SECONDS, reported only.
Time is that of the whole command, from its process's start to its end.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtests.openloop import Load, Tally
from loadtests.stage import Flm, Stage

MEDIAN_SECONDS = 3.0
AIM_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # of load before the first and after the last change


@dataclass(frozen=True)
class Verdict:
    """What was measured of one verb."""

    verb: str
    seconds: list[float]
    tally: Tally

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def unnoticed(self) -> bool:
        """Every kind of request was there, and none was dropped."""
        return all(self.tally.of(kind) for kind in ("fresh", "reused", "stream")) and self.tally.dropped == 0

    @property
    def passed(self) -> bool:
        return self.unnoticed and self.median < MEDIAN_SECONDS

    def report(self) -> str:
        times = " ".join(f"{seconds:.2f}" for seconds in self.seconds)
        aim = "reached" if self.median < AIM_SECONDS else "missed"
        return (
            f"proxy {self.verb}: median {self.median:.2f} s (gate {MEDIAN_SECONDS:g} s; aim {AIM_SECONDS:g} s: {aim}) "
            f"of {times}; {self.tally.dropped} of {self.tally.total} requests dropped: "
            f"{'passed' if self.passed else 'FAILED'}\n{self.tally.table()}"
        )


def measure(stage: Stage, verb: str, runs: int, *, system: str = "") -> Verdict:
    """Run `flm proxy <verb>` so many times under load."""
    return asyncio.run(_measure(stage, verb, runs, system))


async def _measure(stage: Stage, verb: str, runs: int, system: str) -> Verdict:
    address = urlsplit(stage.url)
    load = Load(address.hostname or "", address.port or 0, stage.key, system=system)
    seconds = []
    async with load.running() as tally:
        await asyncio.sleep(SETTLE_SECONDS)
        for _ in range(runs):
            seconds.append(await _timed(stage.flm, verb))
            await asyncio.sleep(SETTLE_SECONDS / 2)
        await asyncio.sleep(SETTLE_SECONDS)
    return Verdict(verb, seconds, tally)


async def _timed(flm: Flm, verb: str) -> float:
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *flm.command("proxy", verb),
        env=flm.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"flm proxy {verb}: {output.decode()}{errors.decode()}")
    return time.monotonic() - started

"""Brings every situation about, for every kind of engine that has a simulator, and notes what both sides saw.

One FLM, one simulator process for each kind. Kinds come from the registries, so a new dialect with a simulator is
observed by being there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from flm.demo.registry import DIALECTS as SIMULATORS
from flm.engines.registry import DIALECTS
from flm.services.engines import EngineTimeouts
from flm.services.security import SecurityService
from tests.behaviour import hygiene
from tests.behaviour.situations import CLIENTS, DEAD, ENGINES, SITUATIONS, STUCK, Situation
from tests.behaviour.stage import Seen, Stage, Way
from tests.support.demo import demo_engine
from tests.support.installed import installed

KINDS = tuple(sorted(set(DIALECTS) & set(SIMULATORS)))
HASTY = EngineTimeouts(first_byte=0.5, between_bytes=0.5)
SEND_TIMEOUT = 4.0
UNLIMITED = b'{"auth_failure_limit":{"rpm":0}}'  # so many bad keys in a row would be 429
NEVER = 86_400.0  # between two checks of an engine: the only requests are those of clients

Rows = dict[str, list[tuple[Way, Seen]]]
"""By the title of a situation."""


class Observed:
    """What was seen: `rows` by kind, `arrived` by kind, `ways` by kind: how its engine can be asked."""

    def __init__(self) -> None:
        self.ways: dict[str, tuple[Way, ...]] = {}
        self.rows: dict[str, Rows] = {kind: {} for kind in KINDS}
        self.arrived: dict[str, list[hygiene.Arrived]] = {}


async def observe(root: Path) -> Observed:
    """Everything, in half a minute."""
    found = Observed()
    async with AsyncExitStack() as stack:
        demos = {kind: stack.enter_context(demo_engine(kind)) for kind in KINDS}
        taps = {kind: await stack.enter_async_context(hygiene.tap(demos[kind].url)) for kind in KINDS}
        engines: dict[str, Any] = {kind: (kind, demo.url) for kind, demo in demos.items()}
        engines |= {f"hasty-{kind}": (kind, demo.url, {"timeouts": HASTY}) for kind, demo in demos.items()}
        engines |= {f"tapped-{kind}": (kind, tap.url, {"credential": hygiene.CREDENTIAL}) for kind, tap in taps.items()}
        flags = {
            "engine__check_interval_seconds": NEVER,
            "engine__failure_threshold": 100,  # no failure of a request may decide what the next one meets
            "proxy__send_timeout_seconds": SEND_TIMEOUT,
        }
        flm = await stack.enter_async_context(installed(root, engines, **flags))
        await SecurityService(flm.proxy.folder).set_policy(UNLIMITED)
        stages = [Stage(flm, kind, demos[kind]) for kind in KINDS]
        for stage in stages:
            await stage.learn()
            found.ways[stage.kind] = stage.ways
            await _run(found, stage, CLIENTS)
            found.arrived[stage.kind] = await hygiene.arrived(stage, taps[stage.kind])
        # These mostly wait for a time to be over.
        await asyncio.gather(*(_run(found, stage, (*ENGINES, STUCK)) for stage in stages))
        for stage in stages:
            demos[stage.kind].end()
            await _run(found, stage, (DEAD,))
    return found


async def _run(found: Observed, stage: Stage, situations: Iterable[Situation]) -> None:
    for situation in situations:
        seen = [(way, await situation.act(stage, way)) for way in situation.ways if way in stage.ways]
        found.rows[stage.kind][situation.title] = seen


def in_order(rows: Rows) -> Iterable[tuple[str, list[Way], Seen]]:
    """The rows as they are shown: by situation, ways with the same outcome together."""
    for situation in SITUATIONS:
        together: dict[Seen, list[Way]] = {}
        for way, seen in rows[situation.title]:
            together.setdefault(seen, []).append(way)
        for seen, ways in together.items():
            yield situation.title, ways, seen

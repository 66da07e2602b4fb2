"""An engine of a version that breaks when it is cut, at a real FLM: its client leaves, and it never knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.behaviour.situations import engine_path
from tests.behaviour.stage import CHAT, OUTCOMES, STREAM, Stage, Way
from tests.support.demo import demo_engine
from tests.support.installed import installed

BREAKS, SOUND = "0.5.2", "0.32.0"  # vLLM (VLLM#6586)


@pytest.mark.parametrize("way", [STREAM, CHAT], ids=lambda way: way.label)
@pytest.mark.parametrize(("version", "outcome"), [(BREAKS, "finished"), (SOUND, "cancelled")])
def test_only_the_version_that_breaks_is_let_finish(tmp_path: Path, way: Way, version: str, outcome: str) -> None:
    async def main() -> None:
        with demo_engine("vllm", "--engine-version", version) as engine:
            async with installed(tmp_path, {"vllm": ("vllm", engine.url)}) as flm:
                stage = Stage(flm, "vllm", engine)
                await stage.begin("demo: hold=gate", engine_path(stage, way))
                before = len(stage.lines("client_disconnected"))
                async with stage.asking(way):
                    await stage.happened("held")
                await stage.logged("client_disconnected", before)
                await asyncio.to_thread(engine.release, "gate")
                assert await stage.told_by_engine() == OUTCOMES[outcome]

    asyncio.run(main())


def test_a_worker_that_ends_cuts_what_it_drains(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("vllm", "--engine-version", BREAKS) as engine:
            async with installed(tmp_path, {"vllm": ("vllm", engine.url)}) as flm:
                stage = Stage(flm, "vllm", engine)
                await stage.begin("demo: hold=gate", engine_path(stage, CHAT))
                before = len(stage.lines("client_disconnected"))
                async with stage.asking(CHAT):
                    await stage.happened("held")
                await stage.logged("client_disconnected", before)
                await flm.proxy.service.stop()
                await stage.happened("cancelled")

    asyncio.run(main())

"""Engines that appear, die and are registered while a proxy runs, seen without a restart. A real demo engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from flm.runtime.prober import describe_change
from flm.services.engines import EngineService
from flm.snapshot import Engine
from tests.runtime.harness import Running, prepare, run, running
from tests.support.demo import demo_engine


async def _status_of(proxy: Running, engine_id: str) -> str | None:
    return next((each.status for each in (await proxy.handle()).engines if each.id == engine_id), None)


def test_a_registered_engine_is_known_at_once_and_forgotten_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path) as proxy:
                service = EngineService(proxy.folder)
                await service.add("mine", "openai", engine.url)
                assert await _status_of(proxy, "mine") == "RunningHealthy"
                await proxy.service.restart()
                assert await _status_of(proxy, "mine") == "RunningHealthy", "known over a restart, not looked for anew"
                await service.remove("mine")
                assert await _status_of(proxy, "mine") is None

    run(main)


def test_an_engine_that_dies_is_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, engine__check_interval_seconds=0.5, engine__failure_threshold=1) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                os.kill(engine.pid, signal.SIGKILL)
                async with asyncio.timeout(20):
                    while await _status_of(proxy, "mine") != "ErrorNetwork":
                        await asyncio.sleep(0.05)
                assert "mine: RunningHealthy -> ErrorNetwork" in proxy.log()

    run(main)


def test_a_registered_engine_that_is_not_looked_at_yet_is_down_and_not_unknown(tmp_path: Path) -> None:
    """A proxy that has just started knows its name already, so that a client hears 503 and tries again."""

    async def main() -> None:
        with socket.socket() as silent:  # accepts and says nothing, so that the first look takes its time
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            proxy = prepare(tmp_path)
            await EngineService(proxy.folder).add("mine", "openai", f"http://127.0.0.1:{silent.getsockname()[1]}")
            await proxy.start()
            try:
                handle = await proxy.handle()
                assert [(each.id, each.status) for each in handle.engines] == [("mine", "InstalledOnly")]
            finally:
                await proxy.service.stop(now=True)

    run(main)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": "InstalledOnly"}, {"a": "RunningHealthy"}, "a: InstalledOnly -> RunningHealthy"),
        ({}, {"a": "RunningHealthy"}, "a: unknown -> RunningHealthy"),
        ({"a": "RunningHealthy"}, {}, "a: gone"),
        ({"a": "RunningHealthy"}, {"a": "RunningHealthy"}, "nothing changed"),
    ],
)
def test_what_changed_in_words(before: dict[str, str], after: dict[str, str], said: str) -> None:
    def engines(statuses: dict[str, str]) -> tuple[Engine, ...]:
        return tuple(Engine(name, "openai", "http://127.0.0.1:1", status) for name, status in statuses.items())

    assert describe_change(engines(before), engines(after)) == said

"""Runs each upstream test on the loop of the workers and on the standard one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run one coroutine to its end on a fresh loop, at most 30 s; tasks it leaves behind are a failure."""
    new_loop = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def start(main: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(30):
                await main
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(guarded())

    return start

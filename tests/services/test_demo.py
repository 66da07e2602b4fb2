"""The demo engine ends with what it was started for, and nobody else's process does. Real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.demo import process
from flm.services.demo import DemoService
from flm.services.engines import EngineService
from flm.store.folder import Folder
from tests.runtime.harness import alive, prepare, run


@pytest.fixture(autouse=True)
def nothing_left(folder: Folder) -> Iterator[None]:
    yield
    if folder.run.is_dir():
        found = process.find(folder.run, lambda _: None)
        assert found is None, "a test left its demo engine behind"


def test_it_ends_when_its_proxy_is_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        await proxy.service.start(proxy.flags)
        demo = await DemoService(proxy.folder).start()
        await proxy.service.stop()
        assert not alive(demo.pid)
        assert not (proxy.folder.run / "demo.json").exists()
        assert await EngineService(proxy.folder).list() == ()

    run(main)


def test_it_ends_when_it_is_removed(folder: Folder) -> None:
    async def main() -> None:
        demo = await DemoService(folder).start()
        assert await EngineService(folder).remove("demo") == "demo"
        assert not alive(demo.pid)
        assert not (folder.run / "demo.json").exists()

    asyncio.run(main())


def test_it_lives_when_another_engine_of_its_name_is_removed(folder: Folder) -> None:
    async def main() -> None:
        demo, engines = await DemoService(folder).start(), EngineService(folder)
        await engines.add("other", "openai", "http://127.0.0.1:1")
        await engines.remove("other")
        assert alive(demo.pid)
        assert await DemoService(folder).stop()

    asyncio.run(main())


def test_a_strangers_process_is_not_ended(folder: Folder) -> None:
    """A record whose process id went to somebody else, at a moment when the lock is held."""

    async def main(stranger: int) -> None:
        demo = await DemoService(folder).start()
        try:
            record = folder.run / "demo.json"
            record.write_text(json.dumps({**json.loads(record.read_text()), "pid": stranger}))
            assert not await DemoService(folder).stop()
        finally:
            os.kill(demo.pid, signal.SIGTERM)
            assert process._gone(folder.run, 20)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        asyncio.run(main(stranger.pid))
        assert stranger.poll() is None
        stranger.communicate(b"\n", timeout=20)
    assert stranger.returncode == 0


def test_the_record_of_one_that_was_killed_goes(folder: Folder) -> None:
    async def main() -> None:
        demo = await DemoService(folder).start()
        os.kill(demo.pid, signal.SIGKILL)
        assert process._gone(folder.run, 20)
        assert not await DemoService(folder).stop()
        assert not (folder.run / "demo.json").exists()

    asyncio.run(main())

"""Engines that die, come, move and swap their models under a running proxy, as its callers see it. Real processes.

Where the interval between checks is an hour, only what requests report can have told the proxy.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flm.services.engines import EngineService
from tests.runtime.asking import CHAT, Client, conversation
from tests.runtime.harness import Running, run, running
from tests.support.demo import Demo, demo_engine
from tests.support.ports import free_port

WORKER = "flm.runtime.worker"
HOUR = 3600.0
SOON = 0.5
MODEL = "flm://mine/demo"
FAILED = "a request to engine mine failed"


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def status_of(proxy: Running, engine_id: str = "mine") -> str | None:
    return next((each.status for each in (await proxy.handle()).engines if each.id == engine_id), None)


def becomes(proxy: Running, status: str | None, engine_id: str = "mine") -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return await status_of(proxy, engine_id) == status

    return condition


def logged(proxy: Running, text: str, count: int = 1) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return proxy.log().count(text) >= count

    return condition


def lists(client: Client, *models: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return await client.models() == list(models)

    return condition


def kill(engine: Demo) -> None:
    os.kill(engine.pid, signal.SIGKILL)


# --- dying ------------------------------------------------------------------------------------------------------


def test_a_dead_engine_is_known_to_be_dead_a_moment_after_the_first_request(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, engine__check_interval_seconds=HOUR) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                assert (await client.chat(MODEL)).status == 200
                kill(engine)
                refused = await client.chat(MODEL)
                assert refused.status in (502, 503), "the connection that was kept, or a new one"
                await eventually(becomes(proxy, "ErrorNetwork"))  # the request, and two checks of this engine alone
                for name in (MODEL, "demo"):
                    down = await client.chat(name)
                    assert (down.status, down.error["code"]) == (503, "engine_unavailable")
                    assert "ErrorNetwork" in down.error["message"]
                assert await client.models() == []
                seen = await EngineService(proxy.folder).list()
                assert [(each.id, each.status) for each in seen] == [("mine", "ErrorNetwork")]

    run(main)


def test_it_is_checked_on_and_serves_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, engine__check_interval_seconds=SOON) as proxy:
            client = await Client.of(proxy)
            with demo_engine("openai") as engine:
                port = int(engine.url.rpartition(":")[2])
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                kill(engine)
            await eventually(becomes(proxy, "ErrorNetwork"))
            assert (await client.chat(MODEL)).status == 503
            with demo_engine("openai", port=port):
                await eventually(lists(client, MODEL))
                assert (await client.chat(MODEL)).status == 200

    run(main)


def test_one_failed_request_is_healed_by_the_check_that_follows(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            flags: dict[str, Any] = {"engine__check_interval_seconds": HOUR, "engine__failure_threshold": 1}
            async with running(tmp_path, WORKER, **flags) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                engine.fault(CHAT, "words=50 cut=700 end=rst")
                broken = await client.chat(MODEL, stream=True)
                assert b'"error"' in broken.body.split(b"\n\n")[-2]
                assert b"[DONE]" not in broken.body
                engine.fault(CHAT, "")
                await eventually(logged(proxy, "mine: RunningHealthy -> ErrorNetwork"))
                await eventually(logged(proxy, "mine: ErrorNetwork -> RunningHealthy"))
                assert (await client.chat(MODEL)).status == 200
                assert proxy.log().count(FAILED) == 1

    run(main)


def test_what_an_engine_refuses_is_no_failure(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            flags: dict[str, Any] = {"engine__check_interval_seconds": HOUR, "engine__failure_threshold": 1}
            async with running(tmp_path, WORKER, **flags) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                for status in (400, 404, 422, 429, 500, 503):
                    engine.fault(CHAT, f"status={status}")
                    assert (await client.chat(MODEL)).status >= 400
                engine.fault(CHAT, "error=2")
                assert b'"error"' in (await client.chat(MODEL, stream=True)).body
                await control(client, proxy, engine)

    run(main)


async def control(client: Client, proxy: Running, engine: Demo) -> None:
    """Nothing was reported so far; and a real failure would have been."""
    engine.fault(CHAT, "cut=-1 end=rst")
    assert (await client.chat(MODEL)).status == 502
    await eventually(logged(proxy, FAILED))
    assert proxy.log().count(FAILED) == 1
    await eventually(becomes(proxy, "RunningHealthy"))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_callers_who_leave_are_no_failure(tmp_path: Path, stream: bool) -> None:
    async def main() -> None:
        with demo_engine("openai", "--pace", "0.02") as engine:
            flags: dict[str, Any] = {"engine__check_interval_seconds": HOUR, "engine__failure_threshold": 1}
            async with running(tmp_path, WORKER, **flags) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                data = client.request(CHAT, conversation(MODEL, stream=stream, system="demo: words=500"))
                for cut in (1, len(data) // 2, len(data) - 1, len(data)):
                    await asyncio.gather(*(client.leave(data[:cut]) for _ in range(10)))
                if stream:
                    for after in (b"\r\n\r\n", b"data: ", b"\n\n\r\n"):
                        await asyncio.gather(*(client.leave(data, after=after) for _ in range(10)))
                thinking = client.request(CHAT, conversation(MODEL, stream=stream, system="demo: hold=never"))
                held = asyncio.ensure_future(asyncio.to_thread(engine.wait, "held", 10))
                await asyncio.gather(*(client.leave(thinking, when=held) for _ in range(10)))
                assert (await client.chat(MODEL)).status == 200  # so all that came before it have reached the engine
                await eventually(lambda: _nothing_runs(engine))
                assert sum(each["outcome"] == "cancelled" for each in engine.requests(CHAT)) >= 10
                await control(client, proxy, engine)

    async def _nothing_runs(engine: Demo) -> bool:
        return all(each["outcome"] != "running" for each in engine.requests(CHAT))

    run(main)


# --- coming, moving, swapping -------------------------------------------------------------------------------------


def test_one_that_starts_after_it_was_registered(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with running(tmp_path, WORKER, engine__check_interval_seconds=SOON) as proxy:
            await EngineService(proxy.folder).add("mine", "openai", f"http://127.0.0.1:{port}")
            client = await Client.of(proxy)
            assert await client.models() == []
            with demo_engine("openai", port=port):
                await eventually(lists(client, MODEL))
                assert (await client.chat("demo")).status == 200

    run(main)


def test_one_that_comes_back_with_another_model(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with running(tmp_path, WORKER, engine__check_interval_seconds=SOON) as proxy:
            client = await Client.of(proxy)
            with demo_engine("llamacpp", "--model", "first", port=port) as engine:
                await EngineService(proxy.folder).add("mine", "llamacpp", engine.url)
                assert await client.models() == ["flm://mine/first"]
                kill(engine)
            with demo_engine("llamacpp", "--model", "second", port=port):
                await eventually(lists(client, "flm://mine/second"))
                assert (await client.chat("flm://mine/second")).status == 200
                assert (await client.chat("flm://mine/first")).status == 404

    run(main)


def test_a_list_that_cannot_be_had_leaves_the_last_one_standing(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("ollama") as engine:
            async with running(tmp_path, WORKER, engine__check_interval_seconds=SOON) as proxy:
                await EngineService(proxy.folder).add("mine", "ollama", engine.url)
                client = await Client.of(proxy)
                before = await client.models()
                assert before
                engine.fault("/api/tags", "status=500")
                await eventually(logged(proxy, "the models of mine"))
                asked = len(engine.requests("/api/tags"))
                await eventually(lambda: _more(engine, asked + 2))
                assert await client.models() == before
                assert proxy.log().count("the models of mine") == 1, "said once, not at each check"

    async def _more(engine: Demo, count: int) -> bool:
        return len(engine.requests("/api/tags")) >= count

    run(main)


def test_one_that_is_registered_anew_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        with (
            demo_engine("openai", "--model", "here") as here,
            demo_engine("openai", "--model", "there") as there,
        ):
            async with running(tmp_path, WORKER, engine__check_interval_seconds=HOUR) as proxy:
                service, client = EngineService(proxy.folder), await Client.of(proxy)
                await service.add("mine", "openai", here.url)
                assert await client.models() == ["flm://mine/here"]
                await service.remove("mine")
                await service.add("mine", "openai", there.url)
                assert await client.models() == ["flm://mine/there"]
                assert (await client.chat("flm://mine/there")).status == 200
                assert here.requests(CHAT) == []

    run(main)


@pytest.mark.parametrize("known", [True, False], ids=["both ports known", "settings change"])
def test_one_that_moves_to_another_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """It keeps its name."""
    home = tmp_path / "home of the user"
    older, newer = home / ".cache" / "lm-studio" / ".internal", home / ".lmstudio" / ".internal"
    for folder in (older, newer):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FLM_ENGINE_DISCOVER", "true")
    first, second = free_port(), free_port()

    def configure(folder: Path, port: int) -> None:
        (folder / "http-server-config.json").write_text(json.dumps({"port": port}))

    async def main() -> None:
        configure(newer, first)
        if known:
            configure(older, second)
        async with running(tmp_path, WORKER, engine__check_interval_seconds=SOON) as proxy:
            client = await Client.of(proxy)

            async def ours(model: str) -> bool:
                return [each for each in await client.models() if "lmstudio" in each] == [f"flm://lmstudio/{model}"]

            with demo_engine("lmstudio", "--model", "one", port=first) as engine:
                await eventually(lambda: ours("one"))
                kill(engine)
            if not known:
                configure(newer, second)
            with demo_engine("lmstudio", "--model", "two", port=second):
                await eventually(lambda: ours("two"))
                for name in ("flm://lmstudio/two", "two"):
                    assert (await client.chat(name)).status == 200

    run(main)

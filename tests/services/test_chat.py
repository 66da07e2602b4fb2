"""`ChatService` through a real proxy with a real worker, in front of the demo engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.chat import ChatService
from flm.services.engines import EngineService
from flm.services.security import SecurityService
from flm.store.folder import Folder, locate
from tests.runtime.harness import Running, running
from tests.support.demo import Demo, demo_engine

Main = Callable[[Running, Demo], Awaitable[None]]


def with_proxy(tmp_path: Path, main: Main, *arguments: str, **flags: str | float) -> None:
    """Run `main` with a proxy whose only registered engine is a demo engine called `demo`."""

    async def outer(engine: Demo) -> None:
        async with running(tmp_path, worker_module="flm.runtime.worker", **flags) as proxy:
            await EngineService(proxy.folder).add("demo", "openai", engine.url)
            await main(proxy, engine)

    with demo_engine("openai", *arguments) as engine:
        asyncio.run(outer(engine))


async def told(service: ChatService, prompt: str, model: str | None = None) -> list[str]:
    return [piece async for piece in service.stream(prompt, model)]


def test_whole_and_streamed_say_the_same(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        service = ChatService(proxy.folder, {})
        model = f"flm://demo/{engine.model}"
        whole = await service.ask("What is 鍵?", model)
        pieces = await told(service, "What is 鍵?", model)
        assert "What is 鍵?" in whole.content
        assert "".join(pieces) == whole.content
        assert len(pieces) > 3
        assert (whole.model, whole.finish_reason) == (model, "stop")
        assert whole.usage is not None
        assert await SecurityService(proxy.folder).list_keys() == []  # the short-lived key leaves no row

    with_proxy(tmp_path, main)


def test_text_comes_as_it_is_made(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        engine.fault("/v1/chat/completions", "demo: hold=gate hold_at=3")
        async with aclosing(ChatService(proxy.folder, {}).stream("Hi", f"flm://demo/{engine.model}")) as pieces:
            assert await anext(pieces)  # while the engine is held in the middle of its answer
            engine.release("gate")
            assert [piece async for piece in pieces]

    with_proxy(tmp_path, main)


def test_leaving_in_the_middle_stops_the_engine(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        engine.fault("/v1/chat/completions", "demo: endless between=0.005")
        async with aclosing(ChatService(proxy.folder, {}).stream("Hi", f"flm://demo/{engine.model}")) as pieces:
            await anext(pieces)
        await asyncio.to_thread(engine.wait, "cancelled")

    with_proxy(tmp_path, main)


def test_where_there_is_no_model_it_says_how_to_get_one(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        await EngineService(proxy.folder).remove("demo")
        with pytest.raises(CommandError, match=r"no engine serves a model .*`flm engines demo` starts one"):
            await told(ChatService(proxy.folder), "Hi")

    with_proxy(tmp_path, main)


def test_the_only_model_needs_no_name(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        assert (await ChatService(proxy.folder, {}).ask("Hi")).model == f"flm://demo/{engine.model}"

    with_proxy(tmp_path, main)


def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        with pytest.raises(CommandError, match="flm://demo/one, flm://demo/two") as refused:
            await ChatService(proxy.folder, {}).ask("Hi")
        assert refused.value.code is CommandCode.USAGE
        assert (await ChatService(proxy.folder, {}).ask("Hi", "two")).model == "two"

    with_proxy(tmp_path, main, "--model", "one", "--model", "two")


@pytest.mark.parametrize(
    ("directives", "model", "code", "words"),
    [
        (None, "flm://demo/nothing", CommandCode.ENGINE_NOT_FOUND, "'nothing'; `flm models list` shows"),
        (None, "flm://nobody/x", CommandCode.ENGINE_NOT_FOUND, "nobody"),
        (None, "flm://", CommandCode.ENGINE_NOT_FOUND, "flm://"),
        ("demo: status=500", "demo", CommandCode.ENGINE_NETWORK_ERROR, ""),
        ("demo: cut=-1 end=rst", "demo", CommandCode.ENGINE_NETWORK_ERROR, ""),
        ("demo: garbage=-1", "demo", CommandCode.ENGINE_API_ERROR, ""),
        ("demo: stall=-1", "demo", CommandCode.ENGINE_TIMEOUT, ""),
        ("demo: error=2", "demo", None, ""),
        ("demo: cut=400 end=fin", "demo", CommandCode.ENGINE_NETWORK_ERROR, ""),
    ],
)
def test_what_goes_wrong_is_said(
    tmp_path: Path, directives: str | None, model: str, code: CommandCode | None, words: str
) -> None:
    async def main(proxy: Running, engine: Demo) -> None:
        if directives is not None:
            engine.fault("/v1/chat/completions", directives)
        with pytest.raises(CommandError) as refused:
            await told(ChatService(proxy.folder, {}), "Hi", model)
        assert refused.value.code is code or code is None, refused.value.message
        assert words in refused.value.message
        assert refused.value.message

    with_proxy(tmp_path, main, engine__first_byte_timeout_seconds=0.5)


def test_a_policy_that_shuts_this_machine_out_is_named(tmp_path: Path) -> None:
    async def main(proxy: Running, _engine: Demo) -> None:
        await SecurityService(proxy.folder).set_policy(b'{"ip_whitelist":["192.0.2.0/24"]}')
        with pytest.raises(CommandError, match=r"own address is not in the ip_whitelist"):
            await ChatService(proxy.folder, {}).ask("Hi", "demo")

    with_proxy(tmp_path, main)


def test_without_a_proxy(tmp_path: Path) -> None:
    folder = locate({"FLM_HOME": str(tmp_path / "home")})
    with pytest.raises(CommandError, match="flm proxy start") as refused:
        asyncio.run(ChatService(folder, {}).ask("Hi"))
    assert refused.value.code is CommandCode.PROXY_NOT_RUNNING


class TestWithAKeyOfOnesOwn:
    """Somebody who may not read the data folder: here, one whose folder has no proxy."""

    def test_it_is_used(self, tmp_path: Path) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            created = await SecurityService(proxy.folder).create_key("theirs")
            elsewhere = locate({"FLM_HOME": str(tmp_path / "elsewhere")})
            environment = {"FLM_API_KEY": created.key, "FLM_PROXY_PORT": str(proxy.port)}
            answer = await ChatService(elsewhere, environment).ask("Hi", f"flm://demo/{engine.model}")
            assert answer.content
            await SecurityService(proxy.folder).revoke_key(created.id)
            with pytest.raises(CommandError) as refused:
                await ChatService(elsewhere, environment).ask("Hi", "demo")
            assert refused.value.code is CommandCode.KEY_NOT_FOUND

        with_proxy(tmp_path, main)

    @pytest.mark.parametrize("key", ["flm_wrong", "", "a b", "a\r\nx: y"])
    def test_a_wrong_one(self, tmp_path: Path, key: str) -> None:
        async def main(proxy: Running, engine: Demo) -> None:
            elsewhere = locate({"FLM_HOME": str(tmp_path / "elsewhere")})
            environment = {"FLM_API_KEY": key, "FLM_PROXY_PORT": str(proxy.port)}
            with pytest.raises(CommandError) as refused:
                await ChatService(elsewhere, environment).ask("Hi", "demo")
            assert refused.value.code is CommandCode.KEY_NOT_FOUND
            assert key not in refused.value.message or not key

        with_proxy(tmp_path, main)

    def test_where_nothing_listens(self, folder: Folder) -> None:
        environment = {"FLM_API_KEY": "flm_x", "FLM_PROXY_PORT": "1"}
        with pytest.raises(CommandError, match="no proxy answers") as refused:
            asyncio.run(ChatService(folder, environment).ask("Hi", "demo"))
        assert refused.value.code is CommandCode.PROXY_NOT_RUNNING

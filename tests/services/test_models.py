"""Aliases: set, changed, forgotten; what is no alias; and that one holds for the very next request."""

from __future__ import annotations

import asyncio
import json
import logging
from http.client import HTTPConnection
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.engines import EngineService
from flm.services.models import MAX_NAME, Alias, ModelService
from flm.services.security import SecurityService
from flm.store.folder import Folder
from tests.runtime.harness import running
from tests.support.demo import Demo, demo_engine


def set_alias(folder: Folder, alias: str, target: str) -> Alias:
    return asyncio.run(ModelService(folder).set_alias(alias, target))


def aliases(folder: Folder) -> dict[str, str]:
    return {each.alias: each.target for each in asyncio.run(ModelService(folder).aliases())}


def refusal(folder: Folder, alias: str, target: str) -> CommandError:
    before = aliases(folder)
    with pytest.raises(CommandError) as error:
        set_alias(folder, alias, target)
    assert aliases(folder) == before
    return error.value


def test_set_changed_listed_forgotten(folder: Folder) -> None:
    assert set_alias(folder, "small", "flm://a/m:7b") == Alias("small", "flm://a/m:7b")
    set_alias(folder, "big", "llama")
    set_alias(folder, "small", "flm://b/x/y:z")
    assert list(aliases(folder).items()) == [("big", "llama"), ("small", "flm://b/x/y:z")]
    assert asyncio.run(ModelService(folder).remove_alias("small")) == "small"
    assert aliases(folder) == {"big": "llama"}


@pytest.mark.parametrize("alias", ["nobody", "", "a\n", "\udcff"])
def test_one_that_is_not_there(folder: Folder, alias: str) -> None:
    with pytest.raises(CommandError) as error:
        asyncio.run(ModelService(folder).remove_alias(alias))
    assert error.value.code is CommandCode.CONFIG_NOT_SET
    assert "flm models alias list" in error.value.message


@pytest.mark.parametrize(
    "alias", ["", " ", " a", "a ", "a\nb", "a\x00", "\udcff", "flm://a/m", "FLM://x", "flm://", "a" * (MAX_NAME + 1)]
)
def test_what_is_no_alias(folder: Folder, alias: str) -> None:
    assert refusal(folder, alias, "flm://a/m").code is CommandCode.USAGE


@pytest.mark.parametrize("target", ["", "flm://", "flm://a", "flm://a/", "flm:///m", "a\tb", "m" * (MAX_NAME + 1)])
def test_what_is_no_target(folder: Folder, target: str) -> None:
    assert refusal(folder, "small", target).code is CommandCode.USAGE


@pytest.mark.parametrize("alias", ["a" * MAX_NAME, "gpt-4o", "my model", "org/model:7b", "モデル"])
def test_what_is_an_alias(folder: Folder, alias: str) -> None:
    set_alias(folder, alias, "flm://a/m")
    assert aliases(folder) == {alias: "flm://a/m"}


def test_no_alias_stands_for_an_alias(folder: Folder) -> None:
    set_alias(folder, "small", "flm://a/m")
    set_alias(folder, "plain", "llama")
    error = refusal(folder, "tiny", "small")
    assert error.code is CommandCode.CONFIG_INVALID
    assert "flm://a/m" in error.message
    assert "plain" in refusal(folder, "llama", "flm://a/m").message
    assert refusal(folder, "same", "same").code is CommandCode.CONFIG_INVALID


def test_one_that_leads_nowhere_is_said(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        set_alias(folder, "small", "flm://gone/m")
    assert "small is set and leads nowhere now: there is no engine 'gone'" in caplog.text
    assert "flm models list" in caplog.text
    assert "GET /v1/models" not in caplog.text


def test_one_that_leads_somewhere_is_not_warned_about(
    folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with demo_engine("openai") as engine, caplog.at_level(logging.WARNING):
        asyncio.run(EngineService(folder).add("here", "openai", engine.url))
        set_alias(folder, "byid", f"flm://here/{engine.model}")
        set_alias(folder, "byname", engine.model)
    assert caplog.text == ""


def test_one_holds_for_the_very_next_request(folder: Folder, tmp_path: Path) -> None:
    """With a running proxy of this folder: who an alias leads to, right after each call."""

    async def ask(port: int, key: str, model: str) -> tuple[int, str, bytes]:
        def chat() -> tuple[int, str, bytes]:
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            answer = response.read()
            connection.close()
            return response.status, str(json.loads(answer).get("model")), answer

        return await asyncio.to_thread(chat)

    async def main(engine: Demo) -> None:
        async with running(tmp_path, worker_module="flm.runtime.worker") as proxy:
            key = (await SecurityService(proxy.folder).create_key("test")).key
            await EngineService(proxy.folder).add("here", "openai", engine.url)
            models = ModelService(proxy.folder)
            assert (await ask(proxy.port, key, "small"))[0] == 404
            await models.set_alias("small", f"flm://here/{engine.model}")
            assert (await ask(proxy.port, key, "small"))[:2] == (200, "small")
            await models.set_alias("small", "flm://gone/m")
            assert b"there is no engine 'gone'" in (await ask(proxy.port, key, "small"))[2]
            await models.remove_alias("small")
            assert (await ask(proxy.port, key, "small"))[0] == 404

    with demo_engine("openai") as engine:
        asyncio.run(main(engine))


def test_those_that_lead_somewhere_are_listed_with_the_models(folder: Folder) -> None:
    async def main(url: str, name: str) -> None:
        await EngineService(folder).add("here", "openai", url)
        await EngineService(folder).add("gone", "openai", "http://127.0.0.1:1")
        models = ModelService(folder)
        (model,) = await models.models()
        for alias, target in (("byid", model.id), ("byname", name), ("nowhere", "flm://gone/m")):
            await models.set_alias(alias, target)
        listed = await models.models("here")
        assert listed == await models.models()
        assert [each.id for each in listed] == [model.id, "byid", "byname"]
        assert {(each.engine_id, each.name) for each in listed} == {("here", name)}

    with demo_engine("openai") as engine:
        asyncio.run(main(engine.url, engine.model))

"""What a key may do, on every route: scopes, models, engines; and how it can be sent."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from flm._native import key_id
from flm.policy.restrictions import Restriction
from flm.policy.scopes import SCOPES
from tests.proxy.harness import CHAT, EMBEDDINGS, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, serve

COMPLETIONS = "/v1/completions"
DOORS: Mapping[str, tuple[tuple[str, str, object], ...]] = {
    "models": (("GET", "/v1/models", None), ("GET", "/v1/models/flm://e/m", None), ("HEAD", "/v1/models", None)),
    "chat": (("POST", CHAT, chat("flm://down/x")),),
    "completions": (("POST", COMPLETIONS, {"model": "flm://down/x", "prompt": "p"}),),
    "embeddings": (("POST", EMBEDDINGS, {"model": "flm://down/x", "input": "p"}),),
    "passthrough": (("GET", "/engine/down/x", None), ("POST", "/engine/down/x", {})),
}
DOWN = engine("http://127.0.0.1:1", name="down", models=("x",), status="ErrorNetwork")
UP = engine("http://127.0.0.1:1", models=("m", "llama3.2:1b", "llama3.2:3b"))


def opened(client: Client) -> bool:
    """Whether the request came beyond the key's scopes: what is behind them is down, on purpose."""
    if client.status == 403:
        assert client.complete
        if client.scope["method"] != "HEAD":
            assert (client.code, client.error["type"]) == ("permission_denied", "permission_error")
            assert "scope" in client.error["message"]
        return False
    assert client.status in (200, 503)
    return True


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_opens_its_routes_and_no_other(scope: str) -> None:
    async def test() -> None:
        world = World(UP, DOWN)
        key = world.add_key(allowed=[scope])
        for door, requests in DOORS.items():
            for method, path, body in requests:
                client = await world.ask(method, path, body, key=key)
                assert opened(client) == (door == scope or (scope == "inference" and door != "passthrough")), path
        assert (await world.ask(key=key)).status == 200
        assert (await world.ask("GET", "/nowhere", key=key)).status == 404, "no scope is needed to be told so"

    run(test())


def test_a_key_without_any_scope_opens_nothing() -> None:
    async def test() -> None:
        world = World(UP, DOWN)
        key = world.add_key(allowed=[])
        for method, path, body in (request for requests in DOORS.values() for request in requests):
            assert not opened(await world.ask(method, path, body, key=key))

    run(test())


def test_a_scope_is_asked_for_before_the_body_is_read() -> None:
    async def test() -> None:
        world = World(UP)
        key = world.add_key(allowed=["models"])
        client = world.client("POST", CHAT, key=key, hold=True, headers={"content-length": "1000000"})
        await client.start()
        assert (client.status, client.receives) == (403, 0)
        assert world.lines[-1]["api_key_id"] == key_id(key.encode())

    run(test())


# --- models and engines -----------------------------------------------------------------------------------------


async def listed(world: World, key: str) -> list[str]:
    client = await world.ask("GET", "/v1/models", key=key)
    assert client.status == 200
    return [entry["id"] for entry in json.loads(client.body)["data"]]


async def refused(world: World, key: str, model: str) -> bool:
    """Whether the key may not use the model; the same for asking it, and for asking about it."""
    asked = await world.chat(model, key=key)
    shown = await world.ask("GET", f"/v1/models/{model}", key=key)
    assert (asked.status == 403) == (shown.status == 403)
    if asked.status == 403:
        assert asked.code == shown.code == "permission_denied"
        assert asked.error["param"] == "model"
        return True
    return False


def test_a_key_for_some_models_sees_and_uses_those_alone() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b'{"id":"c","model":"m","choices":[]}'))]) as scripted:
            up = engine(scripted.url, models=("m", "llama3.2:1b", "llama3.2:3b"))
            other = engine("http://127.0.0.1:1", name="o", models=("m", "llama-guard"))
            world = World(up, other)
            key = world.add_key(restriction=Restriction(models=("llama3*", "flm://o/m")))
            world.publish(up, other, aliases={"small": "flm://e/llama3.2:1b", "plain": "flm://e/m"})
            assert await listed(world, key) == ["flm://e/llama3.2:1b", "flm://e/llama3.2:3b", "flm://o/m", "small"]
            for model in ("flm://e/llama3.2:1b", "llama3.2:3b", "small"):
                assert not await refused(world, key, model)
                assert (await world.chat(model, key=key)).status == 200
            for model in ("flm://e/m", "flm://o/llama-guard", "llama-guard", "plain"):
                assert await refused(world, key, model)
            for model in ("flm://e/none", "flm://nowhere/m", "none"):
                assert await refused(world, key, model), "there or not: it is not told"
            assert (await world.ask("GET", "/v1/models/m", key=key)).status == 200, "the one of two that it may use"
            assert len(await listed(world, world.key)) == 7, "other keys see all"
            await world.app.aclose()

    run(test())


def test_a_key_for_some_models_does_not_pass_through() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"{}"))]) as scripted:
            world = World(engine(scripted.url))
            key = world.add_key(restriction=Restriction(models=("*",)))
            world.publish(engine(scripted.url))
            client = await world.ask("GET", "/engine/e/x", key=key)
            assert (client.status, client.code) == (403, "permission_denied")
            assert scripted.peers == []

    run(test())


def test_a_key_for_one_engine_sees_and_uses_that_alone_also_by_pass_through() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"{}"))]) as scripted:
            up, other = engine(scripted.url), engine(scripted.url, name="o", models=("n",))
            world = World(up, other)
            key = world.add_key(restriction=Restriction(engines=("e",)))
            world.publish(up, other)
            assert await listed(world, key) == ["flm://e/m"]
            assert not await refused(world, key, "flm://e/m")
            for model in ("flm://o/n", "n", "flm://nowhere/n"):
                assert await refused(world, key, model)
            assert (await world.ask("GET", "/engine/e/x", key=key)).status == 200
            for engine_id in ("o", "nowhere"):
                client = await world.ask("GET", f"/engine/{engine_id}/x", key=key)
                assert (client.status, client.code) == (403, "permission_denied"), "there or not: it is not told"
            await world.app.aclose()

    run(test())


def test_a_name_of_several_engines_leads_to_the_one_the_key_may_use() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b'{"id":"c","model":"m","choices":[]}'))]) as scripted:
            engines = (engine(scripted.url), engine("http://127.0.0.1:1", name="o"))
            world = World(*engines)
            key = world.add_key(restriction=Restriction(engines=("e",)))
            world.publish(*engines)
            assert (await world.chat("m")).status == 400
            assert (await world.chat("m", key=key)).status == 200
            await world.app.aclose()

    run(test())


def test_a_restricted_key_opens_nothing_before_its_restriction_is_published() -> None:
    async def test() -> None:
        world = World(UP)
        key = world.add_key(restriction=Restriction(models=("m",)))  # in the keyring, not yet in the snapshot
        assert await listed(world, key) == []
        assert await refused(world, key, "flm://e/m")
        world.publish(UP)
        assert await listed(world, key) == ["flm://e/m"]

    run(test())


# --- how a key can be sent: the table of docs/keys.md --------------------------------------------------------------


@pytest.mark.parametrize("word", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_word_before_a_key_is_taken_in_any_case(word: str) -> None:
    async def test() -> None:
        world = World(UP)
        client = await world.ask("GET", "/v1/models", key=None, headers={"authorization": f"{word} {world.key}"})
        assert client.status == 200

    run(test())


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "{key}"},
        {"api-key": "{key}"},
        {"cookie": "authorization=Bearer {key}; key={key}"},
        {"authorization": "{key}"},
        {"authorization": "Basic {key}"},
        {"authorization": "Bearer {key}, Bearer {key}"},
        {"proxy-authorization": "Bearer {key}"},
    ],
)
def test_a_key_anywhere_else_is_no_key(headers: dict[str, str]) -> None:
    async def test() -> None:
        world = World(UP)
        sent = {name: value.format(key=world.key) for name, value in headers.items()}
        client = await world.ask("GET", "/v1/models", key=None, headers=sent)
        assert (client.status, client.code) == (401, "invalid_api_key")
        assert world.used == []

    run(test())


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "access_token", "authorization"])
def test_a_key_in_the_query_is_no_key(name: str) -> None:
    async def test() -> None:
        world = World(UP)
        client = await world.ask("GET", f"/v1/models?{name}={world.key}", key=None)
        assert (client.status, client.code) == (401, "invalid_api_key")
        assert world.key not in b"".join(world.raw).decode()

    run(test())


def test_two_authorization_lines_are_no_key() -> None:
    async def test() -> None:
        world = World(UP)
        line = (b"authorization", b"Bearer " + world.key.encode())
        assert (await world.ask("GET", "/v1/models", key=None, headers=[line, line])).status == 401

    run(test())


# --- used -------------------------------------------------------------------------------------


def test_a_valid_key_is_told_as_used_whatever_it_may_do_and_a_bad_one_is_not() -> None:
    async def test() -> None:
        world = World(UP)
        narrow, gone = world.add_key(allowed=["chat"]), world.add_key(revoked=True)
        await world.ask("GET", "/v1/models")
        await world.ask("GET", "/v1/models", key=narrow)
        await world.ask("GET", "/v1/models", key=gone)
        await world.ask("GET", "/v1/models", key=None)
        await world.ask("GET", "/health")
        assert world.used == [key_id(world.key.encode()), key_id(narrow.encode())]

    run(test())

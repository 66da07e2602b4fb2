"""Who asks, as engines are told: nothing unless it was set, and then FLM's own finding only, on every route."""

from __future__ import annotations

from typing import Any

import pytest

from flm.policy.document import Policy
from tests.proxy.harness import CHAT, EMBEDDINGS, World, engine, run
from tests.support.engine import ScriptedEngine, answer, receive, say, serve, stall

COMPLETIONS = "/v1/completions"
BUSY = answer(503, b"{}", b"content-type: application/json")  # what became of a request does not matter here
SCRIPT = [receive(), say(BUSY), stall()]
CHATTED = {"model": "flm://e/m", "messages": [{"role": "user", "content": "hello"}]}
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", CHAT, CHATTED),
    ("POST", CHAT, {**CHATTED, "stream": True}),
    ("POST", COMPLETIONS, {"model": "flm://e/m", "prompt": "hello"}),
    ("POST", COMPLETIONS, {"model": "flm://e/m", "prompt": "hello", "stream": True}),
    ("POST", EMBEDDINGS, {"model": "flm://e/m", "input": "hello"}),
    ("GET", "/engine/e/x", None),
    ("POST", "/engine/e/x", {"a": 1}),
]
LIES = {
    "x-forwarded-for": "203.0.113.9, 192.0.2.7",
    "x-real-ip": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
    "x-forwarded-host": "203.0.113.9",
    "connection": "x-forwarded-for",
}
BEHIND_A_PROXY = Policy(trusted_proxies=("127.0.0.1",))
KINDS = ("openai", "vllm", "llamacpp", "lmstudio", "ollama")


def told(
    route: tuple[str, str, Any],
    kind: str = "openai",
    *,
    policy: Policy = Policy(),  # noqa: B008 - frozen
    address: str = "127.0.0.1",
    **settings: Any,
) -> list[bytes]:
    """Every `x-forwarded-for` that the engine got."""
    method, path, body = route
    heads: list[bytes] = []

    async def test() -> None:
        async with ScriptedEngine(SCRIPT) as scripted:
            settings.setdefault("passthrough_open_routes", "*:* /*")
            world = World(engine(scripted.url, kind), policy=policy, **settings)
            await world.ask(method, path, body, headers=LIES, address=address)
            await world.app.aclose()
            (peer,) = scripted.peers
            heads.append(bytes(peer.received).partition(b"\r\n\r\n")[0])

    run(test())
    assert b"203.0.113.9" not in heads[0]
    lines = [line.partition(b":") for line in heads[0].split(b"\r\n")]
    return [value.strip() for name, _, value in lines if name.lower() == b"x-forwarded-for"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[1])
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_is_told_what_flm_found_and_only_if_it_was_set(route: tuple[str, str, Any], kind: str) -> None:
    assert told(route, kind, policy=BEHIND_A_PROXY) == []
    assert told(route, kind, policy=BEHIND_A_PROXY, engine_forward_client_address=True) == [b"192.0.2.7"]
    assert told(route, kind, engine_forward_client_address=True) == [b"127.0.0.1"]  # its own word counts for nothing


@pytest.mark.parametrize(("peer", "written"), [("2001:DB8:0:0::1", b"2001:db8::1"), ("::ffff:192.0.2.1", b"192.0.2.1")])
def test_an_address_is_told_in_its_shortest_form(peer: str, written: bytes) -> None:
    for route in (ROUTES[0], ROUTES[-1]):
        assert told(route, address=peer, engine_forward_client_address=True) == [written]


def test_the_setting_holds_for_the_next_request() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, BUSY)]) as scripted:
            world = World(engine(scripted.url))
            for wanted in (False, True, False):
                world.publish(engine(scripted.url), engine_forward_client_address=wanted)
                await world.ask(*ROUTES[0])
            await world.app.aclose()
            asked = bytes(scripted.peers[0].received).split(b"POST ")[1:]
            assert [b"x-forwarded-for: 127.0.0.1" in each for each in asked] == [False, True, False]

    run(test())

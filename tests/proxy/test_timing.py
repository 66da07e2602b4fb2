"""The header `server-timing`: for keys that may know, on every route, with the engine's share where there is one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.proxy.harness import CHAT, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, receive, say

ANSWER = answer(200, b'{"choices":[]}', b"content-type: application/json", b"server-timing: theirs;dur=1")
OWN = re.compile(rb"flm;dur=\d+\.\d\d\Z").match
BOTH = re.compile(rb"flm;dur=\d+\.\d\d, engine;dur=\d+\.\d\d\Z").match


def timing(
    method: str, path: str, body: Any = None, scopes: tuple[str, ...] = ("inference", "passthrough", "timing")
) -> bytes | None:
    """What the header of one answer says."""
    found: list[bytes | None] = []

    async def test() -> None:
        async with ScriptedEngine([receive(), say(ANSWER)]) as scripted:
            world = World(engine(scripted.url), passthrough_open_routes="*:* /*")
            key = world.add_key(allowed=scopes)
            client = await world.ask(method, path, body, key=key)
            lines = [value for name, value in client.messages[0]["headers"] if name == b"server-timing"]
            assert len(lines) <= 1
            found.append(lines[0] if lines else None)
            await world.app.aclose()

    run(test())
    return found[0]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT, chat("flm://e/m")),
        ("POST", CHAT, chat("flm://e/m", stream=True)),
        ("GET", "/engine/e/x", None),
        ("POST", "/engine/e/x", {"a": 1}),
    ],
)
def test_the_engine_has_a_share(method: str, path: str, body: Any) -> None:
    said = timing(method, path, body)
    assert said is not None
    assert BOTH(said), said


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/v1/models", None), ("POST", CHAT, chat("flm://e/nothing")), ("GET", "/v1/nowhere", None)],
)
def test_where_no_engine_was_asked_there_is_none(method: str, path: str, body: Any) -> None:
    said = timing(method, path, body)
    assert said is not None
    assert OWN(said), said


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/engine/e/x"])
def test_nobody_else_is_told(path: str) -> None:
    method, body = ("POST", chat("flm://e/m")) if path == CHAT else ("GET", None)
    said = timing(method, path, body, scopes=("inference", "passthrough"))
    assert said is None
    assert timing("GET", "/health", scopes=("timing",)) is None  # asks for no key, and looks at none

"""Golden pairs of the dialects that pass answers on: what a recorded engine wrote comes out, and nothing is changed but
what FLM promises to put right.

The model's name is the caller's; usage comes if it was asked for; each choice gives its role once; thoughts have one
name; the pieces of one call in one delta are one piece. Any other event passes byte for byte.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from flm.engines.call import Endpoint
from flm.engines.registry import DIALECTS
from tests.support.belonging import Recorded, recorded
from tests.support.translating import CALLER_MODEL, Outcome, every_way, payloads

# Those that put no more right than all others do; what else one does, its own tests say.
UNCHANGED = ("llamacpp", "openai", "vllm")
PASSED = [
    pytest.param(one, id=one.id)
    for kind in UNCHANGED
    for one in recorded(kind)
    if one.exchange.status == 200 and one.call.endpoint is not Endpoint.EMBEDDINGS
]


class Expected:
    """The events of one answer as clients must get them."""

    def __init__(self) -> None:
        self._begun: set[int] = set()

    def event(self, event: bytes) -> bytes | dict[str, Any]:
        """The very bytes where nothing is to be put right, else what the event must say."""
        text = event.removeprefix(b"data: ")
        if not text.startswith(b"{"):
            return event
        parsed: dict[str, Any] = json.loads(text)
        for choice in parsed.get("choices", []):
            self._choice(choice)
        return event if parsed == json.loads(text) else parsed

    def _choice(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message") or {}
        if said.get("reasoning") is not None:
            renamed = {"reasoning_content" if name == "reasoning" else name: value for name, value in said.items()}
            said.clear()
            said.update(renamed)
        if not choice.get("delta"):
            return
        if choice["index"] in self._begun:
            said.pop("role", None)
        self._begun.add(choice["index"])
        if said.get("tool_calls"):
            said["tool_calls"] = pieces_joined(said["tool_calls"])


def pieces_joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        function = piece.setdefault("function", {})
        if piece["index"] in joined:
            joined[piece["index"]]["function"]["arguments"] += function.get("arguments") or ""
        else:
            joined[piece["index"]] = piece
            if "name" in function:
                function.setdefault("arguments", "")
    return list(joined.values())


def expected(one: Recorded) -> list[bytes | dict[str, Any]]:
    """The events of a chat answer as they must come out; a whole answer is one."""
    events = renamed(one.exchange.body).split(b"\n\n")
    if one.call.peek.stream and not one.call.peek.include_usage:
        events = [event for event in events if b'"usage":{' not in event]
    answer = Expected()
    return [answer.event(event) for event in events]


def renamed(body: bytes) -> bytes:
    return re.sub(rb'"model":"[^"]*"', b'"model":"' + CALLER_MODEL.encode() + b'"', body)


def check_events(found: bytes, wanted: list[bytes | dict[str, Any]]) -> None:
    events = found.split(b"\n\n")
    assert len(events) == len(wanted)
    for event, want in zip(events, wanted, strict=True):
        assert (event if isinstance(want, bytes) else json.loads(event.removeprefix(b"data: "))) == want


@pytest.mark.parametrize("one", PASSED)
def test_an_answer_passes_and_nothing_else_is_changed(one: Recorded) -> None:
    found = every_way(DIALECTS[one.kind], one.call, 200, one.exchange.headers, one.exchange.body)
    if one.call.endpoint is Endpoint.COMPLETIONS:
        check_text(one, found)
        return
    wanted = expected(one)
    if found.error is not None:  # it came after so many events, or before any
        wanted = [*wanted[: found.data.count(b"\n\n")], b""]
    check_events(found.data, wanted)


def check_text(one: Recorded, found: Outcome) -> None:
    wanted = renamed(one.exchange.body)
    if found.error is not None:
        assert wanted.startswith(found.data)
    elif one.call.peek.stream:
        check_usage_apart(wanted, found.data, asked=one.call.peek.include_usage)
    else:
        assert found.data == wanted


def check_usage_apart(wanted: bytes, found: bytes, *, asked: bool) -> None:
    """A streamed text is as the engine wrote it, but usage has a chunk of its own, and only if it was asked for."""
    said, read = ([json.loads(each) for each in payloads(body) if each != b"[DONE]"] for body in (wanted, found))
    counts = [chunk.pop("usage", None) for chunk in said]
    told = [chunk.pop("usage", None) for chunk in read]
    assert [chunk for chunk in read if chunk["choices"]] == [chunk for chunk in said if chunk["choices"]]
    assert [chunk["choices"] == [] for chunk in read if chunk["choices"] == []] == [True] * asked
    assert told[:-1] == [None] * (len(told) - 1)
    assert told[-1] == (next(each for each in reversed(counts) if each) if asked else None)

"""Within a stream the id and the time never change, and each choice says its role once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines.registry import DIALECTS
from flm.wire.chunks import DONE
from tests.support.translating import CALLER_MODEL, call, chat, every_way, payloads

SSE = {b"content-type": b"text/event-stream"}


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "a", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [choice], **fields}


def translated(*chunks: dict[str, Any], kind: str = "openai") -> list[dict[str, Any]]:
    body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks) + DONE
    found = every_way(DIALECTS[kind], call(chat(stream=True)), 200, SSE, body)
    assert found.error is None
    return [json.loads(payload) for payload in payloads(found.data) if payload != b"[DONE]"]


def test_the_first_id_and_time_hold_to_the_end() -> None:
    found = translated(
        chunk({"role": "assistant"}),
        chunk({"content": "x"}, id="b", created=6),
        chunk({"content": "y"}, created=7),
        chunk({}, finish="stop", id="c"),
    )
    assert {(each["id"], each["created"]) for each in found} == {("a", 5)}
    assert [each["choices"][0]["delta"] for each in found] == [
        {"role": "assistant"},
        {"content": "x"},
        {"content": "y"},
        {},
    ]
    assert {each["model"] for each in found} == {CALLER_MODEL}


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_id_does_not_hold(empty: str | None) -> None:
    """One service opens a stream with an empty id, and time 0, before its first token."""
    found = translated(chunk({}, id=empty, created=0), chunk({"content": "x"}), chunk({}, finish="stop", id="b"))
    assert [each["id"] for each in found] == [empty, "a", "a"]
    assert [each["created"] for each in found] == [0, 5, 5]


def test_a_field_that_is_not_there_stays_away() -> None:
    bare = chunk({"content": "x"})
    del bare["id"], bare["created"]
    assert "id" not in translated(bare, chunk({}, finish="stop"))[0]


def test_each_choice_says_its_role_once() -> None:
    said = [
        chunk({"role": "assistant", "content": "x"}),
        chunk({"role": "assistant", "content": "y"}, index=1),
        chunk({"role": "assistant", "content": "z"}),
        chunk({"role": "assistant"}, index=1, finish="stop"),
    ]
    deltas = [each["choices"][0]["delta"] for each in translated(*said)]
    assert deltas == [
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"content": "z"},
        {},
    ]


def test_a_role_in_a_text_is_no_role() -> None:
    text = 'say "role": "assistant"'
    found = translated(chunk({"role": "assistant", "content": ""}), chunk({"content": text}), chunk({}, finish="stop"))
    assert found[1]["choices"][0]["delta"] == {"content": text}


def test_what_is_in_order_passes_byte_for_byte() -> None:
    body = b'data: {"id":"a" , "created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n' + DONE
    found = every_way(DIALECTS["openai"], call(chat(stream=True)), 200, SSE, body)
    assert found.data == body.replace(b'"m"', json.dumps(CALLER_MODEL).encode())

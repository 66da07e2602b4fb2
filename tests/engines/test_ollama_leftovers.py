"""Nothing inside a message, a tool or a format is lost in silence on its way to Ollama."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines.ollama import DIALECT
from tests.support.translating import call, chat

PNG = "data:image/png;base64,AAAA"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def told(body: dict[str, Any]) -> list[str]:
    changes = DIALECT.begin(call(body)).changes
    assert {change.action for change in changes} <= {"dropped"}
    return [change.parameter for change in changes]


def of_messages(*messages: Any) -> list[str]:
    return told({"messages": list(messages)})


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"refusal": "no"}, ["refusal"]),
        ({"audio": {"id": "a"}}, ["audio"]),
        ({"images": ["AAAA"]}, ["images"]),
        ({"thinking": "hm"}, ["thinking"]),
        ({"reasoning_details": [{"text": "hm"}]}, ["reasoning_details"]),
        ({"function_call": {"name": "f", "arguments": "{}"}}, ["function_call"]),
        ({"cache_control": {"type": "ephemeral"}}, ["cache_control"]),
        ({"name": "Ada"}, ["name"]),
        ({"tool_call_id": "c1"}, ["tool_call_id"]),
        ({"anything": 0, "else": False}, ["anything", "else"]),
        ({"reasoning_content": "hm", "reasoning": "no"}, ["reasoning"]),
        ({"reasoning_content": "hm", "reasoning": "hm"}, []),
        ({"tool_calls": [{**CALLED, "extra": 1}]}, ["extra"]),
        ({"tool_calls": [{**CALLED, "type": "custom"}]}, ["type"]),
        ({"tool_calls": [{**CALLED, "function": {**CALLED["function"], "x": 1}}]}, ["x"]),  # type: ignore[dict-item]
        ({"tool_calls": [{**CALLED, "index": 0}], "reasoning": "hm"}, []),
        ({"refusal": None, "audio": None, "annotations": [], "images": [], "x": {}, "y": ""}, []),
    ],
)
def test_an_answer_of_before(more: dict[str, Any], names: list[str]) -> None:
    assert of_messages({"role": "assistant", "content": "x", **more}) == [f"messages.{name}" for name in names]


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "reasoning"])
def test_what_only_an_answer_can_have(key: str) -> None:
    value: Any = [CALLED] if key == "tool_calls" else "hm"
    assert of_messages({"role": "user", "content": "x", key: value}) == [f"messages.{key}"]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}, ["cache_control"]),
        ({"type": "text", "text": "x", "refusal": "no"}, ["refusal"]),
        ({"type": "image_url", "image_url": {"url": PNG, "detail": "high"}}, ["detail"]),
        ({"type": "image_url", "image_url": {"url": PNG, "detail": "auto"}}, []),
        ({"type": "image_url", "image_url": {"url": PNG}, "text": "a cat"}, ["text"]),
    ],
)
def test_a_part(part: dict[str, Any], names: list[str]) -> None:
    assert of_messages({"role": "user", "content": [part]}) == [f"messages.{name}" for name in names]


@pytest.mark.parametrize(
    ("name", "id_", "names"),
    [
        ("f", "c1", []),
        ("g", "c1", ["messages.name"]),  # the call says f, and that goes
        ("g", "c2", []),
        (None, "c1", []),
    ],
)
def test_the_name_of_a_result(name: str | None, id_: str, names: list[str]) -> None:
    result = {"role": "tool", "tool_call_id": id_, "name": name, "content": "x"}
    assert of_messages({"role": "assistant", "tool_calls": [CALLED]}, result) == names


def test_each_name_is_told_once_and_shortened() -> None:
    message = {"role": "assistant", "content": "x", "name": "Ada", "refusal": "no", "k" * 200: 1}
    assert of_messages(message, message) == ["messages.name", "messages.refusal", "messages." + "k" * 55]


def test_tools() -> None:
    assert told(chat(tools=[TOOL, {**TOOL, "cache_control": {"type": "ephemeral"}}])) == ["tools.cache_control"]
    assert told(chat(tools=[{**TOOL, "cache_control": 1}], tool_choice="none")) == []


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}, []),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "description": "d"}}, ["description"]),
        ({"type": "json_schema", "json_schema": {"schema": {}}, "schema": {"type": "object"}}, ["schema"]),
        ({"type": "json_object", "json_schema": {"schema": {"type": "object"}}}, ["json_schema"]),
        ({"type": "text", "schema": {"type": "object"}}, ["schema"]),
    ],
)
def test_formats(wanted: dict[str, Any], names: list[str]) -> None:
    assert told(chat(response_format=wanted)) == [f"response_format.{name}" for name in names]


def test_thoughts_under_the_other_name_are_not_lost_beside_an_empty_one() -> None:
    message = {"role": "assistant", "content": "x", "reasoning_content": "", "reasoning": "hm"}
    translation = DIALECT.begin(call({"messages": [message]}))
    assert json.loads(translation.request.body)["messages"][0]["thinking"] == "hm"
    assert translation.changes == ()

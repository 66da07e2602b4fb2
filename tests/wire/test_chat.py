"""The typed view of a chat request names the field that is wrong, and leaves the rest alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from flm.errors import RequestError
from flm.wire.chat import (
    ChatParameters,
    Message,
    Part,
    Tool,
    content_parts,
    modalities,
    named_tool,
    parameters,
    tool_name,
)
from flm.wire.openai import peek

Raw = msgspec.Raw
HELLO = [{"role": "user", "content": "Hi"}]


def read(**fields: Any) -> ChatParameters:
    return parameters(peek(json.dumps({"model": "m", "messages": HELLO, **fields}).encode()).fields, ChatParameters)


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


def test_known_fields_are_typed_and_unknown_ones_ignored() -> None:
    found = read(temperature=1, stop=["a"], n=None, unknown={"x": 1})
    assert (found.temperature, found.stop, found.n) == (1.0, ("a",), None)
    assert bytes(found.messages[0].content) == b'"Hi"'


def test_a_null_is_an_absent_field() -> None:
    nulls = {field.name: None for field in msgspec.structs.fields(ChatParameters) if field.name != "messages"}
    assert read(**nulls) == read()


@pytest.mark.parametrize("messages", [None, [], "x", {}, [None], [{"content": "x"}]])
def test_messages_must_be_there(messages: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read(messages=messages)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestError, match="`messages` is missing"):
        parameters({}, ChatParameters)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ()),
        ("a", (Part("text", "a"),)),
        ([], ()),
        ([{"type": "text", "text": "a"}, {"type": "x"}], (Part("text", "a"), Part("x"))),
    ],
)
def test_content(content: Any, expected: tuple[Part, ...]) -> None:
    assert content_parts(raw(content), "here") == expected


@pytest.mark.parametrize("content", [1, True, {}, ["a"], [{"text": "a"}], [{"type": 1}]])
def test_wrong_content(content: Any) -> None:
    with pytest.raises(RequestError) as caught:
        content_parts(raw(content), "messages[3].content")
    assert caught.value.param == "messages[3].content"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([], set()),
        (["text"], set()),
        (["image_url", "text"], {"image"}),
        (["input_audio", "video_url"], {"audio", "video"}),
    ],
)
def test_modalities(types: list[str], expected: set[str]) -> None:
    parts = raw([{"type": kind} for kind in types])
    assert modalities([Message("user", raw("image_url")), Message("user", parts)]) == expected


def test_names_of_tools() -> None:
    assert tool_name(Tool("function", raw({"name": "f", "x": 1}))) == "f"
    assert tool_name(Tool("custom")) is None
    with pytest.raises(RequestError):
        tool_name(Tool("function", raw({})))


def test_a_named_tool() -> None:
    assert named_tool({"type": raw("function"), "function": raw({"name": "f"})}) == "f"


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"type": "function"},
        {"type": "custom", "function": {"name": "f"}},
        {"type": "function", "function": {"name": 1}},
    ],
)
def test_a_named_tool_that_is_none(choice: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        named_tool({name: raw(value) for name, value in choice.items()})
    assert caught.value.param == "tool_choice"

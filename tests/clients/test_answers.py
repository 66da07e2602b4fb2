"""What the official clients read of good answers: one list of cases, both clients, every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from flm.demo import script
from tests.clients.conftest import ODD_MODEL, Target
from tests.clients.drivers import Client, succeed

PROMPT = "Where is Lima"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COUNT_NOTHING = frozenset({"lmstudio"})
"""They say that an embedding took no tokens."""
TEXT = script.reply(ODD_MODEL, PROMPT).text
THOUGHTS = "".join(script.reasoning(ODD_MODEL, PROMPT, 4))


def messages(directives: str = "", prompt: str = PROMPT) -> list[dict[str, Any]]:
    """A question; `directives` tell the engine how to behave."""
    system = [{"role": "system", "content": f"demo: {directives}"}] if directives else []
    return [*system, {"role": "user", "content": prompt}]


def one(reply: dict[str, Any]) -> dict[str, Any]:
    (choice,) = reply["choices"]
    return dict(choice)


@pytest.mark.parametrize("op", ["chat", "gather"])
def test_a_reply(client: Client, target: Target, op: str) -> None:
    options = {"stream_options": {"include_usage": True}} if op == "gather" else {}
    reply = succeed(client, target.server, op, {"model": target.chat, "messages": messages(), **options})
    choice = one(reply)
    assert (choice["content"], choice["finish"], choice["calls"]) == (TEXT, "stop", [])
    assert reply["model"] == target.chat
    prompt, completion, total = reply["usage"]
    assert prompt > 0
    assert completion >= len(TEXT.split())
    assert total == prompt + completion


def test_a_reply_that_is_cut_by_its_length(client: Client, target: Target) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = succeed(client, target.server, "chat", {"model": target.chat, "messages": messages(), name: 3})
        assert (len(one(reply)["content"].split()), one(reply)["finish"]) == (3, "length")


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream(client: Client, target: Target, usage: bool) -> None:
    args = {"model": target.chat, "messages": messages()}
    if usage:
        args["stream_options"] = {"include_usage": True}
    found = succeed(client, target.server, "stream", args)
    assert (found["content"], found["finishes"], found["models"]) == (TEXT, ["stop"], [target.chat])
    assert (len(found["ids"]), len(found["created"]), found["roles"]) == (1, 1, ["assistant"])
    assert found["chunks"] > len(TEXT.split())
    assert len(found["usages"]) == (1 if usage else 0)


def test_text_of_every_kind_survives(client: Client, target: Target) -> None:
    prompt = 'a "quoted" \\ back — 日本 🦊 \u2028 <b> \t end'
    expected = script.reply(ODD_MODEL, prompt).text
    args = {"model": target.chat, "messages": messages(prompt=prompt)}
    assert one(succeed(client, target.server, "chat", args))["content"] == expected
    split = {"model": target.chat, "messages": messages("split=1", prompt)}
    assert succeed(client, target.server, "stream", split)["content"] == expected


def test_reasoning(client: Client, target: Target) -> None:
    args = {"model": target.chat, "messages": messages("think=4")}
    choice = one(succeed(client, target.server, "chat", args))
    assert (choice["reasoning"].strip(), choice["content"]) == (THOUGHTS, TEXT)
    found = succeed(client, target.server, "stream", args)
    assert (found["reasoning"].strip(), found["content"]) == (THOUGHTS, TEXT)


@pytest.mark.parametrize("op", ["chat", "gather"])
@pytest.mark.parametrize("calls", [1, 2])
def test_tool_calls(client: Client, target: Target, op: str, calls: int) -> None:
    args = {"model": target.chat, "messages": messages(f"calls={calls}"), "tools": [WEATHER]}
    choice = one(succeed(client, target.server, op, args))
    assert choice["calls"] == [["get_weather", {"city": "Lima"}]] * calls
    assert choice["finish"] == "tool_calls"
    assert len(set(choice["ids"]) - {"", None}) == calls


@pytest.mark.parametrize("op", ["chat", "gather"])
def test_the_result_of_a_tool_gets_its_answer(client: Client, target: Target, op: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Lima"}'}}
    history = [
        *messages(),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny in Lima"},
    ]
    choice = one(succeed(client, target.server, op, {"model": target.chat, "messages": history, "tools": [WEATHER]}))
    assert (choice["content"], choice["finish"]) == (script.reply(ODD_MODEL, "sunny in Lima").text, "stop")


def test_structured_output(client: Client, target: Target) -> None:
    parsed = succeed(client, target.server, "parse", {"model": target.chat, "messages": messages()})
    assert parsed == {"city": "Lima", "visits": 1.5}


def test_a_text_that_is_continued(client: Client, target: Target) -> None:
    args = {"model": target.chat, "prompt": PROMPT, "max_tokens": 5}
    whole = succeed(client, target.server, "complete", args)
    ((text, finish),) = whole["texts"]
    assert (len(text.split()), finish, whole["model"]) == (5, "length", target.chat)
    assert whole["usage"][0] > 0
    found = succeed(client, target.server, "complete_stream", args | {"stream_options": {"include_usage": True}})
    assert (found["content"], found["finishes"], found["models"]) == (text, ["length"], [target.chat])
    assert (len(found["ids"]), len(found["created"]), found["usages"]) == (1, 1, [whole["usage"]])
    assert succeed(client, target.server, "complete_stream", args)["usages"] == []


def test_embeddings(client: Client, target: Target) -> None:
    texts = ["one", "two words"]
    expected = [script.embedding(text) for text in texts]
    for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        if client.name == "node" and more.get("encoding_format") == "base64":
            continue  # it hands the text on as it is
        found = succeed(client, target.server, "embed", {"model": target.embed, "input": texts, **more})
        if isinstance(found["vectors"][0], list):
            assert [[round(value, 6) for value in vector] for vector in found["vectors"]] == [
                [round(value, 6) for value in vector] for vector in expected
            ]
        assert found["model"] == target.embed
        assert found["usage"][0] > 0 or target.kind in COUNT_NOTHING


def test_models(client: Client, target: Target) -> None:
    assert {target.chat, target.embed, target.slow} <= set(succeed(client, target.server, "models", {}))
    for name in (target.chat, target.embed):
        assert succeed(client, target.server, "model", {"id": name}) == name

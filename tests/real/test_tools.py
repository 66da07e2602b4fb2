"""Tool calls of every real engine: some come without an id, some on the last line, some in pieces."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.real.asking import WEATHER_TOOL, ask, ask_streamed, messages
from tests.real.conftest import Target

CASES: dict[str | None, tuple[str, list[str]]] = {
    None: ("", ["Paris"]),
    "twotools": ("", ["Tokyo", "Oslo"]),
    "texttool": ("Let me look.", ["Rome"]),
    "splittool": ("", ["Lima"]),
}
"""Script -> the text before the calls, and the city of each call. The first is what the model does by itself."""


@pytest.mark.parametrize("script", CASES)
def test_streamed_calls(client: openai.OpenAI, target: Target, script: str | None) -> None:
    text, cities = CASES[script]
    streamed = ask_streamed(client, target.model("tools"), script, tools=[WEATHER_TOOL])
    assert streamed.content == text
    assert list(streamed.calls) == list(range(len(cities)))
    assert [name for _, name, _ in streamed.calls.values()] == ["get_weather"] * len(cities)
    assert [json.loads(arguments) for _, _, arguments in streamed.calls.values()] == [{"city": c} for c in cities]
    assert len({identity for identity, _, _ in streamed.calls.values()} - {""}) == len(cities)
    assert streamed.finish_reasons == ["tool_calls"]


@pytest.mark.parametrize("script", CASES)
def test_calls_in_a_whole_answer(client: openai.OpenAI, target: Target, script: str | None) -> None:
    text, cities = CASES[script]
    choice = ask(client, target.model("tools"), script, tools=[WEATHER_TOOL]).choices[0]
    assert (choice.message.content or "") == text
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name) for call in calls] == [("function", "get_weather")] * len(cities)
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": city} for city in cities]
    assert len({call.id for call in calls} - {"", None}) == len(cities)
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("script", CASES)
def test_the_clients_own_accumulator_accepts_the_pieces(
    client: openai.OpenAI, target: Target, script: str | None
) -> None:
    _, cities = CASES[script]
    with client.chat.completions.stream(
        model=target.model("tools"), messages=messages(script), tools=[WEATHER_TOOL]
    ) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": city} for city in cities]


def test_a_result_given_back_gets_its_answer(client: openai.OpenAI, target: Target) -> None:
    asked = ask(client, target.model("tools"), tools=[WEATHER_TOOL]).choices[0].message
    history: list[Any] = [
        {"role": "user", "content": "Weather in Paris?"},
        asked.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "sunny"},
    ]
    more: dict[str, Any] = {"model": target.model("tools"), "messages": history, "tools": [WEATHER_TOOL]}
    answer = client.chat.completions.create(**more).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("It is sunny there.\n", "stop")
    with client.chat.completions.create(**more, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "It is sunny there.\n"

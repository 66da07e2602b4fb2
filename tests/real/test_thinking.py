"""Reasoning comes apart from the answer, whatever each engine calls it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.real.asking import ask, ask_streamed
from tests.real.conftest import Target

REASONING, ANSWER = "First I ponder", "Then we speak"
ASKED: tuple[dict[str, Any], ...] = ({}, {"reasoning_effort": "medium"})
"""The oldest engine takes no level of effort, and unasked leaves the thoughts in the text."""


@pytest.mark.parametrize("asked", ASKED)
def test_streamed_reasoning_is_apart_from_content(client: openai.OpenAI, target: Target, asked: dict[str, Any]) -> None:
    streamed = ask_streamed(client, target.model("think"), "think", **asked)
    assert (streamed.reasoning, streamed.content) == (REASONING, ANSWER)
    assert streamed.finish_reasons == ["stop"]


@pytest.mark.parametrize("asked", ASKED)
def test_reasoning_in_a_whole_answer_is_apart(client: openai.OpenAI, target: Target, asked: dict[str, Any]) -> None:
    message = ask(client, target.model("think"), "think", **asked).choices[0].message
    assert (message.reasoning_content, message.content) == (REASONING, ANSWER)


def test_a_model_that_cannot_think_answers_all_the_same(client: openai.OpenAI, target: Target) -> None:
    assert ask(client, target.model(), reasoning_effort="medium").choices[0].finish_reason == "stop"

"""Reasoning comes apart from the answer, whatever each engine calls it."""

from __future__ import annotations

import openai

from tests.real.asking import ask, ask_streamed
from tests.real.conftest import Target

REASONING, ANSWER = "First I ponder", "Then we speak"


def test_streamed_reasoning_is_apart_from_content(client: openai.OpenAI, target: Target) -> None:
    streamed = ask_streamed(client, target.model("think"), "think", reasoning_effort="medium")
    assert (streamed.reasoning, streamed.content) == (REASONING, ANSWER)
    assert streamed.finish_reasons == ["stop"]


def test_reasoning_in_a_whole_answer_is_apart_from_content(client: openai.OpenAI, target: Target) -> None:
    choice = ask(client, target.model("think"), "think", reasoning_effort="medium").choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == (REASONING, ANSWER)


def test_a_model_that_cannot_think_answers_all_the_same(client: openai.OpenAI, target: Target) -> None:
    assert ask(client, target.model(), reasoning_effort="medium").choices[0].finish_reason == "stop"

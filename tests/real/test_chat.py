"""Plain answers of every real engine, streamed and not, as the official client reads them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.real.asking import HELLO, ask, ask_streamed, messages
from tests.real.conftest import CHAT_ENGINES, MODELS, Target
from tests.real.installation import Installation

HELLO_TOKENS = 7
"""Six words and the end of the text."""
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
}
AT_ONCE = 4
"""Streams of each engine and script at the same time: 64 in all."""
REPLIES = {"utf8": "日 😀", "escape": '<b> & "quoted"\\back\n\n\u2028\t', "empty": ""}


def test_stream_is_exact_and_well_formed(client: openai.OpenAI, target: Target) -> None:
    streamed = ask_streamed(client, target.model())
    assert streamed.content == HELLO
    assert streamed.finish_reasons == ["stop"]
    assert streamed.roles == ["assistant"]
    assert streamed.models == {target.model()}
    assert len(streamed.ids) == len(streamed.created) == 1
    assert streamed.ids != {""}
    assert streamed.usages == []
    assert streamed.chunks >= HELLO_TOKENS, "the answer came in one lump"


def test_stream_tells_usage_when_asked(client: openai.OpenAI, target: Target) -> None:
    streamed = ask_streamed(client, target.model(), stream_options={"include_usage": True})
    assert streamed.content == HELLO
    (usage,) = streamed.usages
    assert usage.completion_tokens == HELLO_TOKENS
    assert usage.prompt_tokens in (5, 6)  # the engine's own template may spend one more than the model's
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_two_streams_have_two_ids(client: openai.OpenAI, target: Target) -> None:
    assert ask_streamed(client, target.model()).ids != ask_streamed(client, target.model()).ids


def test_whole_answer_is_exact_and_complete(client: openai.OpenAI, target: Target) -> None:
    answer = ask(client, target.model())
    (choice,) = answer.choices
    assert choice.message.content == HELLO
    assert choice.message.role == "assistant"
    assert not choice.message.tool_calls
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (answer.object, answer.model) == ("chat.completion", target.model())
    assert answer.id
    assert answer.created > 0
    assert answer.usage.completion_tokens == HELLO_TOKENS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + HELLO_TOKENS


def test_many_streams_at_once_do_not_mix(flm: Installation) -> None:
    models = [f"flm://{name}/{MODELS[name]['plain']}" for name in CHAT_ENGINES]

    async def one(client: openai.AsyncOpenAI, model: str, script: str | None, expected: str) -> None:
        stream = await client.chat.completions.create(model=model, messages=messages(script), stream=True)
        text = ""
        async for chunk in stream:
            assert chunk.model == model
            text += chunk.choices[0].delta.content or ""
        assert text == expected

    async def all_at_once() -> None:
        async with flm.async_client() as client:
            cases = [(model, *case) for model in models for case in ((None, HELLO), *REPLIES.items())]
            await asyncio.gather(*(one(client, *case) for case in cases * AT_ONCE))

    asyncio.run(all_at_once())


@pytest.mark.parametrize("script", REPLIES)
def test_awkward_text_arrives_unharmed(client: openai.OpenAI, target: Target, script: str) -> None:
    streamed = ask_streamed(client, target.model(), script)
    assert (streamed.content, streamed.finish_reasons) == (REPLIES[script], ["stop"])
    choice = ask(client, target.model(), script).choices[0]
    assert (choice.message.content or "", choice.finish_reason) == (REPLIES[script], "stop")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_token_limit_is_told(client: openai.OpenAI, target: Target, limit: str) -> None:
    limited: dict[str, Any] = {limit: 3}
    streamed = ask_streamed(client, target.model(), None, **limited)
    assert (streamed.content, streamed.finish_reasons) == ("Hello from the", ["length"])
    answer = ask(client, target.model(), None, **limited)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello from the", "length")
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stop", [" model", [" model", "never"]])
def test_stop_text_ends_the_answer(client: openai.OpenAI, target: Target, stop: str | list[str]) -> None:
    streamed = ask_streamed(client, target.model(), stop=stop)
    assert (streamed.content, streamed.finish_reasons) == ("Hello from the scripted", ["stop"])
    assert ask(client, target.model(), stop=stop).choices[0].message.content == "Hello from the scripted"


def test_json_mode_and_schema_force_json(client: openai.OpenAI, target: Target) -> None:
    # The script's own reply is prose: only a grammar, passed on to the engine, makes JSON of it.
    free = ask_streamed(client, target.model(), response_format={"type": "json_object"})
    assert json.loads(free.content) == {}
    bound = ask(client, target.model(), response_format=SCHEMA)
    assert json.loads(bound.choices[0].message.content) == {"ok": True}


def test_content_in_parts_and_developer_role_are_understood(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(
        model=target.model(),
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        ],
    )
    assert answer.choices[0].message.content == HELLO


def test_models_are_listed_and_found_by_id(client: openai.OpenAI, target: Target) -> None:
    assert target.model() in {model.id for model in client.models.list()}
    model = client.models.retrieve(target.model())
    assert (model.id, model.object) == (target.model(), "model")

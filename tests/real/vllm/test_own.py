"""What is vLLM's own: how it is known, its reasoning, its refusals, its two tasks, and that leaving ends its work."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.real import engines as real
from tests.real.asking import HELLO, WEATHER_TOOL, ask, ask_streamed, messages
from tests.real.conftest import Target
from tests.real.installation import CommandError, Installation
from tests.real.scripted_gguf import SIZE, Vocabulary
from tests.real.vllm.conftest import KEY
from tests.real.vllm.serving import CONTEXT, load

PROMPT = "<|user|>Hi<|assistant|>"
THINKING: dict[str, Any] = {"chat_template_kwargs": {"thinking": True}}
REASONING, ANSWER = "First I ponder", "Then we speak"
NOTICE_SECONDS = 5.0
CHUNKS_READ = 12


# --- known ------------------------------------------------------------------------------------------------------------


def test_it_is_known_three_times_in_a_row(flm: Installation, engines: dict[str, real.Engine]) -> None:
    for _ in range(3):
        rows = {row["id"]: row for row in flm.run("engines", "detect", "--fresh")}
        for name, engine in engines.items():
            row = rows[name]
            assert (row["kind"], row["status"], row["version"]) == ("vllm", "RunningHealthy", engine.version)
            assert row["last_error"] is None


@pytest.mark.parametrize("kind", ["ollama", "llamacpp", "lmstudio"])
def test_it_is_not_taken_for_another(tmp_path: Path, target: Target, kind: str) -> None:
    stranger = Installation(tmp_path / "home")
    stranger.run("engines", "add", "--id", "x", "--kind", kind, "--url", target.engine.url)
    (row,) = [row for row in stranger.run("engines", "detect", "--fresh") if row["id"] == "x"]
    assert row["status"] == "ErrorApi"


def test_its_models_have_their_window_and_task(flm: Installation) -> None:
    models = {model["name"]: model for model in flm.run("models", "list")}
    assert set(models) == {"scripted", "scripted-embed"}
    assert {model["context_length"] for model in models.values()} == {CONTEXT}
    assert {model["trained_context_length"] for model in models.values()} == {None}
    assert models["scripted"]["capabilities"] == ["completion"]
    assert models["scripted-embed"]["capabilities"] == ["embedding"]


def test_without_its_key_it_is_there_and_says_what_it_lacks(tmp_path: Path, embedder: Target) -> None:
    """`/version` stands outside the key: the engine is known, and refuses the list of its models."""
    keyless = Installation(tmp_path / "home")
    keyless.run("engines", "add", "--id", "x", "--kind", "vllm", "--url", embedder.engine.url)
    (row,) = [row for row in keyless.run("engines", "detect", "--fresh") if row["id"] == "x"]
    assert (row["kind"], row["version"]) == ("vllm", embedder.engine.version)
    with pytest.raises(CommandError) as caught:
        keyless.run("models", "list", "--engine", "x")
    assert "it wants a key" in str(caught.value)
    assert KEY not in str(caught.value)


# --- chat -------------------------------------------------------------------------------------------------------------


def test_usage_is_told_in_a_chunk_of_its_own(client: openai.OpenAI, target: Target) -> None:
    streamed = ask_streamed(client, target.model(), stream_options={"include_usage": True})
    (usage,) = streamed.usages
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 7, 11)


def test_options_of_streams_do_no_harm_without_one(client: openai.OpenAI, target: Target) -> None:
    answer = ask(client, target.model(), extra_body={"stream_options": {"include_usage": True}})
    assert answer.choices[0].message.content == HELLO


@pytest.mark.parametrize("more", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
def test_no_tools_are_no_tools(client: openai.OpenAI, target: Target, more: dict[str, Any]) -> None:
    assert ask(client, target.model(), tools=[], **more).choices[0].message.content == HELLO


@pytest.mark.parametrize(
    ("choice", "finish"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "get_weather"}}, "stop")],
)
def test_a_demanded_call(client: openai.OpenAI, target: Target, choice: Any, finish: str) -> None:
    answer = ask(client, target.model(), tools=[WEATHER_TOOL], tool_choice=choice).choices[0]
    assert [call.function.name for call in answer.message.tool_calls] == ["get_weather"]
    assert answer.finish_reason == finish
    streamed = ask_streamed(client, target.model(), tools=[WEATHER_TOOL], tool_choice=choice)
    assert [(name, arguments) for _, name, arguments in streamed.calls.values()] == [
        ("get_weather", answer.message.tool_calls[0].function.arguments)
    ]
    assert streamed.finish_reasons == [finish]


def test_one_call_at_a_time(client: openai.OpenAI, target: Target) -> None:
    more: dict[str, Any] = {"tools": [WEATHER_TOOL], "parallel_tool_calls": False}
    assert len(ask(client, target.model(), "twotools", **more).choices[0].message.tool_calls) == 1
    assert len(ask_streamed(client, target.model(), "twotools", **more).calls) == 1


def test_reasoning_is_apart_from_the_answer(client: openai.OpenAI, target: Target) -> None:
    message = ask(client, target.model(), "think", extra_body=THINKING).choices[0].message
    assert (message.reasoning_content, message.content) == (REASONING, ANSWER)
    streamed = ask_streamed(client, target.model(), "think", extra_body=THINKING)
    assert (streamed.reasoning, streamed.content, streamed.finish_reasons) == (REASONING, ANSWER, ["stop"])


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_earlier_reasoning_reaches_the_model(client: openai.OpenAI, target: Target, name: str) -> None:
    """It makes the prompt longer by its own length and the two tags, under whichever name it is sent."""
    history: list[Any] = [*messages(), {"role": "assistant", "content": "x"}, *messages()]
    plain = client.chat.completions.create(model=target.model(), messages=history).usage
    history[1][name] = "abc"
    more = client.chat.completions.create(model=target.model(), messages=history).usage
    assert plain is not None
    assert more is not None
    assert more.prompt_tokens == plain.prompt_tokens + len("<think>abc</think>")


def test_two_choices_and_their_log_probabilities(client: openai.OpenAI, target: Target) -> None:
    answer = ask(client, target.model(), n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == [HELLO, HELLO]
    assert [token.token for token in answer.choices[1].logprobs.content][:2] == ["Hello", " from"]


def test_many_streams_at_once_do_not_mix(flm: Installation, target: Target) -> None:
    replies = {None: HELLO, "utf8": "日 😀", "empty": ""}

    async def one(client: openai.AsyncOpenAI, script: str | None, expected: str) -> None:
        text = ""
        async for chunk in await client.chat.completions.create(
            model=target.model(), messages=messages(script), stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        assert text == expected

    async def all_at_once() -> None:
        async with flm.async_client() as client:
            await asyncio.gather(*(one(client, *case) for case in list(replies.items()) * 5))

    asyncio.run(all_at_once())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_prompt_too_long_for_the_model_is_told(client: openai.OpenAI, target: Target) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model=target.model(), messages=[{"role": "user", "content": "x" * CONTEXT}], stream=stream
            )
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_an_image_for_a_model_that_sees_none_is_refused(client: openai.OpenAI, target: Target) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content: Any = [{"type": "text", "text": "What is this?"}, image]
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model=target.model(), messages=[{"role": "user", "content": content}])
    assert caught.value.code == "unsupported_modalities"


def test_a_call_demanded_of_no_tools_is_refused(client: openai.OpenAI, target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, target.model(), tool_choice="required")
    assert caught.value.param == "tool_choice"


# --- completions and embeddings ---------------------------------------------------------------------------------------


def test_completions(client: openai.OpenAI, target: Target) -> None:
    answer = client.completions.create(model=target.model(), prompt=PROMPT)
    assert (answer.choices[0].text, answer.choices[0].finish_reason, answer.model) == (HELLO, "stop", target.model())
    with client.completions.create(model=target.model(), prompt=PROMPT, max_tokens=3, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello from the"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]


def test_completions_of_several_prompts_and_of_tokens(client: openai.OpenAI, target: Target) -> None:
    several = client.completions.create(model=target.model(), prompt=[PROMPT, PROMPT], n=2, max_tokens=2, logprobs=1)
    assert [choice.text for choice in several.choices] == ["Hello from"] * 4
    assert several.choices[3].logprobs is not None
    assert several.choices[3].logprobs.tokens == ["Hello", " from"]
    numbers = Vocabulary().index
    tokens = [numbers[token] for token in ("<|user|>", "H", "i", "<|assistant|>")]
    assert client.completions.create(model=target.model(), prompt=tokens).choices[0].text == HELLO


def test_embeddings_in_every_form(client: openai.OpenAI, embedder: Target) -> None:
    model = embedder.model("embed")
    plain = client.embeddings.create(model=model, input="Hi", encoding_format="float")
    unasked = client.embeddings.create(model=model, input="Hi")  # the client asks for base64
    (vector,) = [item.embedding for item in plain.data]
    assert len(vector) == SIZE
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-6)
    assert sorted(vector) == [0.0] * (SIZE - 1) + [1.0], "the one-hot of the last token"
    assert unasked.data[0].embedding == pytest.approx(vector)
    assert plain.usage.prompt_tokens == 2


def test_embeddings_of_several_texts_and_of_tokens(client: openai.OpenAI, embedder: Target) -> None:
    model = embedder.model("embed")
    texts = client.embeddings.create(model=model, input=["Hi", "Ho"]).data
    assert [item.index for item in texts] == [0, 1]
    assert texts[0].embedding != texts[1].embedding
    last = [item.embedding.index(max(item.embedding)) for item in texts]
    tokens = client.embeddings.create(model=model, input=[[last[0]], [last[1]]]).data
    assert [item.embedding for item in tokens] == [item.embedding for item in texts]


def test_embeddings_cannot_be_shortened_here(client: openai.OpenAI, embedder: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=embedder.model("embed"), input="Hi", dimensions=8)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "dimensions")


def test_each_does_its_own_work_only(client: openai.OpenAI, target: Target, embedder: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=target.model(), input="Hi")
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, embedder.model("embed"))
    assert caught.value.param == "model"


# --- leaving ----------------------------------------------------------------------------------------------------------


Note = Callable[[str, object], None]


def _assert_ends(leave: Callable[[], None], target: Target, client: openai.OpenAI, note: Note) -> None:
    """`leave` goes away while vLLM works on a reply of some two thousand tokens; by its own metrics it then stops."""
    before = load(target.engine).tokens
    leave()
    left = time.monotonic()
    real.wait_until(lambda: load(target.engine).running == 0, NOTICE_SECONDS, "vLLM to have no request at work")
    note("idle after", f"{(time.monotonic() - left) * 1000:.0f} ms")
    made = load(target.engine).tokens - before
    note("tokens made", f"{made} of {CONTEXT}")
    assert 0 < made < CONTEXT * 3 // 4, "it made the whole reply, or none of it"
    assert load(target.engine).tokens == before + made, "it still makes tokens"
    assert ask(client, target.model()).choices[0].message.content == HELLO


def test_leaving_a_stream_ends_the_work(client: openai.OpenAI, target: Target, record_property: Note) -> None:
    def leave() -> None:
        with client.chat.completions.create(model=target.model(), messages=messages("loop"), stream=True) as stream:
            for _ in zip(range(CHUNKS_READ), stream, strict=False):
                pass
            assert load(target.engine).running == 1

    _assert_ends(leave, target, client, record_property)


def test_leaving_before_a_whole_answer_ends_the_work(
    flm: Installation, client: openai.OpenAI, target: Target, record_property: Note
) -> None:
    async def ask_and_leave() -> None:
        before = load(target.engine).tokens
        async with flm.async_client() as leaving:
            asked = asyncio.ensure_future(
                leaving.chat.completions.create(model=target.model(), messages=messages("loop"))
            )
            at_work = "vLLM to work on the request"
            await asyncio.to_thread(
                real.wait_until, lambda: load(target.engine).tokens > before, NOTICE_SECONDS, at_work
            )
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    _assert_ends(lambda: asyncio.run(ask_and_leave()), target, client, record_property)

"""Text completions of every real engine: the text continues, whatever the engine is, and what it lacks is said.

The scripted model answers by the last token of its prompt alone, so a prompt that ends as a chat's would is answered
with the usual reply: no template stands between.
"""

from __future__ import annotations

from contextlib import suppress

import openai
import pytest
from openai.types import Completion

from tests.real import engines as real
from tests.real.asking import HELLO
from tests.real.conftest import CHAT_ENGINES, MODELS, Target
from tests.real.installation import Installation

PROMPT = "Hi<|assistant|>"
LONG = "word " * 9000
LLAMA = tuple(name for name in CHAT_ENGINES if name.startswith("llama"))
OLLAMA = tuple(name for name in CHAT_ENGINES if name.startswith("ollama"))


def streamed(client: openai.OpenAI, model: str, **more: object) -> list[Completion]:
    with client.completions.create(model=model, prompt=PROMPT, stream=True, **more) as stream:  # type: ignore[call-overload]
        return list(stream)


def test_whole(client: openai.OpenAI, target: Target) -> None:
    answer = client.completions.create(model=target.model(), prompt=PROMPT, temperature=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index, choice.logprobs) == (HELLO, "stop", 0, None)
    assert (answer.object, answer.model) == ("text_completion", target.model())
    assert answer.id
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_a_list_of_one_prompt(client: openai.OpenAI, target: Target) -> None:
    assert client.completions.create(model=target.model(), prompt=[PROMPT]).choices[0].text == HELLO


@pytest.mark.parametrize("usage", [False, True])
def test_streamed(client: openai.OpenAI, target: Target, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = streamed(client, target.model(), temperature=0, **options)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("text_completion", target.model())}
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == HELLO
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    counts = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [count.completion_tokens for count in counts] == [7] * usage
    assert (chunks[-1].choices == []) is usage


def test_bounds_of_the_text(client: openai.OpenAI, target: Target) -> None:
    cut = client.completions.create(model=target.model(), prompt=PROMPT, max_tokens=2)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("Hello from", "length")
    stopped = client.completions.create(model=target.model(), prompt=PROMPT, stop="scripted")
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("Hello from the ", "stop")


@pytest.mark.parametrize("top", [0, 2])
def test_log_probabilities(client: openai.OpenAI, target: Target, top: int) -> None:
    raw = client.completions.with_raw_response.create(model=target.model(), prompt=PROMPT, max_tokens=2, logprobs=top)
    found = raw.parse().choices[0].logprobs
    pieces = [
        choice.logprobs
        for chunk in streamed(client, target.model(), max_tokens=2, logprobs=top)
        for choice in chunk.choices
        if choice.logprobs
    ]
    if target.name == "ollama-old":  # 0.11.4 knows none
        assert raw.headers["x-flm-warnings"] == "logprobs;action=dropped"
        assert (found, pieces) == (None, [])
        return
    assert found is not None
    assert found.tokens == ["Hello", " from"]
    assert found.text_offset == [0, 5]
    assert found.token_logprobs == pytest.approx([0, 0], abs=1e-3)
    if top:
        assert [token in each for token, each in zip(found.tokens, found.top_logprobs or [], strict=True)] == [True] * 2
    else:
        assert found.top_logprobs is None
    assert [token for piece in pieces for token in piece.tokens or []] == ["Hello", " from"]
    assert [offset for piece in pieces for offset in piece.text_offset or []] == [0, 5]


def test_a_prompt_that_is_too_long(client: openai.OpenAI, target: Target) -> None:
    if target.name == "ollama-old":  # 0.11.4 cuts it in silence, whatever it is asked
        answer = client.completions.create(model=target.model(), prompt=LONG, extra_body={"num_ctx": 256})
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 256
        return
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=target.model(), prompt=LONG)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(("name", "value"), [("suffix", "the end"), ("echo", True)])
def test_what_the_engines_lack(client: openai.OpenAI, target: Target, name: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=target.model(), prompt=PROMPT, **{name: value})  # type: ignore[call-overload]
    assert (error.value.code, error.value.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize("name", LLAMA)
def test_several_prompts_and_token_ids(client: openai.OpenAI, engines: dict[str, real.Engine], name: str) -> None:
    model = Target(name, engines[name]).model()
    answer = client.completions.create(model=model, prompt=[PROMPT, PROMPT])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, HELLO), (1, HELLO)]
    texts = {0: "", 1: ""}
    with client.completions.create(model=model, prompt=[PROMPT, PROMPT], stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == {0: HELLO, 1: HELLO}
    tokens = engines[name].ask("POST", "/tokenize", {"content": PROMPT, "parse_special": True})["tokens"]
    assert client.completions.create(model=model, prompt=tokens).choices[0].text == HELLO


@pytest.mark.parametrize("name", OLLAMA)
@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]], ["a", "b"]])
def test_prompts_that_ollama_does_not_take(
    client: openai.OpenAI, engines: dict[str, real.Engine], name: str, prompt: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=Target(name, engines[name]).model(), prompt=prompt)
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "prompt")


@pytest.mark.parametrize("name", [name for name, models in MODELS.items() if "embed" in models])
def test_a_model_for_embeddings_completes_nothing(
    client: openai.OpenAI, engines: dict[str, real.Engine], name: str
) -> None:
    model = Target(name, engines[name]).model("embed")
    with pytest.raises(openai.BadRequestError) as text:
        client.completions.create(model=model, prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    for error in (text.value, chat.value):
        assert (error.code, error.param) == ("unsupported_parameter", "model")
        assert "embeddings" in error.message


FILL_IN = "{{ if .Suffix }}{{ .Prompt }} {{ .Suffix }}<|assistant|>{{ else }}{{ .Prompt }}{{ end }}"


@pytest.mark.parametrize("name", ["ollama-old", "ollama-rendered"])
def test_a_model_that_can_fill_in(
    client: openai.OpenAI, flm: Installation, engines: dict[str, real.Engine], name: str
) -> None:
    """Its template says how it is asked to: only then a `suffix` goes through it."""
    engine = engines[name]
    made = {"model": "scripted-insert", "from": "scripted", "template": FILL_IN, "stream": False}
    assert engine.ask("POST", "/api/create", made) == {"status": "success"}
    flm.run("engines", "add", "--id", "insert", "--kind", engine.kind, "--url", engine.url)  # is looked at at once
    try:
        model = "flm://insert/scripted-insert"
        assert "insert" in client.models.retrieve(model).model_dump()["capabilities"]
        assert client.completions.create(model=model, prompt="Hi", suffix="end").choices[0].text == HELLO
        assert "".join(
            choice.text
            for chunk in client.completions.create(model=model, prompt="Hi", suffix="end", stream=True)
            for choice in chunk.choices
        ) == HELLO  # fmt: skip
        assert client.completions.create(model=model, prompt=PROMPT).choices[0].text == HELLO
    finally:
        flm.run("engines", "remove", "insert")
        with suppress(ValueError):  # the answer is empty
            engine.ask("DELETE", "/api/delete", {"model": "scripted-insert"})

"""The models of every real engine as clients list them: kinds of work, context, and names."""

from __future__ import annotations

import openai
import pytest

from tests.real.conftest import MODELS
from tests.real.installation import Installation

KINDS = {"plain": "completion", "tools": "completion", "think": "completion", "embed": "embedding"}


def test_each_model_says_what_it_is_for(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    for engine, models in MODELS.items():
        for wanted, name in models.items():
            found = listed[f"flm://{engine}/{name}"].model_dump()
            assert KINDS[wanted] in found["capabilities"], (engine, name, found)
            assert ({"completion", "embedding"} - {KINDS[wanted]}).isdisjoint(found["capabilities"])
            assert found["trained_context_length"] == 4096
            assert found["object"] == "model"


@pytest.mark.parametrize("engine", ["ollama-old", "ollama-rendered"])
@pytest.mark.parametrize("name", ["Scripted:LATEST", "SCRIPTED", "scripted"])
def test_ollama_names_in_any_case(client: openai.OpenAI, engine: str, name: str) -> None:
    model = f"flm://{engine}/{name}"
    assert client.models.retrieve(model).id == f"flm://{engine}/scripted:latest"
    answer = client.completions.create(model=model, prompt="Hi<|assistant|>", max_tokens=1)
    assert (answer.model, answer.choices[0].text) == (model, "Hello")


def test_an_alias_is_listed_and_answers(client: openai.OpenAI, flm: Installation) -> None:
    target = f"flm://llama/{MODELS['llama']['plain']}"
    flm.run("models", "alias", "set", "my/own:name", target)
    try:
        assert "my/own:name" in {model.id for model in client.models.list()}
        assert client.models.retrieve("my/own:name").model_dump()["engine_id"] == "llama"
        answer = client.chat.completions.create(model="my/own:name", messages=[{"role": "user", "content": "Hi"}])
        assert answer.model == "my/own:name"
    finally:
        flm.run("models", "alias", "remove", "my/own:name")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("my/own:name")

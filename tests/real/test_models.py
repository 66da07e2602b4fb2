"""The models of every real engine as clients list them: kinds of work, context, and names."""

from __future__ import annotations

import http.client
import json

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


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("flm://ollama-old/scripted:latest", 200),
        ("flm%3A%2F%2Follama-old%2Fscripted%3Alatest", 200),
        ("flm:%2f%2follama-old/scripted", 200),
        ("flm%253A%252F%252Follama-old%252Fscripted", 404),
        ("flm://ollama-old/nothing", 404),
        ("flm://", 400),
    ],
)
def test_one_model_by_a_path_in_clear_or_encoded_once(flm: Installation, path: str, status: int) -> None:
    """Past the official client, which encodes: as curl sends it, through the server that is really used."""
    bodies = []
    for method in ("GET", "HEAD"):
        connection = http.client.HTTPConnection("127.0.0.1", flm.port, timeout=30)
        connection.request(method, f"/v1/models/{path}", headers={"Authorization": f"Bearer {flm.key}"})
        answer = connection.getresponse()
        bodies.append(answer.read())
        assert answer.status == status
        connection.close()
    assert bodies[1] == b""
    if status == 200:
        assert json.loads(bodies[0])["id"] == "flm://ollama-old/scripted:latest"

"""Embeddings of every real engine, as lists of numbers and as the base64 that the official client asks for unasked."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.real import engines as real
from tests.real.conftest import MODELS, Target
from tests.real.scripted_gguf import SIZE

EMBEDDERS = tuple(name for name, models in MODELS.items() if "embed" in models)


@pytest.fixture(params=EMBEDDERS)
def target(request: pytest.FixtureRequest, engines: dict[str, real.Engine]) -> Target:
    """Each engine that embeds, one after the other."""
    return Target(request.param, engines[request.param])


def test_default_encoding_equals_float(client: openai.OpenAI, target: Target) -> None:
    model = target.model("embed")
    plain = client.embeddings.create(model=model, input="Hi", encoding_format="float").data[0].embedding
    default = client.embeddings.create(model=model, input="Hi").data[0].embedding
    assert len(plain) == SIZE
    assert math.isclose(math.hypot(*plain), 1.0, rel_tol=1e-4)
    assert default == pytest.approx(plain, abs=1e-6)


def test_several_inputs_keep_their_order(client: openai.OpenAI, target: Target) -> None:
    model = target.model("embed")
    alone = [client.embeddings.create(model=model, input=text).data[0].embedding for text in ("Hi", "A zebra")]
    answer = client.embeddings.create(model=model, input=["Hi", "A zebra"])
    assert (answer.model, answer.object) == (model, "list")
    assert [item.index for item in answer.data] == [0, 1]
    assert [item.embedding for item in answer.data] == [pytest.approx(vector, abs=1e-5) for vector in alone]
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 2


def test_dimensions(client: openai.OpenAI, target: Target) -> None:
    """Shortened where the engine can, refused where it would take no notice."""
    model = target.model("embed")
    if target.name in ("llama-embed", "ollama-old"):
        with pytest.raises(openai.BadRequestError) as error:
            client.embeddings.create(model=model, input="Hi", dimensions=4)
    else:
        (item,) = client.embeddings.create(model=model, input="Hi", dimensions=4).data
        assert len(item.embedding) == 4
        with pytest.raises(openai.BadRequestError) as error:  # beyond the model's own size: no notice is taken
            client.embeddings.create(model=model, input="Hi", dimensions=SIZE + 1)
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "dimensions")


@pytest.mark.parametrize("nothing", ["", [], [[]]])
def test_nothing_to_embed(client: openai.OpenAI, target: Target, nothing: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=target.model("embed"), input=nothing)
    assert (error.value.code, error.value.param) == ("invalid_request", "input")


def test_token_ids(client: openai.OpenAI, target: Target) -> None:
    model = target.model("embed")
    if target.engine.kind == "ollama":
        with pytest.raises(openai.BadRequestError) as error:
            client.embeddings.create(model=model, input=[1, 5])
        assert (error.value.code, error.value.param) == ("unsupported_parameter", "input")
        return
    one, two = client.embeddings.create(model=model, input=[[1, 5], [1, 6]]).data
    assert client.embeddings.create(model=model, input=[1, 5]).data[0].embedding == pytest.approx(one.embedding)
    assert one.embedding != pytest.approx(two.embedding)


def test_a_text_that_is_too_long(client: openai.OpenAI, target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=target.model("embed"), input="word " * 9000)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize("name", ["llama", "ollama-rendered", "ollama-native"])
def test_a_model_that_makes_none(client: openai.OpenAI, engines: dict[str, real.Engine], name: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=Target(name, engines[name]).model(), input="Hi")
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "model")
    assert "embeddings" in error.value.message

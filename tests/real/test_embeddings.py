"""Embeddings of every real engine, as lists of numbers and as the base64 that the official client asks for unasked."""

from __future__ import annotations

import math

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

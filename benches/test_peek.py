"""What looking at a request costs: the peek, and the request written again with the engine's own model name."""

from __future__ import annotations

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flm.wire.openai import peek, with_model

SHORT = {"model": "flm://engine/model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
TURN = {"role": "user", "content": "A sentence of a conversation, about eighty characters long, said once more. " * 4}
LONG = {**SHORT, "messages": [TURN] * 100, "temperature": 0.7, "max_tokens": 500, "user": "somebody"}
IMAGE = {
    **SHORT,
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}],
        }
    ],
}
BODIES = {"short": json.dumps(SHORT).encode(), "30 KiB": json.dumps(LONG).encode(), "1 MB": json.dumps(IMAGE).encode()}


@pytest.mark.parametrize("size", BODIES)
def test_peek(benchmark: BenchmarkFixture, size: str) -> None:
    seen = benchmark(peek, BODIES[size])
    assert seen.stream


@pytest.mark.parametrize("size", BODIES)
def test_another_model(benchmark: BenchmarkFixture, size: str) -> None:
    fields = peek(BODIES[size]).fields
    assert b'"model":"m"' in benchmark(with_model, fields, "m")

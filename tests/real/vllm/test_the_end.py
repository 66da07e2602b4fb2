"""The last test of the folder, as its name sorts: the engine's core dies in the middle of an answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import openai
import pytest

from tests.real import engines as real
from tests.real.asking import Streamed, ask, gather, messages
from tests.real.conftest import Target

CHUNKS_READ = 6
GONE_SECONDS = 30.0


def _core(engine: real.Engine) -> int:
    """The process that computes, a child of the one that serves."""
    children = Path(f"/proc/{engine.process.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    (core,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Engine")]
    return core


def test_a_core_that_dies_is_one_error_and_no_end(client: openai.OpenAI, target: Target) -> None:
    """vLLM says so in the stream, with `[DONE]` behind it, and then ends; a caller must not take that for an answer."""
    streamed = Streamed()
    stream = client.chat.completions.create(model=target.model(), messages=messages("loop"), stream=True)
    with stream:
        gather((chunk for _, chunk in zip(range(CHUNKS_READ), stream, strict=False)), streamed)
        os.kill(_core(target.engine), signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            gather(stream, streamed)
    assert streamed.content.startswith("one two three ")
    assert streamed.finish_reasons == []
    assert caught.value.code == "engine_error"
    assert "EngineCore" in caught.value.message
    target.engine.process.wait(GONE_SECONDS)
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client, target.model())
    assert refused.value.status_code in (502, 503)

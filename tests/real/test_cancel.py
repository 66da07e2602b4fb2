"""A client that leaves ends the engine's work, shown from the engine's side: its log, its slots, and its next answer.

The looping script never ends by itself, and each Ollama serves one request at a time: while one runs on, no other is
answered.
"""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from tests.real.asking import HELLO, ask, messages
from tests.real.conftest import Target
from tests.real.engines import wait_until
from tests.real.installation import Installation

CHUNKS_READ = 12
NOTICE_SECONDS = 5.0
BEGAN = {"llamacpp": r"launch_slot_.*processing task", "ollama": r'msg="(llama-server )?(chat|completion) request"'}
GAVE_UP = {"llamacpp": r"cancel task", "ollama": r'\[GIN\].*POST +"/api/chat"'}
"""Log lines by which each kind shows that it took a request up, and that it is done with it."""


def _assert_idle(target: Target, client: openai.OpenAI, since: int) -> None:
    """The engine noticed, and answers the next request at once."""
    target.engine.wait_for_log(GAVE_UP[target.engine.kind], since, NOTICE_SECONDS)
    if target.engine.kind == "llamacpp":
        wait_until(
            lambda: not any(slot["is_processing"] for slot in target.engine.ask("GET", "/slots")),
            NOTICE_SECONDS,
            "every slot to be idle",
        )
    started = time.monotonic()
    assert ask(client, target.model()).choices[0].message.content == HELLO
    assert time.monotonic() - started < NOTICE_SECONDS


def test_leaving_a_stream_ends_the_work(client: openai.OpenAI, target: Target) -> None:
    since = target.engine.log_mark()
    with client.chat.completions.create(model=target.model(), messages=messages("loop"), stream=True) as stream:
        text = ""
        for _, chunk in zip(range(CHUNKS_READ), stream, strict=False):
            text += chunk.choices[0].delta.content or ""
    assert text.startswith("one two three four five ")
    _assert_idle(target, client, since)


def test_leaving_before_a_whole_answer_ends_the_work(flm: Installation, client: openai.OpenAI, target: Target) -> None:
    since = target.engine.log_mark()

    async def leave() -> None:
        async with flm.async_client() as leaving:
            asked = asyncio.ensure_future(
                leaving.chat.completions.create(model=target.model(), messages=messages("loop"))
            )
            await asyncio.to_thread(target.engine.wait_for_log, BEGAN[target.engine.kind], since, NOTICE_SECONDS)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    asyncio.run(leave())
    _assert_idle(target, client, since)

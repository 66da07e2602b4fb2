"""Engines that are added, removed, killed in the middle of an answer and started again, under a proxy that runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.real import engines as real
from tests.real.asking import HELLO, Streamed, ask, ask_streamed, gather, messages
from tests.real.conftest import LLAMA_CHAT
from tests.real.engines import wait_until
from tests.real.installation import Installation

MODEL = "flm://mine/scripted"
RECOVERY_SECONDS = 30.0
"""Some rounds of the proxy's own checks."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Installation]:
    """A proxy that runs and knows no engine."""
    installation = Installation(tmp_path / "home")
    installation.start()
    yield installation
    installation.stop()


def _add(proxy: Installation, engine: real.Engine) -> None:
    proxy.run("engines", "add", "--id", "mine", "--kind", engine.kind, "--url", engine.url)


def test_added_and_removed_engines_hold_for_the_next_request(
    proxy: Installation, engines: dict[str, real.Engine]
) -> None:
    with proxy.client() as client:
        for _ in range(2):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(client, MODEL)
            assert caught.value.code == "engine_not_found"
            _add(proxy, engines["llama"])
            assert ask_streamed(client, MODEL).content == HELLO
            proxy.run("engines", "remove", "mine")


def test_an_engine_killed_in_mid_answer_is_an_error_and_comes_back(proxy: Installation, tmp_path: Path) -> None:
    with real.llama_server(tmp_path / "first", model="scripted.gguf", arguments=LLAMA_CHAT) as engine:
        _add(proxy, engine)
        with proxy.client() as client:
            streamed = Streamed()
            stream = client.chat.completions.create(model=MODEL, messages=messages("loop"), stream=True)
            with stream:
                assert next(stream).choices
                engine.process.kill()
                with pytest.raises(openai.APIError) as caught:
                    gather(stream, streamed)
            assert streamed.finish_reasons == []
            assert caught.value.code in ("engine_error", "engine_protocol_error")
            engine.process.wait()
            with pytest.raises(openai.InternalServerError) as refused:
                ask(client, MODEL)
            assert (refused.value.status_code, refused.value.code) == (503, "engine_unavailable")
    with (
        real.llama_server(tmp_path / "second", model="scripted.gguf", arguments=LLAMA_CHAT, port=engine.port),
        proxy.client() as client,
    ):
        wait_until(lambda: _answer(client) == HELLO, RECOVERY_SECONDS, "an answer of the engine started again")


def _answer(client: openai.OpenAI) -> str | None:
    try:
        return ask_streamed(client, MODEL).content
    except openai.InternalServerError:
        return None

"""The engines are the ones the other tests take them for: asked directly, past FLM.

When one of these fails, no failure of the others says anything about FLM.
"""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from tests.real import engines as real
from tests.real import locations
from tests.real.asking import HELLO, WEATHER_TOOL, messages

Engines = dict[str, real.Engine]


def _chat_lines(engine: real.Engine, model: str, script: str | None, **more: Any) -> list[dict[str, Any]]:
    """The lines that an Ollama streams from its native route."""
    body = {"model": model, "messages": messages(script), "stream": True, **more}
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=real.REQUEST_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/api/chat", json.dumps(body))
        return [json.loads(line) for line in connection.getresponse().read().splitlines()]
    finally:
        connection.close()


def test_versions(engines: Engines) -> None:
    assert engines["ollama-old"].version == locations.OLLAMA_OLD
    assert engines["ollama-rendered"].version == engines["ollama-native"].version == locations.OLLAMA_NEW
    assert locations.LLAMA_CPP_PYTHON in engines["llama"].version


@pytest.mark.parametrize("name", ["ollama-old", "ollama-rendered", "ollama-native"])
def test_ollama_says_its_lines(engines: Engines, name: str) -> None:
    lines = _chat_lines(engines[name], "scripted", None)
    assert "".join(line["message"]["content"] for line in lines) == HELLO
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_llama_server_says_its_line(engines: Engines) -> None:
    answer = engines["llama"].ask("POST", "/v1/chat/completions", {"messages": messages()})
    assert answer["choices"][0]["message"]["content"] == HELLO


def test_the_two_ways_of_the_new_ollama_are_both_there(engines: Engines) -> None:
    """Only the native way keeps a tool call for the last line."""
    with_call = {}
    for name in ("ollama-rendered", "ollama-native"):
        lines = _chat_lines(engines[name], "scripted-tools", None, tools=[WEATHER_TOOL])
        with_call[name] = [line["done"] for line in lines if line["message"].get("tool_calls")]
    assert with_call == {"ollama-rendered": [False], "ollama-native": [True]}


def test_the_old_ollama_breaks_off_without_a_word_and_the_new_one_with_one(engines: Engines) -> None:
    old = _chat_lines(engines["ollama-old"], "scripted", "repeat")
    assert old[-1]["message"]["content"] == "na "
    assert not old[-1]["done"]
    rendered = _chat_lines(engines["ollama-rendered"], "scripted", "repeat")
    assert set(rendered[-1]) == {"error"}

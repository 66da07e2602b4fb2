"""Request shapes of real programs, replayed as they send them: every dialect must give a good answer to each.

`shapes/NAME.json`: `client` (whose shape it is), `headers`, `body` with an empty `model`, and what to `expect`: `text`
(the engine's reply, word for word), `calls` (a tool is called), `json` (an object with a city), `any` of them.
Raw HTTP: no SDK mends anything on the way.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai.types.chat import ChatCompletion

from flm.demo import script
from tests.clients.conftest import ODD_MODEL, Target
from tests.support.translating import chunks, is_done

SHAPES = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).with_name("shapes").glob("*.json"))}
ANSWERS = {script.reply(ODD_MODEL, prompt).text for prompt in ("Where is Lima", "sunny in Lima", "Where is\nLima")}


def posted(target: Target, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(target.server.base)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
    own = {"content-type": "application/json", "authorization": f"Bearer {target.server.key}"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {**own, **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def said(body: bytes, *, stream: bool) -> tuple[str, list[str], str | None]:
    """Text, names of the tools called, finish reason."""
    if not stream:
        (choice,) = ChatCompletion.model_validate(json.loads(body)).choices
        calls = [call.function.name for call in choice.message.tool_calls or [] if call.type == "function"]
        return choice.message.content or "", calls, choice.finish_reason
    assert is_done(body)
    text, names, finish = "", [], None
    for chunk in chunks(body):
        for part in chunk.choices:
            text += part.delta.content or ""
            names += [
                call.function.name for call in part.delta.tool_calls or [] if call.function and call.function.name
            ]
            finish = part.finish_reason or finish
    return text, names, finish


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_gets_a_good_answer(target: Target, name: str) -> None:
    shape = SHAPES[name]
    body = {**shape["body"], "model": target.chat}
    status, headers, answer = posted(target, body, shape["headers"])
    assert status == 200, (shape["client"], answer)
    stream = body.get("stream") is True
    assert headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    text, calls, finish = said(answer, stream=stream)
    check(shape["expect"], text, calls, finish)
    wants_usage = (body.get("stream_options") or {}).get("include_usage") is True
    if stream:
        assert (b'"usage":{' in answer) == wants_usage
    assert len(target.asked()) == 1
    assert target.server.key not in json.dumps(target.asked()), "the caller's key reached the engine"


def check(expect: str, text: str, calls: list[str], finish: str | None) -> None:
    if expect == "calls" or (expect == "any" and calls):
        assert (calls, finish) == (["get_weather"], "tool_calls")
    elif expect == "json":
        assert json.loads(text) == {"city": "Lima"}
        assert finish == "stop"
    else:
        assert (calls, finish) == ([], "stop")
        assert text in ANSWERS

"""FLM's own dialects take the demo engine for what it plays, and read its exact answers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec
import pytest

from flm.demo import registry as demo
from flm.demo import script
from flm.demo.dialect import Request
from flm.demo.registry import create
from flm.engines.base import Answer, Probe, Verdict
from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.wire.openai import peek

T = TypeVar("T")
KINDS = sorted(demo.DIALECTS)
FOUND_BY_ITSELF = [kind for kind in DIALECTS if DIALECTS[kind].addresses({}, {})]


def asked(kind: str, method: str, path: str, body: bytes, at: float = 1795361334.0) -> Answer:
    engine = create(kind, (), None, None)
    told = engine.answer(Request(method, path, {}, {b"host": b"127.0.0.1"}, body, 3, at))
    whole = told.body if isinstance(told.body, bytes) else b"".join(told.body)
    head = engine.head(told, None, 0.0, True).split(b"\r\n")[1:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head)}
    return Answer(told.status, headers, whole)


def played(kind: str, plan: Generator[Probe, Answer, T], at: float = 1795361334.0) -> T:
    """Run a plan of probes against the demo engine, at this Unix time."""
    probe = next(plan)
    try:
        while True:
            probe = plan.send(asked(kind, probe.method, probe.path, probe.body, at))
    except StopIteration as stop:
        result: T = stop.value
        return result


@pytest.mark.parametrize("plays", KINDS)
@pytest.mark.parametrize("kind", FOUND_BY_ITSELF)
def test_it_is_recognised_as_what_it_plays_and_as_nothing_else(kind: str, plays: str) -> None:
    identity = played(plays, DIALECTS[kind].identify())
    assert (identity.verdict is Verdict.RECOGNISED) == (kind == plays), identity
    assert (identity.version is not None) == (kind == plays and kind != "lmstudio"), "LM Studio tells no version"


@pytest.mark.parametrize("kind", KINDS)
def test_its_models_do_not_change_with_time(kind: str) -> None:
    """Else the proxy would log other models at each check."""
    assert played(kind, DIALECTS[kind].models(), 1.5e9) == played(kind, DIALECTS[kind].models(), 1.6e9)


@pytest.mark.parametrize("kind", KINDS)
def test_its_models_are_listed(kind: str) -> None:
    models = played(kind, DIALECTS[kind].models())
    names = list(create(kind, (), None, None).models)
    found = {model.name: model for model in models}
    assert sorted(found) == sorted(names)
    if kind != "openai":
        assert found[names[0]].context_length == script.CONTEXT_LENGTH
        assert "completion" in found[names[0]].capabilities


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_its_exact_text_comes_through_the_translation(kind: str, stream: bool) -> None:
    fields = {"model": "flm://x/demo", "stream": stream, "messages": [{"role": "user", "content": "Grüße 東京"}]}
    call = Call(Endpoint.CHAT, peek(msgspec.json.encode(fields)), "demo", "chatcmpl-x", 1)
    translation = DIALECTS[kind].begin(call)
    answer = asked(kind, "POST", translation.request.path, translation.request.body)
    translation.head(answer.status, answer.headers)
    received = translation.feed(answer.body) + translation.finish()
    assert text_of(received, stream) == script.reply("demo", "Grüße 東京").text


def text_of(received: bytes, stream: bool) -> str:
    if not stream:
        return str(msgspec.json.decode(received)["choices"][0]["message"]["content"])
    lines = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
    chunks: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])

"""Each cell of docs/parameters.md is true: a request through FLM, and what the engine got.

The engine records what it is sent and answers in every format at once; the table says what must have come, what the
caller must be told, and what the log must say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params as text_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from flm.engines.base import Dialect
from flm.engines.call import Endpoint
from flm.engines.capabilities import WARNED, Act, Case, Rule
from flm.engines.chat_cases import CHAT_CASES
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES
from flm.engines.registry import DIALECTS
from flm.snapshot import Model
from tests.engines.parameter_page import PAGE, TITLES, cell, page, shown, table_of, variants
from tests.proxy.harness import Client, World, engine, run
from tests.support.engine import ScriptedEngine, answer, serve

# Readable as OpenAI's whole answer and as a native one.
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "message": {"role": "assistant", "content": "Hi"},
    "response": "Hi",
    "done": True,
    "done_reason": "stop",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1]}],
    "embeddings": [[0.5, -1]],
}
HELLO: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    Endpoint.COMPLETIONS: {"prompt": "hello"},
    Endpoint.EMBEDDINGS: {"input": "hello"},
}


def request(case: Case, endpoint: Endpoint = Endpoint.CHAT) -> dict[str, Any]:
    value = {} if "." in case.parameter else {case.parameter: case.example}
    return {"model": "m", **HELLO[endpoint], **case.beside, **value}


def cells(endpoint: Endpoint) -> Iterator[Any]:
    for kind, table in shown(endpoint).items():  # of another kind nobody here knows what its engine answers
        for case in table.cases:
            for rule, capabilities, version in variants(DIALECTS[kind], case, table.rules(case)):
                label = f"{kind}-{case.label}-{rule.act.value}" + ("" if not capabilities else "-unable")
                asked = case
                if rule.beside:
                    asked = msgspec.structs.replace(case, beside={**case.beside, rule.beside: case.example})
                yield pytest.param(endpoint, DIALECTS[kind], asked, rule, capabilities, version, id=label)


@pytest.mark.parametrize(
    ("endpoint", "dialect", "case", "rule", "capabilities", "version"),
    [each for endpoint in TITLES for each in cells(endpoint)],
)
def test_a_cell_is_true(
    endpoint: Endpoint,
    dialect: Dialect,
    case: Case,
    rule: Rule,
    capabilities: tuple[str, ...],
    version: str | None,
) -> None:
    async def main() -> None:
        script = [serve({}, answer(200, json.dumps(ANSWER).encode(), b"content-type: application/json"))]
        async with ScriptedEngine(script) as recording:
            known = engine(recording.url, dialect.kind, version=version)
            models = (Model("m", capabilities=capabilities),)
            world = World(msgspec.structs.replace(known, models=models))
            client = await world.ask("POST", endpoint.value, request(case, endpoint))
            sent = [each for peer in recording.peers for each in peer.requests]
            check(endpoint, dialect, case, rule, client, sent, world.lines[-1])
            await world.app.aclose()

    run(main())


def check(
    endpoint: Endpoint,
    dialect: Dialect,
    case: Case,
    rule: Rule,
    client: Client,
    sent: list[bytes],
    line: dict[str, Any],
) -> None:
    if rule.act is Act.REFUSE:
        assert (client.status, client.code) == (rule.kind.status, rule.kind.code)
        assert client.error["param"] == case.parameter
        assert sent == [], "the engine was asked for what FLM refuses"
        return
    (raw,) = sent
    body = json.loads(raw.partition(b"\r\n\r\n")[2])
    check_body(dialect, case, rule, body, endpoint)
    if not request(case, endpoint).get("stream"):  # the scripted answer is whole
        assert client.status == 200, client.body
    told = [each for each in warnings(client) if each.startswith(f"{case.parameter};")]
    logged = [each for each in line.get("warnings") or [] if each.split()[0] == case.parameter]
    if rule.act not in WARNED:
        assert (told, logged) == ([], [])
        return
    assert logged == [f"{case.parameter} {rule.act.value}"]
    expected = f"{case.parameter};action={rule.act.value}"
    value = clamped(case, rule) if rule.bounds else rule.value
    assert told == [expected if value is None else f"{expected};value={value}"]


def check_body(
    dialect: Dialect, case: Case, rule: Rule, body: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT
) -> None:
    wanted = request(case, endpoint)
    if rule.act in (Act.PASS, Act.IGNORED):
        parameter = "messages" if case.modality else case.parameter
        assert body.get(parameter) == wanted[parameter]
    elif rule.act is Act.DROP and not case.modality and rule.make is None:
        assert case.parameter not in body
    elif rule.act is Act.CLAMP:
        assert found(body, place(dialect, case, endpoint)) == clamped(case, rule)
    if rule.make is not None:
        raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in wanted.items()}
        for field, made in rule.make(raw.get(case.parameter, msgspec.Raw(b"null")), raw).items():
            if made is msgspec.UNSET:
                assert field not in body
            else:
                assert body[field] == json.loads(msgspec.json.encode(made))
    if rule.at:
        assert found(body, rule.at) is not None


def warnings(client: Client) -> list[str]:
    return [each for each in client.headers.get(b"x-flm-warnings", b"").decode().split(", ") if each]


def clamped(case: Case, rule: Rule) -> float:
    assert rule.bounds is not None
    return min(max(case.example, rule.bounds[0]), rule.bounds[1])


def place(dialect: Dialect, case: Case, endpoint: Endpoint) -> str:
    """Where a parameter stands in the engine's own request, by the rule of its ordinary values."""
    table = table_of(dialect, endpoint)
    assert table is not None
    ordinary = next(each for each in table.cases if each.label == case.parameter)
    return table.rules(ordinary)[-1].at or case.parameter


def found(body: Any, path: str) -> Any:
    for step in path.split("."):
        body = body[int(step)] if isinstance(body, list) else body[step]
    return body


@pytest.mark.parametrize(
    ("api", "cases"),
    [
        pytest.param(chat_params.CompletionCreateParamsBase, CHAT_CASES, id="chat"),
        pytest.param(text_params.CompletionCreateParamsBase, COMPLETION_CASES, id="completions"),
        pytest.param(embedding_create_params.EmbeddingCreateParams, EMBEDDING_CASES, id="embeddings"),
    ],
)
def test_every_parameter_of_the_api_has_a_row(api: type, cases: Sequence[Case]) -> None:
    of_the_api = set(api.__annotations__) | {"stream"}
    assert of_the_api - {case.parameter for case in cases} <= {"model", "messages", "stream"}


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(), "docs/parameters.md is out of date: `make docs`"


def test_a_lie_in_a_table_is_seen() -> None:
    """The check above can fail: a table that says `dropped` of what is passed."""
    case = next(each for each in CHAT_CASES if each.label == "seed")
    with pytest.raises(AssertionError):
        check_body(DIALECTS["openai"], case, Rule(Act.DROP), {"seed": 7})
    with pytest.raises(AssertionError):
        check_body(DIALECTS["openai"], case, Rule(Act.PASS), {})


def test_a_cell_in_words() -> None:
    assert cell((Rule(Act.DROP, "why", before=(1, 2, 3)), Rule(Act.REWORD, at="a.b"))) == (
        "dropped before 1.2.3 (why); reworded as `a.b`"
    )

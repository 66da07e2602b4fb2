"""vLLM: how it is known among others, what it lists, where it is installed, and what it gets of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.engines.base import Answer, Identity, Verdict
from flm.engines.call import Change, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from flm.snapshot import Model
from tests.support.probing import NOT_FOUND, SILENCE, json_answer, recorded, run
from tests.support.translating import call, chat

VLLM = DIALECTS["vllm"]
RANDOM, VECTORS = "vllm-0.32.0", "vllm-0.32.0/embedding"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def server(**more: Answer) -> dict[str, Answer]:
    """A vLLM's answers to probes; `more` by name: version, health, models, openapi."""
    answers = {name: recorded(RANDOM, name) for name in ("version", "health", "models")} | more
    paths = {"models": "/v1/models", "openapi": "/openapi.json"}
    return {paths.get(name, f"/{name}"): answer for name, answer in answers.items()}


def identified(**more: Answer) -> Identity:
    found, sent = run(VLLM.identify(), server(**more))
    assert len(sent) <= 3
    return found


# --- detection --------------------------------------------------------------------------------------------------------


def test_it_is_known() -> None:
    assert identified() == Identity(Verdict.RECOGNISED, version="0.32.0")


def test_it_is_known_without_its_key() -> None:
    """`/version` stands outside the key, the guard's refusal is its own."""
    assert identified(models=recorded(VECTORS, "auth_missing")) == Identity(Verdict.RECOGNISED, version="0.32.0")


def test_it_is_known_behind_a_proxy_that_hides_its_server() -> None:
    hidden = {name: recorded(RANDOM, name) for name in ("version", "health", "models")}
    bare = {name: Answer(one.status, {b"server": b"nginx"}, one.body) for name, one in hidden.items()}
    assert identified(**bare).verdict is Verdict.RECOGNISED


def test_a_dead_engine_is_there_and_does_not_serve() -> None:
    found = identified(health=recorded(f"{RANDOM}/scripted", "core_killed_health"))
    assert (found.verdict, found.version) == (Verdict.BUSY, "0.32.0")
    assert "dead" in (found.detail or "")


def test_an_engine_that_scales_is_busy() -> None:
    scaling = json_answer('{"error":"The model is currently scaling. Please try again later."}', 503, server="uvicorn")
    assert run(VLLM.identify(), {}, scaling)[0].verdict is Verdict.BUSY
    foreign = json_answer('{"error":"The model is currently scaling. Please try again later."}', 503, server="nginx")
    assert run(VLLM.identify(), {}, foreign)[0].verdict is Verdict.FOREIGN


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"version": json_answer('{"version":"1.2","deployment_id":""}')}, id="a version with more"),
        pytest.param({"version": json_answer('{"version":""}')}, id="an empty version"),
        pytest.param({"version": json_answer('{"version":"1"}', 201)}, id="a version that is no 200"),
        pytest.param({"models": NOT_FOUND}, id="no models"),
        pytest.param({"models": SILENCE}, id="no answer to the models"),
        pytest.param({"models": json_answer('{"data":[]}')}, id="an empty list"),
        pytest.param({"models": json_answer('{"data":[{"id":"m","owned_by":"sglang"}]}')}, id="another owner"),
        pytest.param({"models": json_answer('{"error":"Unauthorized"}', 401, server="nginx")}, id="another's guard"),
        pytest.param({"models": json_answer('{"detail":"Unauthorized"}', 401, server="uvicorn")}, id="other words"),
    ],
)
def test_what_resembles_it_is_not_it(more: dict[str, Answer]) -> None:
    found = identified(**more)
    assert found.verdict is Verdict.FOREIGN
    assert found.detail


# --- models -----------------------------------------------------------------------------------------------------------


def described(*paths: str) -> Answer:
    return json_answer(json.dumps({"openapi": "3.1.0", "paths": {path: {"post": {}} for path in paths}}))


CHATTING = described("/version", "/v1/models", "/v1/chat/completions", "/v1/completions")


def listed(**more: Answer) -> tuple[Model, ...]:
    return run(VLLM.models(), server(**more))[0]


def test_a_model_with_its_window_and_task() -> None:
    """The trained length and the modalities are told nowhere; `created` is always now, and so left out."""
    assert listed(openapi=CHATTING) == (
        Model("tiny-llama", context_length=1024, loaded=True, capabilities=("completion",)),
    )


def test_a_model_for_embeddings() -> None:
    found = listed(models=recorded(VECTORS, "models"), openapi=described("/v1/models", "/v1/embeddings", "/pooling"))
    assert found == (Model("tiny-embed", context_length=512, loaded=True, capabilities=("embedding",)),)


@pytest.mark.parametrize("openapi", [NOT_FOUND, SILENCE, json_answer("{}"), described("/v1/score")])
def test_a_server_that_tells_no_routes_leaves_the_task_open(openapi: Answer) -> None:
    assert [model.capabilities for model in listed(openapi=openapi)] == [()]


def test_adapters_have_the_window_of_their_model() -> None:
    found = listed(models=recorded(f"{RANDOM}/adapter", "models"), openapi=CHATTING)
    assert found == tuple(
        Model(name, context_length=2048, loaded=True, capabilities=("completion",)) for name in ("scripted", "sql")
    )


def test_aliases_and_an_adapter_of_a_model_that_is_not_listed() -> None:
    listing = {
        "object": "list",
        "data": [
            {"id": "base", "owned_by": "vllm", "parent": None, "root": "/m", "max_model_len": 4096},
            {"id": "alias", "owned_by": "vllm", "parent": None, "root": "/m", "max_model_len": 4096},
            {"id": "lost", "owned_by": "vllm", "parent": "gone", "root": "/lora/x"},
        ],
    }
    found = listed(models=json_answer(json.dumps(listing)), openapi=CHATTING)
    assert [(model.name, model.context_length) for model in found] == [("base", 4096), ("alias", 4096), ("lost", None)]


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["VLLM_PORT", "VLLM_HOST_IP", "HOST", "PORT"])
def test_no_variable_tells_its_address(variable: str) -> None:
    """VLLM_PORT and VLLM_HOST_IP belong to the traffic between its own processes."""
    assert VLLM.addresses({variable: "9999"}, {}) == ("http://127.0.0.1:8000",)
    assert VLLM.settings("linux", {variable: "9999"}, "/home/a") == ()


def test_binaries_on_linux() -> None:
    found = VLLM.binaries("linux", {"PATH": "/opt/x/bin:relative", "VIRTUAL_ENV": "/srv/env/"}, "/home/a")
    assert found[:4] == ("/opt/x/bin/vllm", "/srv/env/bin/vllm", "/home/a/.local/bin/vllm", "/home/a/.venv/bin/vllm")
    assert "/usr/local/bin/vllm" in found
    assert len(set(found)) == len(found)


def test_binaries_on_macos() -> None:
    found = VLLM.binaries("darwin", {"CONDA_PREFIX": "/opt/conda/envs/v"}, "/Users/a")
    assert found[:2] == ("/opt/conda/envs/v/bin/vllm", "/Users/a/.local/bin/vllm")


def test_binaries_on_windows() -> None:
    environment = {"PATH": '"C:\\bin";x', "VIRTUAL_ENV": "C:\\env"}
    assert VLLM.binaries("win32", environment, "C:\\Users\\a") == (
        "C:\\bin\\vllm.exe",
        "C:\\env\\Scripts\\vllm.exe",
        "C:\\Users\\a\\.local\\bin\\vllm.exe",
        "C:\\Users\\a\\.venv\\Scripts\\vllm.exe",
        "C:\\Users\\a\\vllm\\.venv\\Scripts\\vllm.exe",
    )


def test_binaries_without_a_home() -> None:
    assert VLLM.binaries("win32", {}, "") == ()


def test_idle_connections_are_given_up_before_it_closes_them() -> None:
    assert VLLM.idle_seconds < 5


# --- requests ---------------------------------------------------------------------------------------------------------


def sent(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> tuple[dict[str, Any], tuple[Change, ...]]:
    body = chat(**fields) if endpoint is Endpoint.CHAT else fields
    begun = VLLM.begin(call(body, endpoint=endpoint))
    parsed: dict[str, Any] = json.loads(begun.request.body)
    return parsed, begun.changes


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tool_choice": None}])
def test_an_empty_list_of_tools_is_left_out(choice: dict[str, Any]) -> None:
    found, changes = sent(tools=[], **choice)
    assert "tools" not in found
    assert found.get("tool_choice") is None
    assert changes == ()


def test_a_call_demanded_of_no_tools_is_for_the_engine_to_refuse() -> None:
    assert sent(tools=[], tool_choice="required")[0]["tool_choice"] == "required"


@pytest.mark.parametrize("stream", [{}, {"stream": False}, {"stream": None}])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_stream_options_go_only_with_a_stream(endpoint: Endpoint, stream: dict[str, Any]) -> None:
    prompt = {} if endpoint is Endpoint.CHAT else {"prompt": "x"}
    options = {"include_usage": True}
    assert "stream_options" not in sent(endpoint, stream_options=options, **stream, **prompt)[0]
    assert sent(endpoint, stream_options=options, stream=True, **prompt)[0]["stream_options"] == options


def test_its_own_parameters_pass() -> None:
    fields: dict[str, Any] = {
        "chat_template_kwargs": {"thinking": True},
        "structured_outputs": {"regex": "a+"},
        "reasoning_effort": "high",
        "include_reasoning": False,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "n": 3,
        "top_k": 5,
        "response_format": {"type": "structural_tag", "structures": [], "triggers": []},
    }
    found, changes = sent(**fields)
    assert {name: found[name] for name in fields} == fields
    assert changes == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"reasoning_content": "a"}, {"reasoning_content": "a", "reasoning": "a"}),
        ({"reasoning": "a"}, {"reasoning": "a", "reasoning_content": "a"}),
        ({"reasoning": "a", "reasoning_content": "b"}, {"reasoning": "a", "reasoning_content": "b"}),
        ({"reasoning": None, "reasoning_content": None}, {"reasoning": None, "reasoning_content": None}),
        ({}, {}),
    ],
)
def test_earlier_thoughts_go_under_both_names(given: dict[str, Any], expected: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "x"}
    user = {"role": "user", "content": 'what is "reasoning"?'}
    found, changes = sent(messages=[user, {**said, **given}, user])
    assert found["messages"] == [user, {**said, **expected}, user]
    assert changes == ()


def test_images_go_to_the_engine_and_files_do_not() -> None:
    """No route of it tells what a model can see; nothing of it takes a file."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]
    begun = VLLM.begin(call({"messages": messages}, capabilities=("completion",)))
    assert json.loads(begun.request.body)["messages"] == messages
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}
    with pytest.raises(RequestError) as caught:
        VLLM.begin(call({"messages": [{"role": "user", "content": [file]}]}))
    assert (caught.value.status, caught.value.code) == (422, "unsupported_modalities")


def test_embeddings_pass_with_their_form_and_size() -> None:
    fields: dict[str, Any] = {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8}
    found, changes = sent(Endpoint.EMBEDDINGS, **fields)
    assert {name: found[name] for name in fields} == fields
    assert changes == ()


@pytest.mark.parametrize(
    ("endpoint", "capability", "fields"),
    [
        (Endpoint.EMBEDDINGS, "completion", {"input": "x"}),
        (Endpoint.CHAT, "embedding", {"messages": [{"role": "user", "content": "x"}]}),
        (Endpoint.COMPLETIONS, "embedding", {"prompt": "x"}),
    ],
)
def test_the_other_task_is_refused_by_name(endpoint: Endpoint, capability: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        VLLM.begin(call(fields, endpoint=endpoint, capabilities=(capability,)))
    assert caught.value.param == "model"

"""What each engine lists, from its recorded answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.base import Answer, ListingError, Probe
from flm.engines.ollama import MAX_SHOWN, is_cloud
from flm.engines.registry import DIALECTS
from flm.snapshot import Model
from tests.support.probing import NOT_FOUND, SILENCE, Answers, json_answer, recorded, run

LLAMA = "llama-server-b1-0c1e570"
OLLAMA = "ollama-0.34.4"
OLD = "ollama-0.11.4"


def listed(kind: str, answers: Answers) -> dict[str, Model]:
    return {model.name: model for model in run(DIALECTS[kind].models(), answers)[0]}


def test_ollama_says_all_in_its_list() -> None:
    answers = {"/api/tags": recorded(OLLAMA, "tags"), "/api/ps": recorded(OLLAMA, "ps_loaded")}
    found, sent = run(DIALECTS["ollama"].models(), answers)
    assert [probe.path for probe in sent] == ["/api/tags", "/api/ps"]
    assert {model.name: (model.loaded, model.context_length, model.capabilities) for model in found} == {
        "scripted:latest": (True, 4096, ("completion",)),
        "scripted-embed:latest": (False, None, ("tools", "thinking", "embedding")),
        "scripted-think:latest": (False, None, ("completion", "thinking")),
        "scripted-tools:latest": (False, None, ("completion", "tools")),
    }
    assert {model.trained_context_length for model in found} == {4096}
    assert {model.created for model in found} == {1795469952}


def test_the_effective_window_is_the_loaded_one() -> None:
    answers = {"/api/tags": recorded(OLLAMA, "tags"), "/api/ps": recorded(OLLAMA, "ps_num_ctx")}
    assert listed("ollama", answers)["scripted:latest"].context_length == 2048


def shown(probe: Probe) -> Answer:
    """An old Ollama: the list says little, so each model is asked about."""
    if probe.path == "/api/show":
        assert probe.method == "POST"
        name = json.loads(probe.body)["model"]
        return recorded(OLD, "show_tools" if name == "scripted-tools:latest" else "show")
    return {"/api/tags": recorded(OLD, "tags"), "/api/ps": recorded(OLLAMA, "ps_empty")}.get(probe.path, NOT_FOUND)


def test_an_old_ollama_is_asked_about_each_model() -> None:
    found, sent = run(DIALECTS["ollama"].models(), shown)
    assert [probe.path for probe in sent] == ["/api/tags", "/api/ps", *["/api/show"] * 4]
    models = {model.name: model for model in found}
    assert models["scripted:latest"].capabilities == ("completion",)
    assert models["scripted-tools:latest"].capabilities == ("completion", "tools")
    assert {model.trained_context_length for model in found} == {4096}
    assert {(model.loaded, model.context_length) for model in found} == {(False, None)}


def tags(*names: str, **more: object) -> Answer:
    return json_answer(json.dumps({"models": [{"name": name, "digest": "d", **more} for name in names]}))


def test_a_modelfiles_window_counts_while_the_model_is_cold() -> None:
    show = json_answer(
        '{"capabilities":["completion"],"parameters":"stop \\"x\\"\\nnum_ctx                        8192\\n"}'
    )
    answers = {"/api/tags": tags("m:latest"), "/api/ps": json_answer('{"models":null}'), "/api/show": show}
    assert listed("ollama", answers)["m:latest"].context_length == 8192


def test_the_order_in_which_ollama_lists_does_not_matter() -> None:
    names = ("b:latest", "a:latest", "c:latest")
    lists = [
        run(DIALECTS["ollama"].models(), {"/api/tags": tags(*order), "/api/show": json_answer("{}")})[0]
        for order in (names, names[::-1])
    ]
    assert lists[0] == lists[1]
    assert len(lists[0]) == 3


def test_asking_about_models_is_bounded() -> None:
    many = tags(*(f"m{number}:latest" for number in range(150)))
    answers = {"/api/tags": many, "/api/ps": NOT_FOUND, "/api/show": json_answer("{}")}
    found, sent = run(DIALECTS["ollama"].models(), answers)
    assert len(found) == 150
    assert len(sent) == 2 + MAX_SHOWN
    assert {model.loaded for model in found} == {None}, "without /api/ps nobody knows"
    answers["/api/show"] = SILENCE
    assert len(run(DIALECTS["ollama"].models(), answers)[1]) == 3, "the first silence ends the asking"


def test_cloud_models_are_hidden() -> None:
    listing = [
        {"name": "gpt-oss:120b-cloud", "digest": "d"},
        {"name": "glm:cloud", "digest": "d"},
        {"name": "other:latest", "digest": "d", "remote_host": "https://ollama.com:443"},
        {"name": "cloudy:latest", "digest": "d"},
    ]
    answers = {"/api/tags": json_answer(json.dumps({"models": listing}))}
    assert list(listed("ollama", answers)) == ["cloudy:latest"]


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("a:cloud", True),
        ("a:1b-cloud", True),
        ("a-cloud", True),
        ("cloud:1b", False),
        ("a:clouds", False),
        ("a", False),
    ],
)
def test_what_a_cloud_name_is(name: str, cloud: bool) -> None:
    assert is_cloud(name) is cloud


def test_no_models_at_all() -> None:
    assert listed("ollama", {"/api/tags": json_answer('{"models":null}')}) == {}
    assert listed("openai", {"/v1/models": json_answer('{"data":null}')}) == {}


def test_llama_server() -> None:
    answers = {"/v1/models": recorded(LLAMA, "models"), "/props": recorded(LLAMA, "props")}
    assert listed("llamacpp", answers) == {
        "tiny-llama": Model("tiny-llama", 2048, 2048, loaded=True, capabilities=("completion",))
    }


def test_llama_server_with_vision_and_tools() -> None:
    props = json_answer(
        '{"build_info":"b1","default_generation_settings":{"n_ctx":512},'
        '"modalities":{"vision":true,"audio":false},"chat_template_caps":{"supports_tools":true}}'
    )
    found = listed("llamacpp", {"/v1/models": recorded(LLAMA, "models"), "/props": props})["tiny-llama"]
    assert (found.context_length, found.capabilities) == (512, ("completion", "tools", "vision"))


EMBEDDING = f"{LLAMA}/embedding"
NO_INPUT = (
    '{"error":{"code":400,"message":"\\"input\\" or \\"content\\" must be provided","type":"invalid_request_error"}}'
)
NO_POOLING = (
    '{"error":{"code":400,"message":"Pooling type \'none\' is not OAI compatible. Please use a different pooling type",'
    '"type":"invalid_request_error"}}'
)


@pytest.mark.parametrize(
    ("answer", "capabilities"),
    [
        (json_answer(NO_INPUT, 400), ("embedding",)),
        (json_answer(NO_POOLING, 400), ("completion",)),
        (recorded(LLAMA, "embeddings"), ("completion",)),
        (NOT_FOUND, ("completion",)),
        (SILENCE, ()),
        (json_answer("{}", 400), ()),
        (json_answer("{}", 500), ()),
    ],
)
def test_a_llama_server_for_embeddings_is_told_by_what_it_refuses(
    answer: Answer, capabilities: tuple[str, ...]
) -> None:
    answers = {
        "/v1/models": recorded(EMBEDDING, "models"),
        "/props": recorded(LLAMA, "props"),
        "/v1/embeddings": answer,
    }
    found, sent = run(DIALECTS["llamacpp"].models(), answers)
    assert found == (Model("tiny-embed", 2048, 2048, loaded=True, capabilities=capabilities),)
    assert [(probe.method, probe.path, probe.body) for probe in sent[2:]] == [("POST", "/v1/embeddings", b"{}")]


def test_a_sleeping_llama_server_is_not_woken() -> None:
    props = json_answer('{"build_info":"b1","is_sleeping":true}')
    found, sent = run(DIALECTS["llamacpp"].models(), {"/v1/models": recorded(LLAMA, "models"), "/props": props})
    assert [(model.loaded, model.capabilities) for model in found] == [(False, ())]
    assert [probe.path for probe in sent] == ["/v1/models", "/props"]


def test_llama_server_without_props() -> None:
    found = listed("llamacpp", {"/v1/models": recorded(LLAMA, "models")})["tiny-llama"]
    assert (found.context_length, found.capabilities) == (2048, ())


def test_a_llama_router() -> None:
    listing = {
        "data": [
            {"id": "a", "status": {"value": "loaded"}, "architecture": {"input_modalities": ["text", "image"]}},
            {"id": "b", "status": {"value": "unloaded"}},
        ]
    }
    found, sent = run(DIALECTS["llamacpp"].models(), {"/v1/models": json_answer(json.dumps(listing))})
    assert [(model.name, model.loaded, model.capabilities) for model in found] == [
        ("a", True, ("completion", "vision")),
        ("b", False, ()),
    ]
    assert len(sent) == 1


def test_a_registered_server() -> None:
    found = listed("openai", {"/v1/models": recorded("vllm-0.32.0", "models")})
    assert found == {"tiny-llama": Model("tiny-llama", context_length=1024, created=1795361677)}


@pytest.mark.parametrize(
    ("kind", "path"), [("ollama", "/api/tags"), ("llamacpp", "/v1/models"), ("openai", "/v1/models")]
)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (SILENCE, "not answered in time"),
        (Answer(401, {}, b"{}"), "credentials"),
        (Answer(503, {}, b"{}"), "503"),
        (Answer(200, {}, b"<html>"), "without a model list"),
        (json_answer('{"models":{},"data":{}}'), "without a model list"),
        (json_answer('{"models":[{"name":1}],"data":[{"id":1}]}'), "without a model list"),
    ],
)
def test_a_list_that_is_none(kind: str, path: str, answer: Answer, words: str) -> None:
    with pytest.raises(ListingError, match=words) as caught:
        run(DIALECTS[kind].models(), {path: answer})
    assert path in str(caught.value)


@pytest.mark.parametrize("kind", DIALECTS)
@given(status=st.sampled_from([200, 401, 404, 500, 0]), data=st.data())
def test_no_bytes_break_a_listing(kind: str, status: int, data: st.DataObject) -> None:
    """Any bytes are a list or a ListingError."""
    shapes = st.sampled_from(
        [
            b'{"models":[%s]}',
            b'{"data":[%s]}',
            b'{"models":[{"key":"k","type":"llm","loaded_instances":[%s]}],"data":[{"id":"k"}]}',
            b'{"models":[{"name":"n","digest":"d","details":{%s}}]}',
            b"%s",
        ]
    )
    values = st.sampled_from(
        [
            b"",
            b"{}",
            b"null",
            b"1",
            b'"x"',
            b'{"id":"a"}',
            b'{"id":1}',
            b'{"id":"a","config":null}',
            b'"context_length":1e999',
        ]
    )

    def answer(_probe: Probe) -> Answer:
        body = data.draw(shapes).replace(b"%s", data.draw(values | st.binary(max_size=20)))
        return Answer(status, {}, body)

    try:
        found, _ = run(DIALECTS[kind].models(), answer)
    except ListingError:
        return
    assert all(isinstance(model, Model) and isinstance(model.name, str) for model in found)

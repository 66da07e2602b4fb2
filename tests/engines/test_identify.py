"""An engine is known by the shape of its answers, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.base import Answer, Identity, Probe, Verdict
from flm.engines.registry import DIALECTS
from tests.support.probing import NOT_FOUND, SILENCE, Answers, json_answer, recorded, run

LLAMA = "llama-server-b1-0c1e570"
VLLM = "vllm-0.32.0"
OLLAMA = "ollama-0.34.4"


def llama_server() -> dict[str, Answer]:
    answers = {path: recorded(LLAMA, case) for path, case in (("/health", "health"), ("/props", "props"))}
    return {**answers, "/v1/models": recorded(LLAMA, "models"), "/api/tags": recorded(LLAMA, "models")}


def ollama(version: str = OLLAMA) -> dict[str, Answer]:
    return {
        "/api/version": recorded(version, "version"),
        "/": recorded(OLLAMA, "root"),
        "/api/tags": recorded(version, "tags"),
        "/v1/models": recorded(OLLAMA, "v1_models"),
        "/health": recorded(OLLAMA, "unknown_path"),
    }


def vllm() -> dict[str, Answer]:
    names = {"/health": "health", "/version": "version", "/v1/models": "models", "/props": "props"}
    return {path: recorded(VLLM, case) for path, case in names.items()}


def lm_studio() -> dict[str, Answer]:
    """Not verified against the product: as its documentation has it."""
    lists = {
        path: json_answer('{"models":[],"data":[]}') for path in ("/api/v1/models", "/api/v0/models", "/v1/models")
    }
    return {"/lmstudio-greeting": json_answer('{"lmstudio":true}', x_powered_by="Express"), **lists}


UNKNOWN_PATH = json_answer('{"error":"Unexpected endpoint or method. (GET /x)"}', x_powered_by="Express")


def identified(kind: str, answers: Answers, otherwise: Answer = NOT_FOUND) -> Identity:
    return run(DIALECTS[kind].identify(), answers, otherwise)[0]


@pytest.mark.parametrize("version", [OLLAMA, "ollama-0.24.0", "ollama-0.11.4"])
def test_ollama(version: str) -> None:
    assert identified("ollama", ollama(version)) == Identity(
        Verdict.RECOGNISED, version=version.removeprefix("ollama-")
    )


def test_ollama_behind_a_proxy_that_hides_its_root() -> None:
    answers = {**ollama(), "/": NOT_FOUND}
    assert identified("ollama", answers).verdict is Verdict.RECOGNISED


def test_llama_server() -> None:
    assert identified("llamacpp", llama_server()) == Identity(Verdict.RECOGNISED, version="b1-0c1e570")


def test_llama_server_with_a_key() -> None:
    answers = {**llama_server(), "/props": recorded(f"{LLAMA}/embedding", "auth_missing")}
    assert identified("llamacpp", answers) == Identity(Verdict.RECOGNISED)


def test_an_old_llama_server_without_its_mark() -> None:
    answers = {path: Answer(answer.status, {}, answer.body) for path, answer in llama_server().items()}
    assert identified("llamacpp", answers).version == "b1-0c1e570"


LOADING = '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'


@pytest.mark.parametrize("headers", [{"server": "llama.cpp"}, {}])
def test_llama_server_while_it_loads(headers: dict[str, str]) -> None:
    found, sent = run(DIALECTS["llamacpp"].identify(), {}, json_answer(LOADING, 503, **headers))
    assert found.verdict is Verdict.BUSY
    assert len(sent) == 1


def test_ollama_that_is_busy() -> None:
    busy = recorded(OLLAMA, "queue_full")
    assert identified("ollama", {}, busy).verdict is Verdict.BUSY


def test_a_registered_server() -> None:
    assert identified("openai", vllm()) == Identity(Verdict.RECOGNISED)
    assert (
        identified("openai", {"/v1/models": json_answer('{"object":"list","data":null}')}).verdict is Verdict.RECOGNISED
    )
    assert identified("openai", {"/v1/models": recorded(f"{VLLM}/embedding", "auth_wrong")}).verdict is Verdict.FOREIGN


@pytest.mark.parametrize("kind", DIALECTS)
def test_silence(kind: str) -> None:
    found, sent = run(DIALECTS[kind].identify(), {}, SILENCE)
    assert found.verdict is Verdict.SILENT
    assert len(sent) == 1, "a silent port is not waited for again"


def test_lm_studio_is_asked_for_its_greeting_alone() -> None:
    found, sent = run(DIALECTS["lmstudio"].identify(), lm_studio(), UNKNOWN_PATH)
    assert found == Identity(Verdict.RECOGNISED)
    assert [probe.path for probe in sent] == ["/lmstudio-greeting"], "it logs an error for each path it does not have"


@pytest.mark.parametrize(
    "body",
    [
        '{"lmstudio":false}',
        '{"lmstudio":1}',
        '{"lmstudio":"true"}',
        '{"lmstudio":true,"x":true}',
        "{}",
        "true",
        '"lmstudio"',
    ],
)
def test_only_the_exact_greeting_is_lm_studios(body: str) -> None:
    assert identified("lmstudio", {"/lmstudio-greeting": json_answer(body)}).verdict is Verdict.FOREIGN


def test_a_greeting_that_is_no_200_is_none() -> None:
    assert (
        identified("lmstudio", {"/lmstudio-greeting": json_answer('{"lmstudio":true}', 404)}).verdict is Verdict.FOREIGN
    )


ENGINES = {"llamacpp": llama_server, "lmstudio": lm_studio, "ollama": ollama, "vllm": vllm}


@pytest.mark.parametrize("kind", ENGINES)
def test_one_engine_is_not_another(kind: str) -> None:
    for other, answers in ENGINES.items():
        otherwise = UNKNOWN_PATH if other == "lmstudio" else NOT_FOUND
        found = identified(kind, answers(), otherwise)
        assert (found.verdict is Verdict.RECOGNISED) == (kind == other), other


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("mark", ["flm", "FLM", "flm/0.1.0"])
def test_flm_itself_is_no_engine(kind: str, mark: str) -> None:
    """FLM in front of an engine answers with that engine's words, and with its own mark."""

    def marked(probe: Probe) -> Answer:
        answers = {**lm_studio(), **ollama(), **vllm(), **llama_server()}
        answer = answers.get(probe.path, NOT_FOUND)
        return Answer(answer.status, {**answer.headers, b"server": mark.encode()}, answer.body)

    found = identified(kind, marked)
    assert found.verdict is Verdict.FOREIGN
    assert found.detail == "FLM itself answers there"


DECOYS = [
    pytest.param(Answer(200, {}, b""), id="empty 200"),
    pytest.param(Answer(200, {b"content-type": b"text/html"}, b"<html>Welcome to nginx!</html>"), id="web page"),
    pytest.param(Answer(200, {}, b"Ollama is running"), id="the root's words everywhere"),
    pytest.param(
        json_answer('{"error":"Unexpected endpoint or method. (GET /x)"}', x_powered_by="Express"), id="200 error"
    ),
    pytest.param(json_answer('{"status":"ok"}'), id="any health check"),
    pytest.param(json_answer('{"version":1}'), id="a version that is a number"),
    pytest.param(json_answer('{"version":"0.6.5","deployment_id":""}'), id="another product's version"),
    pytest.param(json_answer('{"data":"x","models":"x"}'), id="wrong types"),
    pytest.param(json_answer("[]"), id="an array"),
    pytest.param(json_answer("null"), id="null"),
    pytest.param(json_answer("[" * 100_000), id="nesting"),
    pytest.param(Answer(200, {}, b"\xff\xfe"), id="bytes"),
    pytest.param(Answer(401, {}, b""), id="401"),
    pytest.param(Answer(403, {}, b""), id="403"),
    pytest.param(Answer(404, {}, b"404 page not found"), id="404"),
    pytest.param(Answer(500, {}, b"oops"), id="500"),
    pytest.param(Answer(503, {}, b"<html>no backend</html>"), id="503 page"),
    pytest.param(Answer(302, {b"location": b"/login"}, b""), id="redirect"),
]


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("decoy", DECOYS)
def test_decoys(kind: str, decoy: Answer) -> None:
    found, sent = run(DIALECTS[kind].identify(), {}, decoy)
    assert found.verdict is Verdict.FOREIGN
    assert found.detail
    assert len(sent) <= 3


def test_a_health_check_that_dies_afterwards_is_not_taken_for_a_server() -> None:
    assert identified("llamacpp", {"/health": json_answer('{"status":"ok"}')}, SILENCE).verdict is Verdict.FOREIGN


@pytest.mark.parametrize("kind", DIALECTS)
@given(status=st.sampled_from([200, 503, 429, 404]), body=st.binary(max_size=60))
def test_no_bytes_break_detection(kind: str, status: int, body: bytes) -> None:
    found, sent = run(DIALECTS[kind].identify(), {}, Answer(status, {}, body))
    assert isinstance(found, Identity)
    assert len(sent) <= 3

"""The pass-through with the engines themselves: their own routes, streams, refusals, and what is closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx  # what the official client itself uses
import pytest

from tests.real.asking import HELLO
from tests.real.conftest import Target
from tests.real.installation import Installation

OLLAMAS = ("ollama-old", "ollama-rendered", "ollama-native")


@pytest.fixture(scope="module")
def http(flm: Installation) -> Iterator[httpx.Client]:
    """A plain client of the proxy, with its key."""
    headers = {"authorization": f"Bearer {flm.key}"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{flm.port}/engine", headers=headers, trust_env=False, timeout=20
    ) as c:
        yield c


def refused(response: httpx.Response) -> str:
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["code"] == "route_disabled"
    return str(error["message"])


def test_properties_and_tokens_of_a_llama_server(http: httpx.Client) -> None:
    properties = http.get("/llama/props").json()
    assert properties["total_slots"] == 2
    tokens = http.post("/llama/tokenize", json={"content": "Hello"}).json()["tokens"]
    assert tokens
    text = http.post("/llama/detokenize", json={"tokens": tokens}).json()["content"]
    assert text.strip() == "Hello"
    assert http.get("/llama/slots").status_code == 200
    assert http.head("/llama/health").status_code == 200


def test_a_body_in_chunks_reaches_a_llama_server(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"content":'
        yield b'"Hello"}'

    answer = http.post("/llama/tokenize", content=pieces(), headers={"content-type": "application/json"})
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.json()["tokens"]


def test_a_llama_servers_own_stream_and_errors(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with http.stream("POST", "/llama/v1/chat/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]) == HELLO
    assert http.get("/llama/nothing/here").status_code == 404
    assert http.post("/llama/v1/chat/completions", content=b"{").status_code in (400, 500)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/slots/0?action=save"), ("POST", "/props"), ("POST", "/lora-adapters"), ("POST", "/SLOTS/0"),
     ("POST", "/models/load"), ("POST", "/%73lots/0?action=erase"), ("GET", "/cors-proxy?url=http://127.0.0.1/")],
)  # fmt: skip
def test_what_would_change_a_llama_server_is_closed(http: httpx.Client, method: str, path: str) -> None:
    assert "passthrough.open_routes" in refused(http.request(method, "/llama" + path, json={}))


@pytest.mark.parametrize("engine", OLLAMAS)
def test_models_and_versions_of_an_ollama(http: httpx.Client, engine: str) -> None:
    names = {model["name"] for model in http.get(f"/{engine}/api/tags").json()["models"]}
    assert "scripted:latest" in names
    assert http.get(f"/{engine}/api/version").json()["version"]
    assert http.get(f"/{engine}/").text == "Ollama is running"
    shown = http.post(f"/{engine}/api/show", json={"model": "scripted"})
    assert shown.json()["details"]
    missing = http.post(f"/{engine}/api/show", json={"model": "nobody"})
    assert missing.status_code == 404
    assert "nobody" in missing.json()["error"]


@pytest.mark.parametrize("engine", OLLAMAS)
def test_an_ollamas_own_stream(http: httpx.Client, engine: str) -> None:
    body: dict[str, Any] = {"model": "scripted", "prompt": "Hi", "raw": False}
    with http.stream("POST", f"/{engine}/api/generate", json=body) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines() if line]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 2
    assert "".join(line["response"] for line in lines)


@pytest.mark.parametrize("engine", OLLAMAS)
@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/api/delete"), ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"),
     ("POST", "/api/copy"), ("POST", "/api/blobs/sha256:0"), ("DELETE", "/API/Delete/")],
)  # fmt: skip
def test_what_would_change_the_models_of_an_ollama_is_closed(
    http: httpx.Client, engine: str, method: str, path: str
) -> None:
    before = http.get(f"/{engine}/api/tags").json()
    refused(http.request(method, f"/{engine}{path}", json={"model": "scripted", "source": "scripted"}))
    after = http.get(f"/{engine}/api/tags").json()
    assert {model["name"] for model in after["models"]} == {model["name"] for model in before["models"]}


def test_an_operator_opens_a_route_and_closes_it_again(flm: Installation, http: httpx.Client) -> None:
    copy = {"source": "scripted", "destination": "copied"}
    delete = {"model": "copied"}
    refused(http.post("/ollama-native/api/copy", json=copy))
    flm.run(
        "config", "set", "passthrough.open_routes", "ollama-native:POST /api/copy, ollama-native:DELETE /api/delete"
    )
    try:
        assert http.post("/ollama-native/api/copy", json=copy).status_code == 200
        refused(http.post("/ollama-old/api/copy", json=copy))
        refused(http.post("/ollama-native/api/pull", json=copy))
        assert http.request("DELETE", "/ollama-native/api/delete", json=delete).status_code == 200
    finally:
        flm.run("config", "unset", "passthrough.open_routes")
    refused(http.post("/ollama-native/api/copy", json=copy))


def test_a_client_that_leaves_a_pass_through_ends_the_engines_work(http: httpx.Client, target: Target) -> None:
    path = "/api/chat" if target.engine.kind == "ollama" else "/v1/chat/completions"
    model = target.model().removeprefix(f"flm://{target.name}/")
    looping = [{"role": "system", "content": "script:loop"}, {"role": "user", "content": "Hi"}]
    since = target.engine.log_mark()
    body = {"model": model, "messages": looping, "stream": True}
    with http.stream("POST", f"/{target.name}{path}", json=body) as answer:
        for _, line in zip(range(12), answer.iter_lines(), strict=False):
            assert line == "" or "{" in line
    gave_up = {"llamacpp": r"cancel task", "ollama": r'\[GIN\].*POST +"/api/chat"'}[target.engine.kind]
    target.engine.wait_for_log(gave_up, since, 5.0)

"""What each engine's dialect keeps closed on the pass-through: well formed, in force, and as documented."""

from __future__ import annotations

import re

import pytest

from flm.engines.base import Dialect, DialectDefaults
from flm.engines.closed import ClosedRoute
from flm.engines.registry import DIALECTS
from flm.policy.closing import closing_rule, folded
from tests.engines.closed_routes import BEGIN, END, PAGE, written

RULES = [(kind, rule) for kind, dialect in DIALECTS.items() for rule in dialect.closed_routes]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def closed(kind: str, method: str, path: str) -> bool:
    return closing_rule(DIALECTS[kind].closed_routes, method, folded(path)) is not None


@pytest.mark.parametrize(("kind", "rule"), RULES, ids=lambda each: each if isinstance(each, str) else each.path)
def test_a_rule_is_well_formed(kind: str, rule: ClosedRoute) -> None:
    assert re.fullmatch(r"(\*|[A-Z]+) /[a-zA-Z0-9_/.-]*(?<!.//)\*?", f"{rule.method} {rule.path}")
    assert re.fullmatch(r"[a-z].*[a-z]", rule.why), f"{kind}: completes `is closed, because it …`"


@pytest.mark.parametrize(("kind", "rule"), RULES, ids=lambda each: each if isinstance(each, str) else each.path)
def test_a_named_route_is_closed_and_so_is_what_lies_below(kind: str, rule: ClosedRoute) -> None:
    path = rule.path.removesuffix("/*")
    for method in METHODS if rule.method == "*" else (rule.method,):
        assert closed(kind, method, path)
        assert closed(kind, method, path.upper() + "/")
        assert closed(kind, method, "/prefix" + path)
        assert path == rule.path or closed(kind, method, path + "/x")


@pytest.mark.parametrize("kind", DIALECTS)
def test_inference_and_what_nobody_named_is_open(kind: str) -> None:
    for method in METHODS:
        assert not closed(kind, method, "/of/a/later/version")
    for path in ("/v1/models", "/v1/models/org%2Fname"):
        assert not closed(kind, "GET", path)
        assert not closed(kind, "HEAD", path)
    for path in INFERENCE:
        assert not closed(kind, "POST", path)


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("ollama", "GET", "/api/tags"), ("ollama", "POST", "/api/show"), ("ollama", "POST", "/api/generate"),
        ("ollama", "POST", "/api/chat"), ("ollama", "GET", "/api/ps"), ("ollama", "GET", "/"),
        ("llamacpp", "GET", "/props"), ("llamacpp", "GET", "/slots"), ("llamacpp", "GET", "/lora-adapters"),
        ("llamacpp", "POST", "/tokenize"), ("llamacpp", "POST", "/infill"), ("llamacpp", "GET", "/models"),
        ("vllm", "POST", "/tokenize"), ("vllm", "GET", "/metrics"), ("vllm", "GET", "/version"),
        ("vllm", "GET", "/openapi.json"), ("lmstudio", "GET", "/api/v0/models"), ("lmstudio", "GET", "/api/v1/models"),
    ],
)  # fmt: skip
def test_what_people_use_is_open(kind: str, method: str, path: str) -> None:
    assert not closed(kind, method, path)


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("ollama", "DELETE", "/api/delete"), ("ollama", "POST", "/api/pull"), ("ollama", "POST", "/api/push"),
        ("ollama", "POST", "/api/create"), ("ollama", "POST", "/api/copy"), ("ollama", "POST", "/api/blobs/sha256:0"),
        ("ollama", "HEAD", "/api/blobs/sha256:0"), ("ollama", "POST", "/api/me"), ("llamacpp", "POST", "/slots/0"),
        ("llamacpp", "POST", "/lora-adapters"), ("llamacpp", "POST", "/props"), ("llamacpp", "POST", "/models/load"),
        ("llamacpp", "DELETE", "/models"), ("llamacpp", "GET", "/cors-proxy"), ("llamacpp", "POST", "/tools"),
        ("vllm", "POST", "/collective_rpc"), ("vllm", "POST", "/v1/load_lora_adapter"), ("vllm", "POST", "/sleep"),
        ("vllm", "POST", "/start_profile"), ("vllm", "POST", "/update_weights"), ("vllm", "POST", "/reset_mm_cache"),
        ("vllm", "GET", "/server_info"), ("lmstudio", "POST", "/api/v1/models/load"),
        ("lmstudio", "POST", "/api/v1/models/unload"), ("lmstudio", "POST", "/api/v1/models/download"),
        ("openai", "GET", "/server_info"), ("openai", "DELETE", "/v1/models/x"), ("openai", "GET", "/flush_cache"),
        ("openai", "POST", "/shutdown"), ("openai", "POST", "/slots/0"), ("openai", "POST", "/api/pull"),
        ("openai", "POST", "/v1/load_lora_adapter"), ("openai", "POST", "/v1/internal/model/load"),
    ],
)  # fmt: skip
def test_what_changes_an_engine_is_closed(kind: str, method: str, path: str) -> None:
    assert closed(kind, method, path)


def test_a_dialect_that_says_nothing_is_careful() -> None:
    assert DialectDefaults.closed_routes == DIALECTS["openai"].closed_routes
    assert isinstance(DIALECTS["openai"], DialectDefaults)
    dialect: Dialect = DIALECTS["openai"]
    assert dialect.closed_routes


def test_the_documented_table_is_that_of_the_code() -> None:
    page = PAGE.read_text()
    assert (page.count(BEGIN), page.count(END)) == (1, 1)
    assert page == written(page), "docs/engines.md is out of date: `make docs`"

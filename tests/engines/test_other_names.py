"""A model may be asked for under any name its engine takes, and is sent under its own."""

from __future__ import annotations

import pytest

from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from flm.policy.routing import RouteIndex
from flm.snapshot import SERVING, Engine, Model
from tests.support.probing import json_answer, recorded, run


def index(*engines: tuple[str, tuple[Model, ...]]) -> RouteIndex[Engine]:
    found = [Engine(id_, "kind", "http://127.0.0.1:1", "RunningHealthy", models=models) for id_, models in engines]
    return RouteIndex(found, {"mine": "short"}, serving=SERVING, plain_names=True)


def test_ollama_takes_a_name_without_its_default_tag() -> None:
    answers = {"/api/tags": recorded("ollama-0.34.4", "tags")}
    found, _ = run(DIALECTS["ollama"].models(), answers)
    names = {model.name: model.other_names for model in found}
    assert names["scripted:latest"] == ("scripted",)


def test_llama_server_lists_its_aliases() -> None:
    listing = '{"data":[{"id":"a","aliases":["a","b"]}]}'
    found, _ = run(DIALECTS["llamacpp"].models(), {"/v1/models": json_answer(listing)})
    assert found[0].other_names == ("b",)


LATEST = Model("short:latest", other_names=("short",))


@pytest.mark.parametrize("name", ["short", "short:latest", "flm://e/short", "flm://e/short:latest", "mine"])
def test_every_name_leads_to_the_model(name: str) -> None:
    assert index(("e", (LATEST,))).resolve(name).model.name == "short:latest"


@pytest.mark.parametrize(
    "name", ["Scripted:LATEST", "SCRIPTED", "scripted", "flm://o/Scripted:Latest", "flm://o/sCRIPTED"]
)
def test_ollama_takes_names_in_any_case(name: str) -> None:
    found, _ = run(DIALECTS["ollama"].models(), {"/api/tags": recorded("ollama-0.34.4", "tags")})
    assert index(("o", found)).resolve(name).model.name == "scripted:latest"


@pytest.mark.parametrize("name", ["M", "flm://e/M", "FLM://e/m"])
def test_other_engines_do_not(name: str) -> None:
    with pytest.raises(RequestError, match=r"has no model|there is no model"):
        index(("e", (Model("m"),))).resolve(name)


def test_the_exact_name_comes_before_one_in_another_case() -> None:
    routes = index(("e", (Model("m", any_case=True),)), ("f", (Model("M"),)))
    assert routes.resolve("M").engine.id == "f"
    assert routes.resolve("m").engine.id == "e"
    with pytest.raises(RequestError, match="flm://e/m, flm://g/m"):
        index(("e", (Model("m", any_case=True),)), ("g", (Model("m", any_case=True),))).resolve("M")


def test_a_model_really_called_so_comes_first() -> None:
    routes = index(("e", (LATEST,)), ("f", (Model("short"),)))
    assert routes.resolve("short").engine.id == "f"
    assert index(("e", (LATEST, Model("short")))).resolve("flm://e/short").model.name == "short"


def test_a_name_of_two_engines_lists_the_ids_that_work() -> None:
    with pytest.raises(RequestError, match="flm://e/short:latest, flm://f/short:latest"):
        index(("e", (LATEST,)), ("f", (LATEST,))).resolve("short")

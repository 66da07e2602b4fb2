"""The page of behaviours is what is observed, and what is observed is what was promised."""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviour.observing import KINDS, Observed, observe
from tests.behaviour.page import PAGE, page
from tests.behaviour.situations import SITUATIONS
from tests.behaviour.stage import CHAT, EMBEDDINGS, STREAM, Seen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return asyncio.run(observe(tmp_path_factory.mktemp("flm")))


def test_the_page_says_what_happens(observed: Observed) -> None:
    assert PAGE.read_text() == page(observed), "docs/behaviour.md is out of date: `make docs`"


def test_every_kind_with_a_simulator_is_on_it(observed: Observed) -> None:
    assert set(KINDS) >= {"llamacpp", "ollama", "openai"}
    for kind in KINDS:
        assert {STREAM, CHAT} <= set(observed.ways[kind])
        assert EMBEDDINGS in observed.ways[kind] or kind == "vllm"  # it makes texts or embeddings, as it was started


def rows(observed: Observed, title: str) -> list[Seen]:
    assert title in {situation.title for situation in SITUATIONS}
    return [seen for kind in KINDS for _way, seen in observed.rows[kind][title]]


@pytest.mark.parametrize("title", ["the caller sends no key", "the caller's key is wrong"])
def test_without_a_good_key_nothing_reaches_the_engine(observed: Observed, title: str) -> None:
    for seen in rows(observed, title):
        assert (seen.status, seen.code, seen.engine) == ("401", "`invalid_api_key`", "nothing")


@pytest.mark.parametrize("title", [one.title for one in SITUATIONS if one.title.startswith("the client leaves")])
def test_a_client_that_leaves_ends_the_engines_work(observed: Observed, title: str) -> None:
    for seen in rows(observed, title):
        assert seen.engine == "the request, then FLM closes the connection"


@pytest.mark.parametrize("title", [one.title for one in SITUATIONS if one.title.startswith("the engine")])
def test_what_an_engine_does_wrong_is_one_error_and_no_end(observed: Observed, title: str) -> None:
    for seen in rows(observed, title):
        assert seen.code
        assert seen.client == "one JSON error" or "one error event, no `[DONE]`" in seen.client
        assert "finish reason" not in seen.client

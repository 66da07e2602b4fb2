"""From a machine where one engine runs to a streamed answer, with nothing registered by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.asking import HELLO, ask, ask_streamed
from tests.real.conftest import MODELS, Target
from tests.real.installation import Installation


def _where_users_say_it(target: Target) -> dict[str, str]:
    """The environment variable by which each engine's users move it to another port."""
    port = str(target.engine.port)
    return {"llamacpp": {"LLAMA_ARG_PORT": port}, "ollama": {"OLLAMA_HOST": f"127.0.0.1:{port}"}}[target.engine.kind]


@pytest.fixture
def found(target: Target, tmp_path: Path) -> Installation:
    """A fresh FLM on a machine where that engine's usual environment variable is set."""
    return Installation(tmp_path / "home", **_where_users_say_it(target))


def _row(installation: Installation, target: Target) -> dict[str, object]:
    everything = installation.run("engines", "detect", "--fresh")
    rows = [row for row in everything if (row["url"] or "").endswith(f":{target.engine.port}")]
    assert len(rows) == 1, everything
    row: dict[str, object] = rows[0]
    return row


def test_detect_names_kind_version_and_health(found: Installation, target: Target) -> None:
    row = _row(found, target)
    assert (row["kind"], row["status"], row["source"]) == (target.engine.kind, "RunningHealthy", "detected")
    assert row["version"] == target.engine.version
    assert row["last_error"] is None


def test_models_are_listed_before_the_proxy_runs(found: Installation, target: Target) -> None:
    engine_id = _row(found, target)["id"]
    models = {model["name"]: model for model in found.run("models", "list") if model["engine_id"] == engine_id}
    assert set(models) == set(MODELS[target.name].values())
    assert models[MODELS[target.name]["plain"]]["id"] == f"flm://{engine_id}/{MODELS[target.name]['plain']}"
    assert models[MODELS[target.name]["plain"]]["trained_context_length"] == 4096


def test_a_detected_engine_answers_through_a_started_proxy(found: Installation, target: Target) -> None:
    model = f"flm://{_row(found, target)['id']}/{MODELS[target.name]['plain']}"
    found.start()
    try:
        assert found.key.startswith("flm_")
        with found.client() as client:
            assert ask_streamed(client, model).content == HELLO
            assert ask(client, model).choices[0].message.content == HELLO
    finally:
        found.stop()
    assert found.run("proxy", "status") == []

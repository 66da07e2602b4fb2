"""From a machine where one engine runs to a streamed answer, with nothing registered by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real import engines as real
from tests.real import locations
from tests.real.asking import HELLO, ask, ask_streamed
from tests.real.conftest import LLAMA_CHAT, MODELS, Target
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


def _kinds_at(installation: Installation, port: int) -> list[str]:
    """What is said to run at that port, by kind; InstalledOnly is not said to run."""
    rows = installation.run("engines", "detect", "--fresh")
    at_port = [row for row in rows if row["url"].endswith(f":{port}") and row["status"] != "InstalledOnly"]
    return [row["kind"] for row in at_port]


def test_it_is_found_three_times_in_a_row(found: Installation, target: Target) -> None:
    for _ in range(3):
        row = _row(found, target)
        assert (row["kind"], row["status"], row["version"]) == (
            target.engine.kind,
            "RunningHealthy",
            target.engine.version,
        )


def test_an_engine_on_another_kinds_port_is_what_it_is(target: Target, tmp_path: Path) -> None:
    """Every kind that a variable can move is sent to this engine's port: only its own kind knows it."""
    port = str(target.engine.port)
    everybody = Installation(tmp_path / "home", LLAMA_ARG_PORT=port, OLLAMA_HOST=f"127.0.0.1:{port}")
    assert _kinds_at(everybody, target.engine.port) == [target.engine.kind]
    others = {"llamacpp": {"OLLAMA_HOST": f"127.0.0.1:{port}"}, "ollama": {"LLAMA_ARG_PORT": port}}
    mistaken = Installation(tmp_path / "other", **others[target.engine.kind])
    assert _kinds_at(mistaken, target.engine.port) == []


def test_two_ollamas_one_by_its_variable_and_one_by_its_services_drop_in(
    engines: dict[str, real.Engine], tmp_path: Path
) -> None:
    first, second = engines["ollama-old"], engines["ollama-native"]
    folder = tmp_path / "config" / "systemd" / "user" / "ollama.service.d"
    folder.mkdir(parents=True)
    (folder / "override.conf").write_text(f'[Service]\nEnvironment="OLLAMA_HOST=0.0.0.0:{second.port}"\n')
    both = Installation(
        tmp_path / "home", OLLAMA_HOST=f"0.0.0.0:{first.port}", XDG_CONFIG_HOME=str(tmp_path / "config")
    )
    for _ in range(3):
        rows = {row["url"]: row for row in both.run("engines", "detect", "--fresh")}
        for engine in (first, second):
            row = rows[f"http://127.0.0.1:{engine.port}"]
            assert (row["kind"], row["status"], row["version"]) == ("ollama", "RunningHealthy", engine.version)


def test_one_that_is_installed_and_one_that_died(tmp_path: Path) -> None:
    folder = locations.llama_server_dir() / "bin"
    with real.llama_server(tmp_path / "engine", model="scripted.gguf", arguments=LLAMA_CHAT) as engine:
        here = Installation(tmp_path / "home", LLAMA_ARG_PORT=str(engine.port), PATH=f"{folder}:{os.environ['PATH']}")
        assert _kinds_at(here, engine.port) == ["llamacpp"]
    for _ in range(3):
        rows = [row for row in here.run("engines", "detect", "--fresh") if row["kind"] == "llamacpp"]
        assert [row["status"] for row in rows if row["url"].endswith(f":{engine.port}")] == ["InstalledOnly"]


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

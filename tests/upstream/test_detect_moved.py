"""An engine whose port its users changed is found where its own settings say, in every round anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flm.engines.registry import DIALECTS
from flm.upstream.detect import Detected, detect_engines
from flm.upstream.health import HEALTHY
from tests.support.engine import ScriptedEngine, answer, serve
from tests.upstream.conftest import Run

GREETING = serve({"/lmstudio-greeting": answer(200, b'{"lmstudio":true}')})
OLLAMA = serve({"/api/version": answer(200, b'{"version":"0.34.4"}'), "/": answer(200, b"Ollama is running")})


async def look(kind: str, home: Path, environment: dict[str, str], **options: Any) -> list[Detected]:
    return await detect_engines(
        [DIALECTS[kind]], environment, "linux", str(home), probe_timeout=10, total_timeout=20, **options
    )


def among(found: list[Detected], *engines: ScriptedEngine) -> list[tuple[str, str]]:
    """Of those found the ones that this test runs: the usual port may be somebody else's."""
    ours = {engine.url for engine in engines}
    return [(each.url, each.state.status) for each in found if each.url in ours]


def configure(home: Path, **fields: Any) -> None:
    folder = home / ".internal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "http-server-config.json").write_text(json.dumps({"cors": False, **fields}))


@pytest.mark.parametrize("where", [".lmstudio", ".cache/lm-studio", "elsewhere/studio"])
def test_lm_studio_is_found_by_its_last_port_and_followed_when_it_moves(run: Run, tmp_path: Path, where: str) -> None:
    async def main() -> None:
        if where.startswith("elsewhere"):
            (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / where}\n")
        async with ScriptedEngine([GREETING]) as first, ScriptedEngine([GREETING]) as second:
            assert among(await look("lmstudio", tmp_path, {}), first, second) == []
            configure(tmp_path / where, port=first.port, networkInterface="0.0.0.0")
            found = await look("lmstudio", tmp_path, {})
            assert among(found, first, second) == [(first.url, HEALTHY)]
            configure(tmp_path / where, port=second.port)
            await first.stop_listening()
            found = await look("lmstudio", tmp_path, {}, previous=found)
            assert among(found, first, second) == [(second.url, HEALTHY)]
            off = await look("lmstudio", tmp_path, {}, discover=False)
            assert off == []

    run(main())


def test_ollama_as_a_user_service_is_found_by_its_drop_in(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedEngine([OLLAMA]) as moved:
            folder = tmp_path / "systemd" / "user" / "ollama.service.d"
            folder.mkdir(parents=True)
            environment = {"XDG_CONFIG_HOME": str(tmp_path)}
            assert among(await look("ollama", tmp_path, environment), moved) == []
            (folder / "10-host.conf").write_text(f'[Service]\nEnvironment="OLLAMA_HOST=0.0.0.0:{moved.port}"\n')
            assert among(await look("ollama", tmp_path, environment), moved) == [(moved.url, HEALTHY)]

    run(main())


def test_ollama_by_its_variable(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedEngine([OLLAMA]) as moved:
            environment = {"OLLAMA_HOST": f"'http://0.0.0.0:{moved.port}'"}
            assert among(await look("ollama", tmp_path, environment), moved) == [(moved.url, HEALTHY)]

    run(main())

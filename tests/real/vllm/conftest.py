"""Two vLLMs, one that chats and one that embeds behind a key, and an FLM that has both registered by hand.

The fixtures take the place of those of tests/real, so that its tests can be run here as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.real import engines as real
from tests.real import locations
from tests.real.conftest import Target
from tests.real.installation import Installation
from tests.real.vllm.build import unfit, vllm_dir
from tests.real.vllm.serving import CHAT, EMBED, vllm

HERE = Path(__file__).parent
KEY = "key-of-the-engine"
LISTED_SECONDS = 30.0
STARTS_SECONDS = 700
"""For the test that starts both: on busy cores each start takes minutes."""


@dataclass(frozen=True, slots=True)
class OneModel(Target):
    """An engine with a single model, which has the engine's id for its name."""

    def model(self, wanted: str = "plain") -> str:
        return f"flm://{self.name}/{'scripted-embed' if wanted == 'embed' else 'scripted'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(STARTS_SECONDS))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without the engine every test here would fail: say once what is missing, and fail."""
    wanted = any(HERE in item.path.parents for item in session.items) and not session.config.option.collectonly
    if not wanted or locations.is_built(vllm_dir()):
        return
    reason = unfit() or "run `python -m tests.real.vllm.build`, or `make gate-vllm`, which does"
    pytest.exit(f"vLLM is not installed in {vllm_dir()}: {reason}.", returncode=pytest.ExitCode.TESTS_FAILED)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, real.Engine]]:
    """Both engines, running, by the id that the tests register them under; they start at the same time."""
    folder = tmp_path_factory.mktemp("vllm")
    starting = {
        "vllm": vllm(folder / "chat", "scripted", *CHAT),
        "vllm-embed": vllm(folder / "embed", "scripted-embed", *EMBED, key=KEY),
    }
    with ExitStack() as stack, ThreadPoolExecutor(len(starting)) as pool:
        running = dict(zip(starting, pool.map(stack.enter_context, starting.values()), strict=True))
        yield running


@pytest.fixture(scope="session")
def flm(engines: dict[str, real.Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A proxy, running, with both engines registered by hand."""
    installation = Installation(tmp_path_factory.mktemp("flm"), VLLM_KEY=KEY)
    for name, engine in engines.items():
        credential = ("--api-key-env", "VLLM_KEY") if name == "vllm-embed" else ()
        installation.run("engines", "add", "--id", name, "--kind", "vllm", "--url", engine.url, *credential)
    installation.start()
    with installation.client() as looking:  # an engine is there for callers once its models are known
        real.wait_until(lambda: len(list(looking.models.list())) == len(engines), LISTED_SECONDS, "both models")
    yield installation
    installation.stop()
    assert installation.faults() == []


@pytest.fixture(scope="session")
def client(flm: Installation) -> Iterator[openai.OpenAI]:
    """The official client, talking to that proxy."""
    with flm.client() as opened:
        yield opened


@pytest.fixture
def target(engines: dict[str, real.Engine]) -> Target:
    """The one that chats."""
    return OneModel("vllm", engines["vllm"])


@pytest.fixture
def embedder(engines: dict[str, real.Engine]) -> Target:
    """The one that embeds, and demands a key."""
    return OneModel("vllm-embed", engines["vllm-embed"])

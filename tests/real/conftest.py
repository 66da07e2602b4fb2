"""The engines and the proxy that the tests of this folder share: five engines, one FLM that has them all registered.

Knows which models each engine serves and under which name; not what they answer.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.real import engines as real
from tests.real import locations
from tests.real.installation import Installation

HERE = Path(__file__).parent
ONE_MODEL_FOR_ALL = {"plain": "scripted", "tools": "scripted", "think": "scripted"}
ONE_MODEL_EACH = {
    "plain": "scripted:latest",
    "tools": "scripted-tools:latest",
    "think": "scripted-think:latest",
    "embed": "scripted-embed:latest",
}
MODELS: dict[str, dict[str, str]] = {
    "llama": ONE_MODEL_FOR_ALL,
    "llama-embed": {"embed": "scripted-embed"},
    "ollama-old": ONE_MODEL_EACH,
    "ollama-rendered": ONE_MODEL_EACH,
    "ollama-native": ONE_MODEL_EACH,
}
"""Engine id -> what a test wants of a model -> the model's name there."""
# With context shift a reply without end has no end, as on the other engines: 1024 tokens would be through in 0.3 s.
LLAMA_CHAT = ("-c", "2048", "-np", "2", "--jinja", "--context-shift", "--metrics", "--alias", "scripted")
LLAMA_EMBED = ("-c", "512", "--embeddings", "--pooling", "mean", "--alias", "scripted-embed")
CHAT_ENGINES = tuple(name for name, models in MODELS.items() if "plain" in models)


@dataclass(frozen=True, slots=True)
class Target:
    """One engine as a test sees it: the process, and the ids that FLM gives its models."""

    name: str
    engine: real.Engine

    def model(self, wanted: str = "plain") -> str:
        """The id of the model that does what is wanted: plain, tools, think or embed."""
        return f"flm://{self.name}/{MODELS[self.name][wanted]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a real engine."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without the engines every test here would fail: say once what is missing, and fail. Folders below have others."""
    wanted = any(item.path.parent == HERE for item in session.items) and not session.config.option.collectonly
    if wanted and (absent := locations.absent()):
        lines = [f"  {name} ({folder})" for name, folder in absent.items()]
        text = "\n".join(["These engines are not built:", *lines, "Run `make engines` first (once, ten minutes)."])
        pytest.exit(text, returncode=pytest.ExitCode.TESTS_FAILED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the engine's and of FLM's log beside a failure."""
    report = yield
    if report.failed and (target := getattr(item, "funcargs", {}).get("target")):
        report.sections.append((f"log of {target.name}", target.engine.log_tail()))
    if report.failed and (flm := getattr(item, "funcargs", {}).get("flm")):
        report.sections.append(("log of flm", flm.log_tail()))
    return report


def _terminated(_number: int, _frame: object) -> None:
    pytest.exit("terminated", returncode=pytest.ExitCode.INTERRUPTED)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, real.Engine]]:
    """Every engine, running, by the id that the tests register it under."""
    folder = tmp_path_factory.mktemp("engines")
    before = signal.signal(signal.SIGTERM, _terminated)  # so that the engines end with the run
    old, new = locations.OLLAMA_OLD, locations.OLLAMA_NEW
    with ExitStack() as stack:
        try:
            yield {
                "llama": stack.enter_context(
                    real.llama_server(folder / "llama", model="scripted.gguf", arguments=LLAMA_CHAT)
                ),
                "llama-embed": stack.enter_context(
                    real.llama_server(folder / "llama-embed", model="scripted-embed.gguf", arguments=LLAMA_EMBED)
                ),
                "ollama-old": stack.enter_context(real.ollama(folder / "old", old)),
                "ollama-rendered": stack.enter_context(real.ollama(folder / "rendered", new, OLLAMA_GO_TEMPLATE="1")),
                "ollama-native": stack.enter_context(real.ollama(folder / "native", new, OLLAMA_GO_TEMPLATE="0")),
            }
        except real.EngineStartError as error:
            pytest.fail(str(error), pytrace=False)
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def flm(engines: dict[str, real.Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A proxy, running, with every engine registered by hand."""
    installation = Installation(tmp_path_factory.mktemp("flm"))
    for name, engine in engines.items():
        installation.run("engines", "add", "--id", name, "--kind", engine.kind, "--url", engine.url)
    installation.start()
    yield installation
    installation.stop()
    assert installation.faults() == []


@pytest.fixture(scope="session")
def client(flm: Installation) -> Iterator[openai.OpenAI]:
    """The official client, talking to that proxy."""
    with flm.client() as opened:
        yield opened


@pytest.fixture(params=CHAT_ENGINES)
def target(request: pytest.FixtureRequest, engines: dict[str, real.Engine]) -> Target:
    """Each engine that chats, one after the other."""
    return Target(request.param, engines[request.param])

"""What the tests of this folder share: a demo engine of every dialect, one FLM in front of them, both clients.

Knows where engines of one dialect differ in the names they give their models; the rest is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from flm.demo.registry import DIALECTS as DEMOS
from flm.engines.registry import DIALECTS
from tests.clients.drivers import NODE_FOLDER, Client, Server, node_clients, python_clients
from tests.real.installation import Installation
from tests.support.demo import Demo, demo_engine

SLOW_FIRST_BYTE_SECONDS = 0.2
ODD_MODEL = "library/demo-think:q4_0"
"""A name with both of the characters that ids must carry; by it every dialect's engine chats, and thinks if asked."""
EMBED_MODEL = "demo-embed:latest"
POLICY = '{"auth_failure_limit":{"rpm":0}}'  # wrong keys are tried on purpose, quickly
KINDS = sorted(set(DIALECTS) & set(DEMOS))


@dataclass(frozen=True, slots=True)
class Target:
    """One engine behind FLM. `chat` and `embed`: ids of its models; `slow`: the same engine with little patience."""

    kind: str
    engine: Demo
    server: Server
    chat: str
    embed: str
    slow: str

    def asked(self, route: str = "chat") -> list[dict[str, object]]:
        """The requests that reached the engine for translated work, oldest first."""
        return [one for one in self.engine.requests() if one["method"] == "POST" and route in str(one["path"])]


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, Demo]]:
    """By dialect one that chats, and one `KIND-embed` that makes embeddings: some engines do only one of both."""
    with ExitStack() as stack:
        found = {}
        for kind in KINDS:
            found[kind] = stack.enter_context(demo_engine(kind, "--model", ODD_MODEL))
            found[f"{kind}-embed"] = stack.enter_context(demo_engine(kind, "--model", EMBED_MODEL))
        yield found


@pytest.fixture(scope="session")
def flm(engines: dict[str, Demo], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A proxy in front of all of them. What the tests break on purpose does not count against an engine."""
    installation = Installation(tmp_path_factory.mktemp("flm"))
    installation.run("config", "set", "engine.discover", "false")
    installation.run("config", "set", "engine.failure_threshold", "100")
    for name, engine in engines.items():
        kind = name.removesuffix("-embed")
        installation.run("engines", "add", "--id", name, "--kind", kind, "--url", engine.url)
        if kind == name:
            patience = ("--first-byte-timeout", str(SLOW_FIRST_BYTE_SECONDS))
            installation.run("engines", "add", "--id", f"{kind}-slow", "--kind", kind, "--url", engine.url, *patience)
    installation.run("security", "policy", "set", "--json", POLICY)
    installation.start()
    yield installation
    installation.stop()
    assert installation.faults() == []


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, engines: dict[str, Demo], flm: Installation) -> Iterator[Target]:
    """Each engine, one after the other, with an empty journal."""
    kind = request.param
    engines[kind].clear()
    ids = (f"flm://{kind}/{ODD_MODEL}", f"flm://{kind}-embed/{EMBED_MODEL}", f"flm://{kind}-slow/{ODD_MODEL}")
    yield Target(kind, engines[kind], Server(f"http://127.0.0.1:{flm.port}/v1", flm.key), *ids)
    engines[kind].clear()


@pytest.fixture(scope="session")
def _clients() -> Iterator[dict[str, Client]]:
    with ExitStack() as stack:
        found = {"python": stack.enter_context(python_clients())}
        if (NODE_FOLDER / ".ready").exists():
            found["node"] = stack.enter_context(node_clients())
        yield found


WANTING = "the official Node client is not installed: `make node-client` does it, with Node 20 and npm"


@pytest.fixture(params=["python", "node"])
def client(request: pytest.FixtureRequest, _clients: dict[str, Client]) -> Client:
    """Each of the official clients."""
    if request.param not in _clients:
        pytest.skip(WANTING)
    return _clients[request.param]


@pytest.fixture
def both(_clients: dict[str, Client]) -> dict[str, Client]:
    """Both of them, by name."""
    if "node" not in _clients:
        pytest.skip(WANTING)
    return _clients

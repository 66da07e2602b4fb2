"""The CAs that the tests of this folder share: Pebble as it comes (it refuses every seventh nonce), and one that
refuses none, for tests that count requests. Each test has clients and fronts of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flm.runtime import issuance
from tests.acme.harness import Client
from tests.support import pebble
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, scripted

PROFILES = {
    "classic": {"description": "90 days", "validityPeriod": 7_776_000},
    "shortlived": {"description": "6 days", "validityPeriod": 518_400},
    "minutes": {"description": "5 minutes", "validityPeriod": 300},
    "blink": {"description": "20 seconds", "validityPeriod": 20},
    "moments": {"description": "forty seconds", "validityPeriod": 40},
}
BLOCKED = "blocked.flm.example"

NewClient = Callable[..., Client]


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    """Refuses nonces, has profiles and a blocked name."""
    at = tmp_path_factory.mktemp("ca") / "pebble"
    with pebble.running(at, profiles=PROFILES, blocked=(BLOCKED,), AUTHZREUSE=0) as running:
        yield running


@pytest.fixture(scope="session")
def calm_ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    """Takes every nonce, so the requests of an attempt are the same each time."""
    at = tmp_path_factory.mktemp("calm") / "pebble"
    with pebble.running(at, WFE_NONCEREJECT=0, AUTHZREUSE=0) as running:
        yield running


@pytest.fixture
def front(ca: Ca) -> Iterator[Front]:
    with scripted(ca) as running:
        yield running


@pytest.fixture
def calm_front(calm_ca: Ca) -> Iterator[Front]:
    with scripted(calm_ca) as running:
        yield running


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of the attempts of a test, as they are started."""
    pids: list[int] = []
    start = issuance._start

    async def recorded(theirs: socket.socket) -> asyncio.subprocess.Process:
        child = await start(theirs)
        pids.append(child.pid)
        return child

    monkeypatch.setattr(issuance, "_start", recorded)
    return pids


@pytest.fixture
def client(tmp_path: Path) -> NewClient:
    """Makes a client of a CA or of a front: `async with client(ca) as …`."""

    def make(of: Ca | Front, name: str = "acme") -> Client:
        ca = of if isinstance(of, Ca) else of.ca
        return Client(tmp_path / name, of.directory, of.ca_file, ca.http_port, ca.lasting)

    return make

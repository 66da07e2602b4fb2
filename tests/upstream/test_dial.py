"""Several addresses of one name: tried in turn and side by side; the first that accepts wins, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from flm.engines.base import UpstreamRequest
from flm.errors import EngineTimeoutError, ErrorKind, RequestError
from flm.upstream import dial as module
from flm.upstream.dial import alternating, dial
from flm.upstream.pool import Pool, Timeouts
from tests.support.engine import ScriptedEngine, answer, receive, say, stall
from tests.support.ports import free_port
from tests.upstream.conftest import Run

ASK = UpstreamRequest("/v1/models", b"", "GET")
SIX, OTHER_SIX, FOUR, OTHER_FOUR = "fe00::1", "fe00::2", "192.0.2.1", "192.0.2.2"


class Network:
    """Addresses that accept, refuse or swallow packets; `tried` in order, `given_up` what was not needed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.does: dict[str, str] = {}
        self.tried: list[str] = []
        self.given_up: list[str] = []
        self.cancelled: list[str] = []
        self.changed = asyncio.Event()
        self.release = asyncio.Event()
        self._monkeypatch = monkeypatch

    def __call__(self, does: dict[str, str]) -> Network:
        self.does = does

        async def resolve(host: str, port: int) -> list[str]:
            return list(does)

        self._monkeypatch.setattr(module, "_resolve", resolve)
        return self

    async def attempt(self, address: str) -> str:
        self.tried.append(address)
        self.changed.set()
        what = self.does[address]
        if what == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, address)
        if what == "no route":
            raise OSError(errno.ENETUNREACH, address)
        if what == "later":
            await self.release.wait()
        elif what == "swallows":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(address)
                raise
        return address

    async def dial(self, seconds: float = 3.0) -> str:
        return await dial("name", 1, self.attempt, self.given_up.append, seconds)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@pytest.mark.parametrize(
    ("does", "winner", "tried"),
    [
        ({SIX: "accepts", FOUR: "accepts"}, SIX, [SIX]),
        ({SIX: "refuses", FOUR: "accepts"}, FOUR, [SIX, FOUR]),
        ({SIX: "no route", FOUR: "accepts"}, FOUR, [SIX, FOUR]),
        ({SIX: "swallows", FOUR: "accepts"}, FOUR, [SIX, FOUR]),
        ({SIX: "swallows", FOUR: "refuses", OTHER_SIX: "accepts"}, OTHER_SIX, [SIX, FOUR, OTHER_SIX]),
        ({SIX: "swallows", OTHER_SIX: "swallows", FOUR: "swallows", OTHER_FOUR: "accepts"}, OTHER_FOUR, 4),
    ],
)
def test_who_wins(run: Run, network: Network, does: dict[str, str], winner: str, tried: Any) -> None:
    async def main() -> None:
        network(does)
        assert await network.dial(seconds=0.2) == winner  # the attempts are spread over what time there is
        assert network.tried == (tried if isinstance(tried, list) else list(does))
        assert network.cancelled == [address for address in network.tried if does[address] == "swallows"]
        assert network.given_up == []

    run(main())


def test_a_failure_is_not_waited_for(run: Run, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAGGER_SECONDS", 1000.0)

    async def main() -> None:
        network({SIX: "refuses", FOUR: "no route", OTHER_FOUR: "accepts"})
        assert await network.dial(seconds=10_000) == OTHER_FOUR

    run(main())


@pytest.mark.parametrize(
    ("does", "error"),
    [
        ({SIX: "no route", FOUR: "refuses"}, errno.ECONNREFUSED),
        ({SIX: "refuses", FOUR: "no route"}, errno.ECONNREFUSED),
        ({SIX: "no route", FOUR: "no route"}, errno.ENETUNREACH),
    ],
)
def test_nobody_accepts(run: Run, network: Network, does: dict[str, str], error: int) -> None:
    async def main() -> None:
        network(does)
        with pytest.raises(OSError, match=f"Errno {error}"):
            await network.dial()

    run(main())


def test_two_that_accept_at_once(run: Run, network: Network) -> None:
    async def main() -> None:
        network({SIX: "later", FOUR: "later"})
        dialling = asyncio.create_task(network.dial(seconds=0.1))
        while len(network.tried) < 2:
            network.changed.clear()
            await network.changed.wait()
        network.release.set()
        winner = await dialling
        assert {winner, *network.given_up} == {SIX, FOUR}
        assert len(network.given_up) == 1

    run(main())


@pytest.mark.parametrize("attempts", [1, 2])
def test_cancelled_nothing_goes_on(run: Run, network: Network, attempts: int) -> None:
    async def main() -> None:
        network({SIX: "swallows", FOUR: "swallows", OTHER_FOUR: "swallows"})
        dialling = asyncio.create_task(network.dial(seconds=0.1 if attempts == 2 else 1e6))
        while len(network.tried) < attempts:
            network.changed.clear()
            await network.changed.wait()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        assert network.cancelled == network.tried

    run(main())


def test_families_take_turns() -> None:
    assert alternating([SIX, OTHER_SIX, FOUR, OTHER_FOUR]) == [SIX, FOUR, OTHER_SIX, OTHER_FOUR]
    assert alternating([FOUR, OTHER_FOUR, SIX]) == [FOUR, SIX, OTHER_FOUR]
    assert alternating([FOUR, FOUR]) == [FOUR]


# --- with a pool, on real sockets -----------------------------------------------------------------------------------


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name has these addresses; the names that were asked for."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return list(addresses)

    monkeypatch.setattr(module, "_resolve", resolve)
    return asked


def open_pool(url: str, connect: float = 5.0) -> Pool:
    timeouts = Timeouts(connect, 5, 5)
    return Pool(url, credential=None, idle_seconds=5, timeouts=timeouts, max_in_flight=0)


@contextlib.contextmanager
def nobody_at(address: str) -> Iterator[int]:
    """A port of which nobody listens at `address` meanwhile: it is bound, and connecting there is refused."""
    port = free_port()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as bound:
        bound.bind((address, port))
        yield port


OK = [receive(), say(answer(200, b"ok", b"connection: close"))]


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("order", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]], ids=["6 first", "4 first"])
def test_localhost_for_an_engine_on_one_family(
    run: Run, monkeypatch: pytest.MonkeyPatch, bind: str, order: list[str]
) -> None:
    asked = resolving_to(monkeypatch, *order)

    async def main() -> None:
        (other,) = {*order} - {bind}
        with nobody_at(other) as port:
            async with ScriptedEngine(OK, host=bind, port=port):
                await ask_thrice(port)

    async def ask_thrice(port: int) -> None:
        pool = open_pool(f"http://localhost:{port}")
        for _ in range(3):
            response = await pool.send(ASK)
            assert await response.read() == b"ok"
            response.release()
        assert asked == ["localhost"] * 3, "resolved at each connect"
        await pool.close()

    run(main())


def test_an_engine_that_moves_to_another_address_of_its_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ScriptedEngine(OK) as engine:
            resolving_to(monkeypatch, "127.0.0.2")
            pool = open_pool(f"http://name:{engine.port}")
            with pytest.raises(RequestError) as refused:
                await pool.send(ASK)
            assert refused.value.kind is ErrorKind.ENGINE_UNAVAILABLE
            resolving_to(monkeypatch, "127.0.0.1")
            (await pool.send(ASK)).abort()
            await pool.close()

    run(main())


def full_backlog() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that completes no more connections: as an address that swallows packets."""
    listener = socket.create_server(("127.0.0.2", 0), backlog=0)
    clients = []
    for _ in range(3):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        clients.append(client)
    return listener, clients


def test_one_address_that_swallows_packets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, clients = full_backlog()
    port = listener.getsockname()[1]

    async def main() -> None:
        resolving_to(monkeypatch, "127.0.0.2")
        pool = open_pool(f"http://name:{port}", connect=0.2)
        with pytest.raises(EngineTimeoutError, match="did not accept") as late:
            await pool.send(ASK)
        assert late.value.limit == "connect"
        resolving_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        async with ScriptedEngine(OK, port=port):
            pool = open_pool(f"http://name:{port}", connect=5)
            (await pool.send(ASK)).abort()
            await pool.close()

    try:
        run(main())
    finally:
        for each in [*clients, listener]:
            each.close()


def test_a_name_that_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(module, "_resolve", resolve)

    async def main() -> None:
        pool = open_pool("http://nobody.invalid:1")
        with pytest.raises(RequestError) as unknown:
            await pool.send(ASK)
        assert unknown.value.kind is ErrorKind.ENGINE_UNAVAILABLE
        assert "http://nobody.invalid:1" in unknown.value.message
        assert "Name or service not known" in unknown.value.message

    run(main())


def test_the_name_is_resolved_by_the_system(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(answer(200, b"ok")), stall()]) as engine:
            pool = open_pool(f"http://localhost:{engine.port}")
            response = await pool.send(ASK)
            assert await response.read() == b"ok"
            response.release()
            await pool.close()

    run(main())

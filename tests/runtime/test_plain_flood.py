"""The plain-HTTP port under floods: whoever else the supervisor serves is served all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from flm.runtime import control, plain
from flm.runtime.control import ControlServer, Request
from flm.runtime.plain import PlainListener
from flm.tls.plain import Site
from tests.runtime.flood import KINDS, flooding
from tests.runtime.harness import get, run, running

SECONDS = 20  # that nothing takes; a hang fails by it
CHALLENGE = "/.well-known/acme-challenge/token"


@pytest.mark.parametrize("kind", KINDS)
def test_control_connections_are_answered_and_so_is_an_authority(kind: str, tmp_path: Path) -> None:
    async def fine(_request: Request, _connection: socket.socket) -> object:
        return "fine"

    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=4096) as on,
            control.listen(tmp_path / "control") as controlled,
        ):
            controls = ControlServer(controlled, fine)
            listener = PlainListener([on], Site(("a",), 443, {"token": "answer"}))
            controls.start()
            listener.start()
            async with flooding(on.getsockname()[1], kind):
                for _ in range(10):
                    assert await control.ask(tmp_path / "control", Request("status"), SECONDS) == "fine"
                    assert listener.connections <= plain.MOST_CONNECTIONS
                    async with asyncio.timeout(SECONDS):
                        assert (await get(on.getsockname()[1], CHALLENGE)).endswith(b"\r\n\r\nanswer")
            await listener.close()
            await controls.pause()

    run(main)


@pytest.mark.parametrize("kind", ["silent", "endless", "good"])
def test_a_worker_that_dies_meanwhile_comes_back(kind: str, tmp_path: Path) -> None:
    """The whole tree: status, HTTPS, death and the end of a worker, a reload."""

    async def main() -> None:
        async with running(tmp_path, proxy__mode="dev-selfsigned") as proxy, flooding(proxy.plain_port, kind):
            before = await proxy.handle()
            os.kill(before.worker_pids[0], signal.SIGKILL)
            async with asyncio.timeout(SECONDS):
                assert (await get(proxy.port, tls=proxy.trusting())).startswith(b"HTTP/1.1 200")
            async with asyncio.timeout(SECONDS):  # it answers a moment before the supervisor knows
                while not set((after := await proxy.handle()).worker_pids) - set(before.worker_pids):
                    pass
            assert after.pid == before.pid
            await proxy.service.reload()
            assert (await proxy.handle()).worker_pids != after.worker_pids
            assert (await get(proxy.plain_port)).startswith(b"HTTP/1.1 308")

    run(main)

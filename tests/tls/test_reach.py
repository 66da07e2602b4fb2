"""Whether names lead here, looked at from here: what is doubtful is told in words, and nothing takes long."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from flm.runtime.plain import PlainListener
from flm.tls import reach
from flm.tls.plain import Site

TOKEN, ANSWER = "probe", "probe.thumbprint"


def _doubts(
    names: Sequence[str], lookup: Callable[[str], Sequence[str]], answer: str = ANSWER
) -> tuple[list[str], int]:
    """What is told of `names`, whose port 80 is a listener of FLM's own; and that port."""

    async def scenario() -> tuple[list[str], int]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            port = listening.getsockname()[1]
            listener = PlainListener([listening], Site(("flm.example",), 443, {TOKEN: answer}))
            listener.start()
            try:
                return await asyncio.to_thread(reach.warnings, names, TOKEN, ANSWER, lookup, port), port
            finally:
                await listener.close()

    return asyncio.run(scenario())


def test_a_name_that_leads_here_is_not_doubted() -> None:
    assert _doubts(["a.example", "b.example"], lambda _name: ["127.0.0.1"])[0] == []


def test_a_name_without_an_address() -> None:
    def unknown(_name: str) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    told = _doubts(["a.example"], unknown)[0]
    assert told == ["a.example has no address that this machine's DNS knows (Name or service not known)"]


def test_a_second_address_that_leads_nowhere_is_told_by_itself() -> None:
    """The CA tries an IPv6 address first: a stale AAAA record beside a good A record is the usual trap."""
    told, port = _doubts(["a.example"], lambda _name: ["127.0.0.1", "::1"])
    (doubt,) = told
    assert doubt.startswith(f"a.example could not be reached from here on port {port}: this machine at ::1 did not ")
    assert "127.0.0.1" not in doubt
    assert "may be so only from inside this network" in doubt


def test_another_server_at_the_address() -> None:
    told, _ = _doubts(["a.example"], lambda _name: ["127.0.0.1"], "welcome")
    assert "this machine at 127.0.0.1 answered, but that was not this proxy" in told[0]


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi"])
def test_something_that_is_no_proxy(banner: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(banner)

        thread = threading.Thread(target=serve)
        thread.start()
        told = reach.warnings(["a.example"], TOKEN, ANSWER, lambda _name: ["127.0.0.1"], listening.getsockname()[1])
        thread.join(10)
    assert len(told) == 1


def test_a_resolver_and_a_server_that_hang_are_not_waited_for() -> None:
    going_on = threading.Event()

    def hanging(name: str) -> Sequence[str]:
        if name == "slow.example":
            going_on.wait(30)
        return ["127.0.0.1"]

    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts in the kernel, and says nothing
        began = time.monotonic()
        told = reach.warnings(["slow.example", "mute.example"], TOKEN, ANSWER, hanging, listening.getsockname()[1])
        took = time.monotonic() - began
        going_on.set()
    assert told[0] == "slow.example could not be checked from here within 3 s"
    assert told[1].startswith("mute.example could not be ")
    assert reach.SECONDS <= took < reach.SECONDS + 2

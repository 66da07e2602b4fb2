"""Listening sockets: who holds a port, what the kernel is told, how many clients fit."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime import sockets


def test_one_port_for_all_slots() -> None:
    opened = sockets.open_listening("127.0.0.1", 0, 3, 60)
    try:
        assert len({each.getsockname() for each in opened}) == 1
        for each in opened:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not os.get_inheritable(each.fileno())
        more = sockets.add_listening(opened[0], 1, 60)
        assert more[0].getsockname() == opened[0].getsockname()
        more[0].close()
    finally:
        for each in opened:
            each.close()


def test_options_are_inherited_by_connections() -> None:
    (listening,) = sockets.open_listening("127.0.0.1", 0, 1, 7)
    listening.setblocking(True)
    with listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sockets.set_send_timeout(listening, 9)  # as a reload does
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000


@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_is_refused_with_its_holder(shared: bool) -> None:
    with socket.socket() as taken:
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CommandError, match=rf"\(pid {os.getpid()}\)") as caught:
            sockets.open_listening("127.0.0.1", taken.getsockname()[1], 1, 60)
        assert caught.value.code is CommandCode.PROXY_PORT_IN_USE


def test_a_port_taken_on_all_addresses_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(CommandError) as caught:
            sockets.open_listening("127.0.0.1", taken.getsockname()[1], 1, 60)
        assert caught.value.code is CommandCode.PROXY_PORT_IN_USE


def test_connections_in_time_wait_do_not_hold_a_port() -> None:
    (first,) = sockets.open_listening("127.0.0.1", 0, 1, 60)
    first.setblocking(True)
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = first.accept()
        accepted.close()  # closed here first: TIME_WAIT is on this side
    first.close()
    (second,) = sockets.open_listening("127.0.0.1", port, 1, 60)
    second.close()


@pytest.mark.parametrize("address", ["localhost", "", "127.0.0.1:80", "::1%lo", "1.2.3"])
def test_only_ip_literals_are_bound(address: str) -> None:
    with pytest.raises(CommandError, match=r"proxy\.bind"):
        sockets.open_listening(address, 0, 1, 60)


def test_another_machines_address_is_refused() -> None:
    with pytest.raises(CommandError, match=r"not an address of this machine; `--bind ADDRESS` or .* `\*` for all"):
        sockets.open_listening("192.0.2.1", 0, 1, 60)


def test_nobody_holds_a_free_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening
        assert sockets.holder(free.getsockname()[1]) is None


@pytest.mark.parametrize(
    ("descriptors", "in_flight", "connections"), [(20_000, 1024, 16_384), (4096, 1024, 3008), (256, 1024, 96)]
)
def test_connections_leave_room_for_engines(descriptors: int, in_flight: int, connections: int) -> None:
    allowed = sockets.connections_allowed(descriptors, in_flight)
    assert allowed == connections
    assert allowed + sockets.RESERVED_DESCRIPTORS <= descriptors


def test_too_few_descriptors_are_refused_and_few_are_warned_of() -> None:
    with pytest.raises(CommandError, match="LimitNOFILE"):
        sockets.connections_allowed(100, 1024)
    assert sockets.descriptor_warning(2112, 1024) is None
    assert "2112" in (sockets.descriptor_warning(2111, 1024) or "")


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400)); from flm.runtime import sockets; "
        "print(sockets.raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "400", "400"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0

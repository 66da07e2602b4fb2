"""Listening sockets: who holds a port, what the kernel is told, how many clients fit."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=9), st.integers(1, 9))
def test_every_socket_has_a_worker_and_every_worker_each_address(addresses: list[str], slots: int) -> None:
    listening = [Listening(address) for address in addresses]
    shares = [sockets.share(cast("list[socket.socket]", listening), slot, slots) for slot in range(slots)]
    assert {id(each) for served in shares for each in served} == {id(each) for each in listening}
    for served in shares:
        assert {each.getsockname() for each in served} == {each.getsockname() for each in listening}


def test_with_one_socket_each_nobody_shares() -> None:
    listening = cast("list[socket.socket]", [Listening("a") for _ in range(4)])
    assert [sockets.share(listening, slot, 4) for slot in range(4)] == [[each] for each in listening]
    assert [sockets.share(listening, slot, 3) for slot in range(3)] == [
        [listening[0], listening[3]],
        [listening[1]],
        [listening[2]],
    ]


class Listening:
    """As much of a socket as sharing looks at."""

    def __init__(self, address: str) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address, 1


def test_a_port_that_may_not_be_bound_is_refused_with_the_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)  # root, and whoever runs in some containers, may bind all
    with pytest.raises(CommandError) as refused:
        sockets.open_listening("127.0.0.1", 80, 1, 60)
    assert refused.value.code is CommandCode.PROXY_INVALID_CONFIG
    assert refused.value.message == sockets.may_not_bind(80)


def test_the_ways_out_can_be_copied(tmp_path: Path) -> None:
    program = tmp_path / "a python"
    program.touch()
    (tmp_path / "link").symlink_to(program)
    told = sockets.may_not_bind(80, str(tmp_path / "link"), linux=True)
    assert f"`sudo setcap cap_net_bind_service=+ep '{program}'`" in told
    assert "a socket unit" in told
    assert "`--port 8880 --https-port 8443`" in told
    elsewhere = sockets.may_not_bind(80, linux=False)
    assert "setcap" not in elsewhere
    assert "`--port 8880 --https-port 8443`" in elsewhere

"""What this machine is called, and that only names of its own surroundings are offered."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
import sys
from pathlib import Path

import pytest

from flm.tls import interfaces
from flm.tls.interfaces import MAX_ADDRESSES, Address, addresses, host_name, is_host_name, is_private, local_names

SIOCGIFADDR = 0x8915  # of linux/sockios.h


def having(monkeypatch: pytest.MonkeyPatch, host: str, *found: str) -> tuple[str, ...]:
    monkeypatch.setattr(interfaces.socket, "gethostname", lambda: host)
    monkeypatch.setattr(interfaces, "addresses", lambda: set(map(ipaddress.ip_address, found)))
    return local_names()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux in two other ways")
def test_the_machines_own_addresses() -> None:
    """As the kernel tells them elsewhere: of IPv6 all, of IPv4 the first of each interface."""
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    of_six = {ipaddress.ip_address(bytes.fromhex(line.split()[0])) for line in lines}
    of_four = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                of_four.add(ipaddress.ip_address(answer[20:24]))
    found = addresses()
    assert of_four
    assert of_four <= found
    assert {each for each in found if each.version == 6} == of_six


def test_an_interface_that_is_down_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = addresses()
    monkeypatch.setattr(interfaces, "_UP", 1 << 30)  # a flag that none has
    assert found
    assert addresses() == set()


def test_an_address_that_a_socket_is_bound_to_is_among_them() -> None:
    assert ipaddress.ip_address("127.0.0.1") in addresses()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        assert ipaddress.ip_address(probe.getsockname()[0]) in addresses()


def test_names_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ("192.168.1.5", "10.0.0.2", "203.0.113.9", "127.0.0.1", "::1", "fd00::2", "fe80::1", "2001:db8::1")
    assert having(monkeypatch, "Box", *found) == (
        "localhost", "box", "box.local", "127.0.0.1", "::1", "10.0.0.2", "192.168.1.5", "fd00::2",
    )  # fmt: skip
    assert having(monkeypatch, "Box", *reversed(found)) == local_names()


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("box.example.org.", ("box.example.org",)),
        ("Mac.local", ("mac.local",)),
        ("localhost", ("localhost.local",)),
        ("under_score", ()),
        ("-box", ()),
        ("a" * 64, ()),
        ("bücher", ()),
        ("", ()),
        ("box\n", ()),
    ],
)
def test_a_host_without_a_usable_name(monkeypatch: pytest.MonkeyPatch, host: str, names: tuple[str, ...]) -> None:
    assert having(monkeypatch, host) == ("localhost", *names, "127.0.0.1", "::1")


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def getifaddrs(self, _first: object) -> int:
            return -1

    monkeypatch.setattr(interfaces.ctypes, "CDLL", lambda *_, **__: Silent())
    assert addresses() == set()
    assert local_names()[0] == "localhost"


def test_a_great_many_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    many: list[Address] = [ipaddress.ip_address(number) for number in range(1, 1000)]
    monkeypatch.setattr(interfaces, "_each", lambda _first: iter(many))
    assert addresses() == set(many[:MAX_ADDRESSES])


@pytest.mark.parametrize(("family", "length"), [(2, 16), (10, 28)])
def test_a_family_as_linux_and_as_bsd_have_it(monkeypatch: pytest.MonkeyPatch, family: int, length: int) -> None:
    monkeypatch.setattr(interfaces.sys, "platform", "linux")
    monkeypatch.setattr(interfaces.sys, "byteorder", "little")
    assert interfaces._family(bytes([family, 0])) == family
    monkeypatch.setattr(interfaces.sys, "platform", "darwin")
    assert interfaces._family(bytes([length, family])) == family


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.9.9.9", True), ("10.255.0.1", True), ("172.15.0.1", False), ("172.31.0.1", True), ("192.168.0.1", True),
        ("100.64.0.1", True), ("100.128.0.1", False), ("169.254.1.1", True), ("8.8.8.8", False), ("0.0.0.0", False),
        ("::1", True), ("::2", False), ("fd12::1", True), ("fe80::1", True), ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
    ],
)  # fmt: skip
def test_private(address: str, private: bool) -> None:
    assert is_private(ipaddress.ip_address(address)) is private


def test_host_names() -> None:
    assert is_host_name("Box.Example.ORG")
    assert is_host_name(host_name() or "localhost")
    for wrong in ("", ".", "a.", ".a", "a..b", "a_b", "*.a", "a b", "a\n", "a" * 64, "ab." * 90, "é", "\u212a"):
        assert not is_host_name(wrong)

"""The names and addresses under which machines nearby reach this one.

Strategy: the addresses are those of all interfaces that are up, asked of the C library (getifaddrs, in glibc, musl and
macOS alike; the standard library has nothing of the kind), and the host's name is the one it was given: no name server
is asked, so nothing waits and nothing is believed that others say.

Knows no certificate; knows which networks are never anybody else's on the internet. Blocking, for microseconds.
"""

from __future__ import annotations

import ctypes
import ipaddress
import re
import socket
import sys
from collections.abc import Iterator
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Loopback, private (RFC 1918), shared (RFC 6598: also what overlay networks hand out), link-local, and of IPv6 unique
# local (RFC 4193): each means another machine in another place, so a certificate for them is worth nothing elsewhere.
PRIVATE_NETWORKS: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
MAX_ADDRESSES: Final = 64  # of interfaces; a machine with many container networks has dozens
_UP: Final = 1  # IFF_UP of net/if.h
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


class _Interface(ctypes.Structure):
    """`struct ifaddrs`, as far as it is the same everywhere."""


_Interface._fields_ = [
    ("next", ctypes.POINTER(_Interface)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def local_names() -> tuple[str, ...]:
    """`localhost`, this host's name (and `<name>.local` where it has one label), loopback addresses, and the addresses
    of this machine in PRIVATE_NETWORKS, in an order that stays.

    IPv6 link-local addresses are left out: no URL of a browser can hold one. So are addresses of the internet.
    """
    names = ["localhost", "127.0.0.1", "::1"]
    host = host_name()
    if host:
        names[1:1] = [host] if "." in host else [host, f"{host}.local"]
    names += [
        str(address) for address in sorted(addresses(), key=lambda each: (each.version, each)) if _useful(address)
    ]
    return tuple(dict.fromkeys(names))


def host_name() -> str:
    """The name this machine was given, in lower case; empty if no DNS name can be like it."""
    name = socket.gethostname().lower().removesuffix(".")
    return name if is_host_name(name) else ""


def addresses() -> set[Address]:
    """The addresses of all interfaces that are up, MAX_ADDRESSES at most. Empty if the system does not tell."""
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Interface)()
    if library.getifaddrs(ctypes.byref(first)) != 0:
        return set()
    try:
        found: set[Address] = set()
        for address in _each(first):
            if len(found) < MAX_ADDRESSES:
                found.add(address)
        return found
    finally:
        library.freeifaddrs(first)


def is_private(address: Address) -> bool:
    """Whether it is in PRIVATE_NETWORKS."""
    return any(address.version == network.version and address in network for network in PRIVATE_NETWORKS)


def is_host_name(text: str) -> bool:
    """Whether it can be a host's name in DNS (RFC 1123 §2.1), without a final dot. An IPv4 address can."""
    return text.isascii() and _HOST.fullmatch(text) is not None


def _order(address: Address) -> tuple[int, bytes]:
    return address.version, address.packed


def _useful(address: Address) -> bool:
    return is_private(address) and not (address.version == 6 and address.is_link_local)


def _each(entry: ctypes._Pointer[_Interface]) -> Iterator[Address]:
    while bool(entry):  # false if it is null
        interface = entry.contents
        if interface.address and interface.flags & _UP:
            family = _family(ctypes.string_at(interface.address, 2))
            if family == socket.AF_INET:  # sockaddr_in: family, port, address
                yield ipaddress.IPv4Address(ctypes.string_at(interface.address + 4, 4))
            elif family == socket.AF_INET6:  # sockaddr_in6: family, port, flow, address
                yield ipaddress.IPv6Address(ctypes.string_at(interface.address + 8, 16))
        entry = interface.next


def _family(start: bytes) -> int:
    """Of a `struct sockaddr`; where it comes from BSD, its first byte is its length."""
    return start[1] if sys.platform == "darwin" else int.from_bytes(start, sys.byteorder)

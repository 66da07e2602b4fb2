"""Where a request comes from: networks, the client's address behind trusted proxies, and the owner of its buckets.

A proxy appends the address it was connected from, so a chain is worth believing from its right end, and only as far as
each hop that says something is trusted itself: the walk begins at the peer and stops at the first hop that is not.
Whatever a client made up stands further to the left, and each element is taken off the right end without looking at
what is before it: an open quotation mark in the client's part cannot hide what a proxy has added.

An IPv4 address that is written as IPv6 (`::ffff:192.0.2.1`) is the IPv4 address everywhere. Knows addresses as text;
no socket, no request.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from flm.policy.document import AddressHeader, network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REMEMBERED: Final = 4096  # addresses taken apart before; a proxy or an office shows the same ones again and again
_V4_OWNERS: Final = 0x0000_FFFF_0000_0000
_COMMAS_IN_QUOTES: Final = 16  # in one element of Forwarded; more is no honest proxy's


@lru_cache(_REMEMBERED)
def _parsed(text: str) -> Address | None:
    """The address that `text` is, without its zone, v4-mapped ones as IPv4; None if it is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


class Networks:
    """A set of networks, asked in a time that depends on how many lengths of prefix there are, not how many networks.

    Raises ValueError for what is no address and no network.
    """

    def __init__(self, cidrs: Iterable[str]) -> None:
        lengths: dict[tuple[int, int], set[int]] = {}
        for cidr in cidrs:
            found = network(cidr)
            bits = found.max_prefixlen - found.prefixlen
            lengths.setdefault((found.version, bits), set()).add(int(found.network_address) >> bits)
        self._of: Final = {
            version: tuple((bits, frozenset(held)) for (of, bits), held in sorted(lengths.items()) if of == version)
            for version in (4, 6)
        }

    def __bool__(self) -> bool:
        """Whether there is any network at all."""
        return any(self._of.values())

    def holds(self, address: str) -> bool:
        """Whether one of the networks holds `address`; False for what is no address."""
        found = _parsed(address)
        if found is None:
            return False
        number = int(found)
        return any(number >> bits in held for bits, held in self._of[found.version])


def client_address(peer: str, forwarded_lines: Sequence[bytes], trusted: Networks, header: AddressHeader) -> str:
    """The address of who asked, in its shortest form: `peer`, or whom trusted proxies say they speak for.

    `peer`: the other end of the connection. `forwarded_lines`: the values of the header named `header`, as they came;
    lines that were joined with a comma before are the same. The walk stops at the first hop that is not trusted, and
    before what is no address (an obfuscated or unknown one too); if all are trusted it ends at the leftmost. A peer
    that is no address comes back as it is.
    """
    found = _parsed(peer)
    if found is None:
        return peer
    here = str(found)
    if not forwarded_lines or not trusted.holds(here):
        return here
    hops = _plain_hops if header == "x-forwarded-for" else _forwarded_hops
    for hop in hops(b",".join(forwarded_lines).decode("latin-1")):
        if hop is None:
            return here
        here = str(hop)
        if not trusted.holds(here):
            return here
    return here


def bucket_owner(address: str) -> int:
    """The number (64 bits) by which buckets know an address: of IPv6 its /64, which one household has to itself.

    IPv4 addresses stand where no IPv6 network is routed (`0:0:ffff::/48` and below is reserved, RFC 4291). What is no
    address has the number 0, and shares it with the IPv6 loopback.
    """
    found = _parsed(address)
    if found is None:
        return 0
    return _V4_OWNERS | int(found) if found.version == 4 else int(found) >> 64


def owner_text(owner: int) -> str:
    """What `bucket_owner` made a number of, for people: an IPv4 address, or an IPv6 network of 64 bits."""
    if owner >> 32 == _V4_OWNERS >> 32:
        return str(ipaddress.IPv4Address(owner & 0xFFFF_FFFF))
    return str(ipaddress.IPv6Network((owner << 64, 64)))


# --- chains, from the right -------------------------------------------------------------------------------------------


def _plain_hops(text: str) -> Iterator[Address | None]:
    """The hops of X-Forwarded-For; None for one that is no address. Empty ones are passed over (RFC 9110, 5.6.1)."""
    end = len(text)
    while end >= 0:
        start = text.rfind(",", 0, end) + 1
        item = text[start:end].strip(" \t")
        if item:
            yield _node(item, bare=True)
        end = start - 1


_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# Beyond the grammar: blanks around `;`, and addresses that should stand in quotation marks and do not.
_PAIR: Final = rf'({_NAME})=(?:"((?:[^"\\]|\\.)*+)"|([^\s",;\\]++))'
_ELEMENT: Final = re.compile(rf"[ \t]*+(?:{_PAIR})?+[ \t]*+(?:;[ \t]*+(?:{_PAIR})?+[ \t]*+)*+", re.ASCII | re.DOTALL)
_PAIRS: Final = re.compile(_PAIR, re.ASCII | re.DOTALL)


def _forwarded_hops(text: str) -> Iterator[Address | None]:
    """The hops of Forwarded (RFC 7239), likewise."""
    end = len(text)
    while end >= 0:
        start = _element_start(text, end)
        if start is None:
            yield None
            return
        item = text[start:end]
        if item.strip(" \t"):
            yield _for(item)
        end = start - 1


def _element_start(text: str, end: int) -> int | None:
    """Where the last element of `text[:end]` begins: behind the last comma that leaves a whole element to its right."""
    start = end
    for _ in range(_COMMAS_IN_QUOTES):
        start = text.rfind(",", 0, start) + 1
        if _ELEMENT.fullmatch(text, start, end):
            return start
        start -= 1
        if start < 0:
            return None
    return None


def _for(element: str) -> Address | None:
    said = [pair for pair in _PAIRS.finditer(element) if pair[1].lower() == "for"]
    if len(said) != 1:  # named twice, an element says nothing (RFC 7239, part 4)
        return None
    quoted, plain = said[0][2], said[0][3]
    return _node(plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted), bare=False)


_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._\-]+))?"  # RFC 7239, part 6: a port may be hidden too
_SIX: Final = r"[0-9A-Fa-f.]{0,4}:[0-9A-Fa-f:.]{1,44}"
_NODE: Final = re.compile(rf"(?:\[({_SIX})\]|([0-9.]{{7,15}})){_PORT}")
_BARE: Final = re.compile(_SIX)


def _node(text: str, *, bare: bool) -> Address | None:
    """`IPv4`, `IPv4:port`, `[IPv6]` or `[IPv6]:port`; IPv6 without brackets only if `bare`. None for all else."""
    found = _NODE.fullmatch(text)
    if found is not None:
        return _parsed(found[1] or found[2])
    return _parsed(text) if bare and _BARE.fullmatch(text) else None

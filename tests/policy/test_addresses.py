"""Networks, chains of proxies and the owners of buckets."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm._native import ADDRESS_BUCKETS, Buckets
from flm.policy.addresses import Networks, bucket_owner, client_address, owner_text
from flm.policy.document import AddressHeader

PROXIES = Networks(["10.0.0.0/8", "2001:db8:ffff::/48"])
XFF: AddressHeader = "x-forwarded-for"
FORWARDED: AddressHeader = "forwarded"

v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
addresses = v4 | v6


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.168.0.0/16", ["192.168.0.0", "192.168.255.255", "::ffff:192.168.3.4"], ["192.167.255.255", "::1", ""]),
        ("127.0.0.1", ["127.0.0.1", "::ffff:7f00:1"], ["127.0.0.2"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["::1", "::2:3"]),
        ("::/0", ["::1", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4"]),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0", "::a01:203"]),
        ("fe80::/10", ["fe80::1", "fe80::1%eth0"], ["fec0::1"]),
        ("2001:db8::/32", ["2001:db8:ffff::"], ["2001:db9::", "no address", "2001:db8::/32"]),
    ],
)
def test_what_a_network_holds(network: str, inside: list[str], outside: list[str]) -> None:
    networks = Networks([network])
    assert [each for each in inside if not networks.holds(each)] == []
    assert [each for each in outside if networks.holds(each)] == []


@given(st.lists(st.tuples(addresses, st.integers(0, 128)), max_size=8), addresses)
def test_networks_hold_what_the_standard_library_says(cidrs: list[tuple[str, int]], address: str) -> None:
    bits = [(ipaddress.ip_address(text), length) for text, length in cidrs]
    wanted = [ipaddress.ip_network((text, min(length, text.max_prefixlen)), strict=False) for text, length in bits]
    wanted = [each for each in wanted if each.version == 4 or not each.overlaps(ipaddress.ip_network("::ffff:0:0/96"))]
    found = ipaddress.ip_address(address)
    found = getattr(found, "ipv4_mapped", None) or found
    assert Networks(map(str, wanted)).holds(address) is any(found in each for each in wanted)


def test_no_network_holds_nothing() -> None:
    assert not Networks([])
    assert Networks(["::1"])
    assert not Networks([]).holds("127.0.0.1")


def walk(peer: str, *lines: str, header: AddressHeader = XFF, trusted: Networks = PROXIES) -> str:
    return client_address(peer, [line.encode("latin-1") for line in lines], trusted, header)


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("192.0.2.1", ["127.0.0.1"], "192.0.2.1"),  # nobody trusts this peer
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1", "10.0.0.3,10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.4, 10.0.0.3"], "10.0.0.4"),  # all are trusted: the leftmost
        ("10.0.0.1", ["10.0.0.4,, ,10.0.0.3,"], "10.0.0.4"),
        ("10.0.0.1", ["192.0.2.1, unknown, 10.0.0.3"], "10.0.0.3"),  # stops at the last good hop
        ("10.0.0.1", ["192.0.2.1, 10.0.0.3 10.0.0.4"], "10.0.0.1"),
        ("10.0.0.1", ["\xff\xb2, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1:"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1:123456"], "10.0.0.1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1"], "10.0.0.1"),
        ("10.0.0.1", ["[192.0.2.1]"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%eth0"], "10.0.0.1"),
        ("10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("2001:db8:ffff::1", ["192.0.2.1, 2001:db8:ffff::2"], "192.0.2.1"),
        ("10.0.0.1", ["0x7f.1"], "10.0.0.1"),
        ("10.0.0.1", ["127.1"], "10.0.0.1"),
        ("10.0.0.1", ["010.0.0.1"], "10.0.0.1"),
        ("fe80::1%eth0", ["192.0.2.1"], "fe80::1"),
        ("", ["192.0.2.1"], ""),
    ],
)
def test_x_forwarded_for_is_walked_from_the_right(peer: str, lines: Sequence[str], client: str) -> None:
    assert walk(peer, *lines) == client


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["for=192.0.2.1"], "192.0.2.1"),
        (["For=192.0.2.1;proto=https;by=10.0.0.1"], "192.0.2.1"),
        (["proto=https; for=192.0.2.1"], "192.0.2.1"),
        (['for="192.0.2.1:4711"'], "192.0.2.1"),
        (['for="[2001:db8::1]:4711"'], "2001:db8::1"),
        (['for="[2001:db8::1]:_port"'], "2001:db8::1"),
        (['for="[2001:db8::1]"'], "2001:db8::1"),
        (["for=[2001:db8::1]:80"], "2001:db8::1"),  # should stand in quotation marks
        (['for="2001:db8::1"'], "10.0.0.1"),  # without brackets nobody can tell the port
        (['for="\\1\\9\\2.0.2.1"'], "192.0.2.1"),
        (["for=_hidden"], "10.0.0.1"),
        (['for="_SEVKISEK"'], "10.0.0.1"),
        (["for=unknown"], "10.0.0.1"),
        (["for=6.6.6.6, for=192.0.2.1, for=10.0.0.2"], "192.0.2.1"),
        (["for=6.6.6.6", "for=192.0.2.1,for=10.0.0.2"], "192.0.2.1"),
        (["for=192.0.2.1, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
        (["for=10.0.0.3, for=10.0.0.2"], "10.0.0.3"),
        ([" , for=10.0.0.3 ,, for=10.0.0.2 ; , "], "10.0.0.3"),
        (["for=192.0.2.1;for=192.0.2.2"], "10.0.0.1"),
        (["proto=https"], "10.0.0.1"),
        (["192.0.2.1"], "10.0.0.1"),
        (["for = 192.0.2.1"], "10.0.0.1"),
        (['for="192.0.2.1'], "10.0.0.1"),
        # A client cannot hide what the proxy adds behind its own open quotation mark…
        (['for="', "for=192.0.2.1"], "192.0.2.1"),
        (['for=127.0.0.1;x="\\', 'for="192.0.2.1:1"'], "192.0.2.1"),
        (['for=127.0.0.1;x="', 'for=192.0.2.1;host="x"'], "192.0.2.1"),
        # …nor get out of the quotation marks that a proxy puts around what it was sent.
        (['for=192.0.2.1;host="a, for=127.0.0.1"'], "192.0.2.1"),
        (['for=192.0.2.1;host="a\\", for=127.0.0.1;x=\\""'], "192.0.2.1"),
        (["for=192.0.2.1;host=" + '"' + "," * 15 + '"'], "192.0.2.1"),
        (["for=192.0.2.1;host=" + '"' + "," * 16 + '"'], "10.0.0.1"),
    ],
)
def test_forwarded_is_walked_from_the_right(lines: Sequence[str], client: str) -> None:
    assert walk("10.0.0.1", *lines, header=FORWARDED) == client


@given(st.lists(st.binary(max_size=40), max_size=4), addresses, st.sampled_from([XFF, FORWARDED]))
@example([b'for="'], "192.0.2.1", FORWARDED)
@example([b'for=1.1.1.1;x="\\'], "2001:db8::1", FORWARDED)
def test_what_the_client_sent_never_hides_who_it_is(lines: list[bytes], client: str, header: AddressHeader) -> None:
    node = f"[{client}]" if ":" in client else client
    added = f'for="{node}"' if header == FORWARDED else client
    shown = ipaddress.ip_address(client)
    shown = getattr(shown, "ipv4_mapped", None) or shown
    if PROXIES.holds(client):
        return
    for sent in ([*lines, added.encode()], [b", ".join([*lines, added.encode()])]):
        assert client_address("10.0.0.1", sent, PROXIES, header) == str(shown)


@given(addresses, st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([XFF, FORWARDED]))
def test_any_chain_gives_an_address(peer: str, lines: list[bytes], header: AddressHeader) -> None:
    everyone = Networks(["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"])
    assert ipaddress.ip_address(client_address(peer, lines, everyone, header))
    assert client_address(peer, lines, Networks([]), header) == client_address(peer, [], everyone, header)


@given(st.lists(addresses, max_size=6), addresses)
def test_both_headers_say_the_same(chain: list[str], peer: str) -> None:
    trusted = Networks([peer, *chain[len(chain) // 2 :]])
    plain = [", ".join(chain).encode()]
    said = [", ".join(f'for="[{each}]"' if ":" in each else f"for={each}" for each in chain).encode()]
    assert client_address(peer, plain, trusted, XFF) == client_address(peer, said, trusted, FORWARDED)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "::c000:201", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("no address", "", True),
    ],
)
def test_who_shares_a_bucket(one: str, other: str, same: bool) -> None:
    assert (bucket_owner(one) == bucket_owner(other)) is same


def test_the_numbers_of_owners() -> None:
    assert bucket_owner("192.0.2.1") == 0x0000FFFF_C0000201
    assert bucket_owner("2001:db8:1:2:3::") == 0x20010DB8_00010002


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("0.0.0.0", "0.0.0.0"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::/64"),
    ],
)
def test_owners_for_people(address: str, text: str) -> None:
    assert owner_text(bucket_owner(address)) == text


@given(addresses)
def test_every_owner_is_one_that_buckets_take(address: str) -> None:
    assert 0 <= bucket_owner(address) < 1 << 64


def test_the_owner_of_no_address_is_limited_like_any_other(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "buckets", os.O_RDWR | os.O_CREAT, 0o600)
    buckets = Buckets.create(descriptor, bytes(16), keys=8, addresses=8, overflow=8)
    os.close(descriptor)
    granted = [buckets.take_address(ADDRESS_BUCKETS, bucket_owner(""), 10**9, 2, 10**12)[0] for _ in range(4)]
    assert granted == [True, True, False, False]

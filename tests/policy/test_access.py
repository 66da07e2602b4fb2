"""Hosts and origins, for a listener on loopback and for one that is bound wider."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from flm.policy.access import HostGuard, host_name

WIDE = {b"192.168.1.20": True, b"10.0.0.1": True, b"fe80::1": True, b"fd00::1": True, b"169.254.1.1": True}
EVERYWHERE = {
    b"localhost": True,
    b"127.0.0.1": True,
    b"127.9.9.9": True,
    b"::1": True,
    b"x.localhost": True,
    b"0:0:0:0:0:0:0:1": True,
    b"example.com": False,
    b"8.8.8.8": False,
    b"0.0.0.0": False,
    b"::": False,
    b"2001:db8:: 1": False,
    b"localhost.": False,
    b"127.1": False,
    b"2130706433": False,
    b"": False,
}


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "0.0.0.0", "::", "192.168.1.20"])
def test_which_hosts_are_answered(bind: str) -> None:
    guard = HostGuard(bind)
    for host, allowed in EVERYWHERE.items():
        assert guard.allows(host) is allowed, host
    wide = bind not in ("127.0.0.1", "::1")
    for host in WIDE:
        assert guard.allows(host) is wide, host


def test_a_public_bind_address_answers_for_itself() -> None:
    assert HostGuard("8.8.8.8").allows(b"8.8.8.8")
    assert not HostGuard("8.8.8.8").allows(b"8.8.4.4")
    assert HostGuard("2606:4700::1111").allows(b"2606:4700:0:0::1111")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"localhost", b"localhost"),
        (b"LocalHost:80", b"localhost"),
        (b"127.0.0.1:65535", b"127.0.0.1"),
        (b"[::1]", b"::1"),
        (b"[FE80::1]:1", b"fe80::1"),
        (b"", None),
        (b":80", None),
        (b"a:65536", None),
        (b"a:", None),
        (b"a:b", None),
        (b"a:1:2", None),
        (b"::1", None),
        (b"[]", None),
        (b"[::1]80", None),
        (b"a b", None),
        (b"a,b", None),
        (b"a@b", None),
        (b"a/b", None),
        (b"\xff", None),
        ("a:\uff12".encode(), None),  # a digit, but not an ASCII one
    ],
)
def test_the_host_of_a_header(value: bytes, name: bytes | None) -> None:
    assert host_name(value) == name


@given(st.binary(max_size=60))
def test_any_host_gives_a_name_or_none(value: bytes) -> None:
    name = host_name(value)
    assert name is None or (name and not set(name) & set(b" ,@/?#\\[]") and name == name.lower())


@given(st.binary(max_size=60), st.none() | st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_any_headers_pass_or_are_refused(host: bytes, origin: bytes | None, site: bytes | None) -> None:
    kinds = {None, ErrorKind.INVALID_REQUEST, ErrorKind.HOST_NOT_ALLOWED, ErrorKind.ORIGIN_NOT_ALLOWED}
    kind = None
    try:
        HostGuard("0.0.0.0").check(host, origin, site)
    except RequestError as error:
        kind = error.kind
    assert kind in kinds

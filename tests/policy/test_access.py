"""Hosts and origins, for a listener on loopback and for one that is bound wider."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from flm.policy.access import HostGuard, host_name
from flm.policy.cors import CrossOrigin

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
        (b"LocalHost.:80", b"localhost"),
        (b"a.example.", b"a.example"),
        (b"a.example..", b"a.example."),
        (b".", b"."),
        (b"127.0.0.1.", b"127.0.0.1."),
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


def kind_of(guard: HostGuard, *headers: bytes | None, preflighted: bool = False) -> ErrorKind | None:
    host, origin, site = headers
    try:
        guard.check(host, origin, site, preflighted=preflighted)
    except RequestError as error:
        return error.kind
    return None


def test_hosts_of_the_policy_are_answered_too() -> None:
    guard = HostGuard("127.0.0.1", allowed_hosts=["flm.example.com", "2606:4700:0::1111", "192.0.2.1"])
    for host in (b"FLM.example.com:443", b"[2606:4700::1111]:80", b"192.0.2.1", b"localhost"):
        assert kind_of(guard, host, None, None) is None
        assert kind_of(guard, host, b"https://" + host, b"same-origin") is None
    for host in (b"x.flm.example.com", b"flm.example.com.evil.org", b"192.0.2.2", b"192.0.2.1."):
        assert kind_of(guard, host, None, None) is ErrorKind.HOST_NOT_ALLOWED


_LABEL = st.text("abcxyz019-", min_size=1, max_size=5)


@given(st.lists(_LABEL, min_size=1, max_size=4).map(".".join), st.booleans(), st.sampled_from(["", ":443"]))
def test_a_name_with_its_final_dot_is_the_same_name(name: str, listed_with_dot: bool, port: str) -> None:
    """RFC 3986 §3.2.2: it only says that the name is absolute."""
    letter = f"{name}.x"  # no address, whatever the digits
    guard = HostGuard("127.0.0.1", allowed_hosts=[f"{letter}." if listed_with_dot else letter])
    for host in (letter, f"{letter}.", f"{letter.upper()}."):
        sent = (host + port).encode()
        assert kind_of(guard, sent, b"https://" + sent, b"same-origin") is None
    for host in (f"{letter}..", f".{letter}", f"{letter}.y.", f"y{letter}."):
        assert kind_of(guard, (host + port).encode(), None, None) is ErrorKind.HOST_NOT_ALLOWED


@pytest.mark.parametrize("site", [None, b"cross-site", b"same-site"])
def test_pages_of_listed_origins_are_answered(site: bytes | None) -> None:
    guard = HostGuard("127.0.0.1", allowed_origins=["https://good.example"])
    assert kind_of(guard, b"localhost", b"https://good.example", site) is None
    assert kind_of(guard, b"evil.example", b"https://good.example", site) is ErrorKind.HOST_NOT_ALLOWED
    for preflighted in (False, True):
        for origin in (b"https://good.example.evil.com", b"http://good.example", b"https://GOOD.example", b"null"):
            found = kind_of(guard, b"localhost", origin, site, preflighted=preflighted)
            assert found is ErrorKind.ORIGIN_NOT_ALLOWED
    if site != b"cross-site":
        assert kind_of(guard, b"localhost", b"http://localhost:3000", site) is None


def test_a_star_lets_every_page_ask() -> None:
    guard = HostGuard("127.0.0.1", allowed_origins=["*"])
    assert kind_of(guard, b"localhost", b"https://any.example", b"cross-site") is None
    assert kind_of(guard, b"localhost", b"null", b"cross-site") is None
    assert kind_of(guard, b"any.example", None, None) is ErrorKind.HOST_NOT_ALLOWED


def test_with_no_origins_listed_only_what_needed_a_preflight_passes() -> None:
    guard = HostGuard("127.0.0.1")
    foreign = (b"localhost", b"https://any.example", b"cross-site")
    assert kind_of(guard, *foreign) is ErrorKind.ORIGIN_NOT_ALLOWED
    assert kind_of(guard, *foreign, preflighted=True) is None
    assert kind_of(guard, b"any.example", *foreign[1:], preflighted=True) is ErrorKind.HOST_NOT_ALLOWED


def test_a_list_lets_pages_of_own_hosts_through_that_read_nothing() -> None:
    """As docs/http.md says: such a page may ask, and a browser shows it no answer."""
    listed = ("https://a.example",)
    guard = HostGuard("127.0.0.1", (), listed)
    for origin in (b"http://localhost:9", b"https://x.localhost", b"http://127.0.0.1:9"):
        guard.check(b"localhost:3560", origin, b"same-site")
        names = {name for name, _ in CrossOrigin(listed).headers(origin)}
        assert b"access-control-allow-origin" not in names
        with pytest.raises(RequestError, match="another site"):
            guard.check(b"localhost:3560", origin, b"cross-site")

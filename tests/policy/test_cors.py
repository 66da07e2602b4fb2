"""What browsers are told about other origins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import Header
from flm.policy.cors import CrossOrigin

GOOD = b"https://good.example"
LISTED = CrossOrigin(["https://good.example", "http://localhost:3000"])
ANY = CrossOrigin([])


def named(headers: tuple[Header, ...] | None) -> dict[bytes, bytes]:
    assert headers is not None
    assert len(dict(headers)) == len(headers)
    return dict(headers)


@pytest.mark.parametrize("everyone", [ANY, CrossOrigin(["*"])])
def test_every_origin_is_a_star_and_never_with_credentials(everyone: CrossOrigin) -> None:
    for origin in (GOOD, b"null", b"https://any.example:1"):
        answer = named(everyone.headers(origin))
        assert answer[b"access-control-allow-origin"] == b"*"
        assert b"vary" not in answer
        preflight = named(everyone.preflight(origin, b"POST", b"Authorization, content-type"))
        assert preflight[b"access-control-allow-origin"] == b"*"
        assert b"access-control-allow-credentials" not in answer | preflight


def test_a_listed_origin_is_named() -> None:
    preflight = named(LISTED.preflight(GOOD, b"POST", b"Authorization,Content-Type"))
    assert preflight[b"access-control-allow-origin"] == GOOD
    assert b"POST" in preflight[b"access-control-allow-methods"].split(b", ")
    assert preflight[b"access-control-allow-headers"] == b"authorization, content-type"
    assert preflight[b"access-control-max-age"] == b"600"
    assert preflight[b"vary"].split(b", ")[0] == b"origin"
    assert b"access-control-allow-credentials" not in preflight
    answer = named(LISTED.headers(GOOD))
    assert (answer[b"access-control-allow-origin"], answer[b"vary"]) == (GOOD, b"origin")
    assert b"x-ratelimit-remaining-requests" in answer[b"access-control-expose-headers"].split(b", ")


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"https://evil.example",
        b"https://good.example.evil.com",
        b"https://evilgood.example",
        b"http://good.example",
        b"https://good.example:8443",
        b"https://good.example/",
        b"https://GOOD.example",
        b"https://good.example, https://good.example",
        b"good.example",
        b"*",
        b"http://localhost:3001",
    ],
)
def test_any_other_origin_is_told_nothing(origin: bytes) -> None:
    assert not LISTED.allows(origin)
    assert LISTED.headers(origin) == ((b"vary", b"origin"),)
    assert set(named(LISTED.preflight(origin, b"GET", None))) == {b"vary"}


def test_what_is_no_preflight() -> None:
    assert LISTED.preflight(None, b"POST", None) is None
    assert LISTED.preflight(GOOD, None, b"authorization") is None
    assert LISTED.headers(None) == ((b"vary", b"origin"),)
    assert ANY.headers(None) == ()


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (b"TRACE", None),
        (b"CONNECT", None),
        (b"post", None),
        (b"", None),
        (b"POST\r\nX: 1", None),
        (b"POST", b"a b"),
        (b"POST", b"x\r\nset-cookie: a=1"),
        (b"POST", b"\xff"),
        (b"POST", b",".join([b"x"] * 65)),
    ],
)
def test_a_preflight_for_what_is_not_allowed_allows_nothing(method: bytes, headers: bytes | None) -> None:
    assert set(named(LISTED.preflight(GOOD, method, headers))) == {b"vary"}


def test_no_headers_asked_for_means_none_allowed() -> None:
    assert b"access-control-allow-headers" not in named(LISTED.preflight(GOOD, b"GET", None))
    assert b"access-control-allow-headers" not in named(LISTED.preflight(GOOD, b"GET", b" , "))


@given(st.binary(max_size=40), st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=40))
def test_nothing_that_was_sent_breaks_out_of_a_header(
    origin: bytes, method: bytes | None, headers: bytes | None
) -> None:
    for crossing in (LISTED, ANY):
        for name, value in (crossing.preflight(origin, method, headers) or ()) + crossing.headers(origin):
            assert not set(name + value) & {0, 10, 13}
            assert name != b"access-control-allow-credentials"
            assert name != b"access-control-allow-origin" or value in (b"*", origin)

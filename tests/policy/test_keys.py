"""The Authorization header: what is presented to the keyring, and that every refusal is the same."""

from __future__ import annotations

import pytest

from flm.errors import ErrorKind, RequestError
from flm.policy.keys import Principal, authenticate


class Ring:
    """Knows one key; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int]] = []

    def verify(self, presented: bytes, now_ms: int, /) -> tuple[str, int] | None:
        self.asked.append((presented, now_ms))
        return ("id", 7) if presented == b"good" else None


@pytest.mark.parametrize("header", [b"Bearer good", b"bearer good", b"BEARER   good", b"Bearer good "])
def test_a_good_key_names_its_owner(header: bytes) -> None:
    ring = Ring()
    assert authenticate(header, ring, 5) == Principal("id", 7)
    assert ring.asked == [(b"good", 5)]


@pytest.mark.parametrize(
    "header", [None, b"", b"good", b"Bearer", b"Bearergood", b"Basic good", b"Bearer good, Bearer good", b"Bearer bad"]
)
def test_everything_else_is_one_and_the_same_401(header: bytes | None) -> None:
    with pytest.raises(RequestError) as refused:
        authenticate(header, Ring(), 5)
    with pytest.raises(RequestError) as missing:
        authenticate(None, Ring(), 5)
    assert refused.value.kind is ErrorKind.INVALID_API_KEY
    assert (refused.value.message, refused.value.headers) == (missing.value.message, missing.value.headers)

"""The Authorization header: what is presented to the keyring, that every refusal is the same, and what a key may do."""

from __future__ import annotations

import pytest

from flm.errors import ErrorKind, RequestError
from flm.policy import scopes
from flm.policy.keys import Principal, authenticate
from flm.policy.restrictions import NOTHING, Restriction


class Ring:
    """Knows one key; remembers what it was asked."""

    def __init__(self, scopes: int = scopes.INFERENCE) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self.scopes = scopes

    def verify(self, presented: bytes, now_ms: int, /) -> tuple[str, int, int] | None:
        self.asked.append((presented, now_ms))
        return ("id", 7, self.scopes) if presented == b"good" else None


@pytest.mark.parametrize("header", [b"Bearer good", b"bearer good", b"BEARER   good", b"Bearer good "])
def test_a_good_key_names_its_owner(header: bytes) -> None:
    ring = Ring()
    assert authenticate(header, ring, 5, {}) == Principal("id", 7, scopes.INFERENCE)
    assert ring.asked == [(b"good", 5)]


@pytest.mark.parametrize(
    "header", [None, b"", b"good", b"Bearer", b"Bearergood", b"Basic good", b"Bearer good, Bearer good", b"Bearer bad"]
)
def test_everything_else_is_one_and_the_same_401(header: bytes | None) -> None:
    with pytest.raises(RequestError) as refused:
        authenticate(header, Ring(), 5, {})
    with pytest.raises(RequestError) as missing:
        authenticate(None, Ring(), 5, {})
    assert refused.value.kind is ErrorKind.INVALID_API_KEY
    assert (refused.value.message, refused.value.headers) == (missing.value.message, missing.value.headers)


def test_a_key_marked_as_restricted_takes_its_restriction_from_the_snapshot() -> None:
    mine, other = Restriction(models=("a*",)), Restriction(engines=("e",))
    ring = Ring(scopes.CHAT | scopes.RESTRICTED)
    assert authenticate(b"Bearer good", ring, 5, {"id": mine, "else": other}).restriction is mine


def test_a_restriction_that_is_not_there_yet_lets_nothing_pass() -> None:
    assert authenticate(b"Bearer good", Ring(scopes.CHAT | scopes.RESTRICTED), 5, {}).restriction is NOTHING


def test_a_key_without_the_mark_costs_no_look_up() -> None:
    assert authenticate(b"Bearer good", Ring(), 5, {"id": NOTHING}).restriction is None


@pytest.mark.parametrize("name", ["models", "chat", "completions", "embeddings", "passthrough", "metrics", "timing"])
def test_each_scope_opens_its_own_door_only(name: str) -> None:
    owner = Principal("id", 7, scopes.bits([name]))
    for other, bit in scopes.SCOPES.items():
        if other == name:
            owner.demand(bit)
        elif other != "inference":
            with pytest.raises(RequestError, match=f"the scope `{other}`") as refused:
                owner.demand(bit)
            assert refused.value.kind is ErrorKind.PERMISSION_DENIED
    owner.demand(0)


def test_inference_is_the_four_translated_routes() -> None:
    assert scopes.bits(["inference"]) == scopes.bits(["models", "chat", "completions", "embeddings"])
    assert scopes.bits(["inference", "no such scope", ""]) == scopes.INFERENCE
    assert not any(bit & scopes.RESTRICTED for bit in scopes.SCOPES.values())

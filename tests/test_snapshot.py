"""A snapshot survives the trip through shared memory, and prints no credential."""

from __future__ import annotations

import msgspec
import pytest

from flm.config import Settings
from flm.snapshot import Engine, Model, Snapshot, decode, encode

ENGINE = Engine(
    id="gpu1",
    kind="openai",
    url="http://127.0.0.1:9",
    status="RunningHealthy",
    credential="sk-canary",
    models=(Model("m", context_length=4096, capabilities=("completion",)),),
)


def test_round_trip() -> None:
    snapshot = Snapshot("id", Settings(proxy_port=9), (ENGINE,), {"short": "flm://gpu1/m"})
    assert decode(encode(snapshot)) == snapshot


def test_a_credential_is_never_printed() -> None:
    assert "canary" not in repr(Snapshot("id", Settings(), (ENGINE,)))


def test_bytes_of_another_layout_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.msgpack.encode({"instance": 1}))

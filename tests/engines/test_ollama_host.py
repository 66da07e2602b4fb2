"""OLLAMA_HOST is read exactly as Ollama reads it: against what its own parser said (tests/golden/ollama_host)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.ollama_places import own_address, parse_host
from flm.engines.places import dialled
from flm.wire.http1 import parse_address

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "ollama_host" / "cases.json").read_text()
)


def joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_there_are_enough_cases() -> None:
    assert len({case["value"] for case in CASES}) == len(CASES) > 800


def test_every_value_is_read_as_ollama_reads_it() -> None:
    wrong = []
    for case in CASES:
        parts = parse_host(case["value"])
        ours = (parts.scheme, joined(parts.host, parts.port), parts.path)
        if ours != (case["scheme"], case["host"], case["path"]):
            wrong.append((case, ours))
    assert wrong == []


def test_flm_connects_where_ollamas_own_client_does() -> None:
    """But for an empty host, which Go's dialer takes for this machine."""
    for case in CASES:
        parts = parse_host(case["value"])
        expected = case["dialed"] if parts.host else "127.0.0.1" + case["dialed"]
        assert f"{dialled(parts.host)}:{parts.port}" == expected, case


def test_what_can_be_dialled_is_an_address_and_the_rest_is_none() -> None:
    usable = {case["value"]: url for case in CASES if (url := own_address(case["value"])) is not None}
    assert len(usable) > 300
    for value, url in usable.items():
        address = parse_address(url)
        assert address.port == int(parse_host(value).port), value
    for value in ("ollama.com", "OLLAMA.COM", "ftp://box", ":0", "a b", "東京", "box/a b", "fe80::1%eth0"):
        assert own_address(value) is None, value


@pytest.mark.parametrize("value", ["9" * 5000, ":" + "0" * 5000 + "80", "[" * 5000, "::" * 5000])
def test_absurd_lengths(value: str) -> None:
    parse_host(value)
    own_address(value)


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("[]:/\"' +-0123456789."), max_size=40))
def test_no_value_breaks_it(value: str) -> None:
    parse_host(value)
    url = own_address(value)
    if url is not None:
        parse_address(url)

"""`flm security policy`: shown, replaced from every source, refused with nothing changed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Flm

LIMITED = '{"ip_whitelist":["127.0.0.1","192.168.0.0/16"],"rate_limit":{"rpm":60,"burst":10}}'
DEFAULT = {
    "ip_whitelist": [],
    "cors": {"allowed_origins": []},
    "rate_limit": {"rpm": 0},
    "ip_rate_limit": {"rpm": 0},
    "global_rate_limit": {"rpm": 0},
    "auth_failure_limit": {"rpm": 60, "burst": 20},
    "trusted_proxies": [],
    "client_address_header": "x-forwarded-for",
    "allowed_hosts": [],
}


def feed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def test_shown_before_it_was_ever_set(flm: Flm) -> None:
    assert flm("security", "policy", "show").data == DEFAULT


def test_set_from_the_argument_a_file_and_standard_input(
    flm: Flm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = DEFAULT | json.loads(LIMITED)
    file = tmp_path / "policy.json"
    file.write_text(LIMITED)
    for number, source in enumerate((LIMITED, f"\n {LIMITED}", str(file), "-"), 1):
        feed(monkeypatch, LIMITED.encode())
        assert flm("security", "policy", "set", "--json", "{}").data == DEFAULT
        assert flm("security", "policy", "set", "--json", source).data == expected, number
        assert flm("security", "policy", "show").data == expected


def test_what_show_prints_can_be_set_again(flm: Flm) -> None:
    flm("security", "policy", "set", "--json", LIMITED)
    shown = flm("security", "policy", "show").data
    assert flm("security", "policy", "set", "--json", json.dumps(shown)).data == shown


def test_what_is_left_out_is_the_default_again(flm: Flm) -> None:
    flm("security", "policy", "set", "--json", LIMITED)
    assert flm("security", "policy", "set", "--json", '{"allowed_hosts":["flm.example.com"]}').data == DEFAULT | {
        "allowed_hosts": ["flm.example.com"]
    }


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ('{"ip_whitelist":null}', "ip_whitelist: it must be a list"),
        ('{"rate_limit":{"rpm":0,"burst":1}}', "rate_limit"),
        ('{"unknown":1}', "unknown"),
        ("[]", "it must be an object"),
        ("{", "not JSON"),
        ('{"\udcff":1}', "not UTF-8"),
    ],
)
def test_a_wrong_one_changes_nothing(flm: Flm, document: str, what: str) -> None:
    flm("security", "policy", "set", "--json", LIMITED)
    said = flm("security", "policy", "set", "--json", document)
    assert (said.code, said.error[0]) == (1, "POLICY_INVALID")
    assert what in said.error[1]
    assert flm("security", "policy", "show").data == DEFAULT | json.loads(LIMITED)


def test_a_wrong_one_makes_no_database(flm: Flm, home: Path) -> None:
    assert flm("security", "policy", "set", "--json", '{"x":1}').code == 1
    assert not home.exists()


def test_files_that_cannot_be_taken(flm: Flm, tmp_path: Path) -> None:
    for source in ("no-such-file.json", str(tmp_path), "null", "a\0b", ""):
        said = flm("security", "policy", "set", "--json", source)
        assert (said.code, said.error[0]) == (1, "USAGE"), source
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 2_000_000)
    assert flm("security", "policy", "set", "--json", str(large)).error[0] == "POLICY_INVALID"
    assert flm("security", "policy", "set").error[0] == "USAGE"


def test_as_text(flm: Flm) -> None:
    flm("security", "policy", "set", "--json", LIMITED)
    said = flm("security", "policy", "show", "--format", "text").out
    assert "127.0.0.1, 192.168.0.0/16" in said
    assert "rpm=60, burst=10" in said


def test_what_is_left_of_the_limits(flm: Flm) -> None:
    assert flm("security", "rate-limits", "list").data == []
    key = flm("api-keys", "create", "--label", "one").data["id"]
    flm("security", "policy", "set", "--json", '{"rate_limit":{"rpm":60,"burst":5}}')
    row = {"kind": "key", "subject": key, "limit_rpm": 60, "burst": 5, "remaining": 5, "resets_in_seconds": 0.0}
    assert flm("security", "rate-limits", "list").data == [row]
    assert flm("security", "rate-limits", "list", "--format", "text").out.split()[-6:] == [
        "key", key, "60", "5", "5", "0",
    ]  # fmt: skip

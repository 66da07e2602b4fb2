"""`flm security`: the policy shown, replaced from every source, refused with nothing changed; limits; certificates."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path

import pytest

from flm.store import certificates
from flm.store.certificates import CertificateRow
from flm.store.database import open_security
from flm.store.folder import locate
from flm.tls.local import LocalAuthority
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


class TestCertificates:
    ISSUED = CertificateRow(
        id="acme",
        directory="https://ca.example/directory",
        domains=("flm.example.com", "www.example.com"),
        issuer="An Authority",
        serial="0a1b",
        fingerprint="ab" * 32,
        not_before=1_795_000_000.0,
        not_after=1_802_776_000.0,
        trusted=True,
        renew_after=1_800_000_000.5,
        last_attempt_at=1_795_000_001.0,
    )

    @staticmethod
    def record(row: CertificateRow) -> None:
        async def write() -> None:
            async with await open_security(locate(os.environ)) as database, database.transaction() as transaction:
                await certificates.write(transaction, row)

        asyncio.run(write())

    def test_there_is_none(self, flm: Flm) -> None:
        assert flm("security", "certificates", "list").data == []
        assert flm("security", "certificates", "list", "--format", "text").out == "(none)\n"

    def test_what_is_known_of_one_of_a_public_authority(self, flm: Flm) -> None:
        self.record(self.ISSUED)
        assert flm("security", "certificates", "list").data == [
            {
                "mode": "https-acme",
                "domains": ["flm.example.com", "www.example.com"],
                "issuer": "An Authority",
                "not_before": "2026-11-18T11:06:40.000Z",
                "not_after": "2027-02-16T11:06:40.000Z",
                "trusted": True,
                "renew_after": "2027-01-15T08:00:00.500Z",
                "last_attempt_at": "2026-11-18T11:06:41.000Z",
                "last_error": None,
                "failures": 0,
                "next_attempt_at": None,
                "directory": "https://ca.example/directory",
                "serial": "0a1b",
                "fingerprint": "ab" * 32,
                "served": False,
            }
        ]

    def test_a_failure_before_there_is_any(self, flm: Flm) -> None:
        self.record(
            CertificateRow("acme", last_attempt_at=1.0, last_error="no: \x1b[31m", failures=2, next_attempt_at=901.0)
        )
        (row,) = flm("security", "certificates", "list").data
        unknown = ("issuer", "not_before", "not_after", "renew_after", "directory", "serial", "fingerprint")
        assert {row[name] for name in unknown} == {None}
        assert (row["domains"], row["failures"], row["trusted"]) == ([], 2, False)
        assert (row["last_attempt_at"], row["next_attempt_at"]) == (
            "1970-01-01T00:00:01.000Z",
            "1970-01-01T00:15:01.000Z",
        )
        said = flm("security", "certificates", "list", "--format", "text").out
        assert "\x1b" not in said
        assert said.splitlines()[0].split("  ")[0] == "SERVED"
        assert said.splitlines()[1].endswith("no: \\x1b[31m")

    def test_the_local_one_is_read_from_its_file_beside_it(self, flm: Flm, home: Path) -> None:
        self.record(self.ISSUED)
        now = 1_795_000_000.0
        leaf = LocalAuthority(home / "certs").leaf(["localhost", "127.0.0.1"], now)
        public, local = flm("security", "certificates", "list").data
        assert public["mode"] == "https-acme"
        assert (local["mode"], local["domains"]) == ("dev-selfsigned", ["localhost", "127.0.0.1"])
        assert (local["fingerprint"], local["serial"], local["trusted"]) == (leaf.fingerprint, leaf.serial, False)
        assert local["not_before"] < local["renew_after"] < local["not_after"]
        assert local["directory"] is None

    def test_a_file_that_cannot_be_used_is_said(self, flm: Flm, home: Path) -> None:
        LocalAuthority(home / "certs").leaf(["localhost"], 1_795_000_000.0)
        (home / "certs" / "local.pem").write_bytes(b"x")
        (row,) = flm("security", "certificates", "list").data
        assert row["mode"] == "dev-selfsigned"
        assert row["fingerprint"] is None
        assert "local.pem" in row["last_error"]

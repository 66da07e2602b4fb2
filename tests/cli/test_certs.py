"""`flm certs …`: what is printed, and that the root's key is not in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cli.conftest import Flm, process


def test_export(flm: Flm, home: Path, tmp_path: Path) -> None:
    exported = flm("certs", "export").data
    assert exported["file"] == str(home / "certs/local-root.crt")
    bare = flm("certs", "export", "--format", "text")
    assert bare.out == exported["pem"]
    assert (bare.code, bare.err) == (0, "")
    written = flm("certs", "export", "--output", str(tmp_path / "root.crt"))
    assert written.data["file"] == str(tmp_path / "root.crt")
    again = flm("certs", "export", "--output", str(tmp_path / "root.crt"), "--format", "text")
    assert again.out == f"written to {tmp_path / 'root.crt'}\n"
    assert (tmp_path / "root.crt").read_text() == exported["pem"]
    (tmp_path / "root.crt").write_text("theirs")
    assert flm("certs", "export", "--output", str(tmp_path / "root.crt")).error[0] == "IO_ERROR"


def test_openssl_reads_what_is_printed(flm: Flm) -> None:
    pem = flm("certs", "export", "--format", "text").out
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=pem, capture_output=True, text=True, check=True, timeout=30
    )
    assert "FLM local root" in shown.stdout


def test_trust_is_only_printed(flm: Flm, home: Path) -> None:
    assert flm("certs", "trust").error == (
        "USAGE",
        "flm changes no trust by itself; with --print it says which commands do",
    )
    assert not home.exists()
    trust = flm("certs", "trust", "--print").data
    assert list(trust["stores"][0]) == ["id", "name", "how", "trust", "remove", "note"]
    text = flm("certs", "trust", "--print", "--format", "text").out
    assert str(home / "certs/local-root.crt") in text
    for store in trust["stores"]:
        assert store["name"] in text
        for line in (*store["trust"], *store["remove"]):
            assert f"\n    {line}\n" in text + "\n"


def test_replace_and_what_to_do_about_the_former(flm: Flm) -> None:
    old = flm("certs", "export").data
    replaced = flm("certs", "replace").data
    assert replaced["fingerprint"] != old["fingerprint"]
    former = flm("certs", "trust", "--print", "--of", replaced["former_public"]).data
    assert former["name"] == old["name"]
    assert flm("certs", "trust", "--print", "--of", "/no/such").error[0] == "IO_ERROR"


def test_a_damaged_root_is_named_with_the_way_out(flm: Flm, home: Path) -> None:
    flm("certs", "export")
    (home / "certs/root.pem").write_text("nonsense")
    for arguments in (("export",), ("trust", "--print")):
        said = flm("certs", *arguments)
        assert said.code == 1
        code, message = said.error
        assert code == "PROXY_CERT_FAILED"
        assert str(home / "certs/root.pem") in message
        assert "`flm certs replace`" in message
    assert flm("certs", "replace").code == 0
    assert flm("certs", "export").code == 0


def test_no_process_prints_the_key(home: Path) -> None:
    said = b""
    for arguments in (("export",), ("trust", "--print"), ("replace",), ("trust", "--print", "--format", "text")):
        child = process("certs", *arguments)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0
        said += out + err
    assert b"CERTIFICATE" in said
    assert b"PRIVATE" not in said
    keys = [path.read_bytes() for path in (home / "certs").glob("*.pem")]
    assert len(keys) == 2
    for key in keys:
        secret = key.partition(b"-----END PRIVATE KEY-----")[0].split(b"\n")[1:-1]
        assert len(secret) == 3
        assert not any(line in said for line in secret)

"""What is printed to trust the local root, and to forget it, is whole, exact, and finds what it added."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.tls import local
from flm.tls.local import _make_root
from flm.tls.trust import read_root, stores
from tests.tls.issuing import NOW, authority

PEM = _make_root(NOW).chain_pem
ROOT = read_root(PEM)
FILE = Path("/home/me/.local/share/flm/certs/local-root.crt")


def test_the_facts_are_those_that_openssl_shows(tmp_path: Path) -> None:
    (tmp_path / "root.crt").write_bytes(PEM)

    def shown(*options: str) -> str:
        command = ["openssl", "x509", "-in", str(tmp_path / "root.crt"), "-noout", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert ROOT.name in shown("-subject")
    assert shown("-fingerprint", "-sha256").strip().rpartition("=")[2].replace(":", "").lower() == ROOT.fingerprint
    assert shown("-fingerprint", "-sha1").strip().rpartition("=")[2].replace(":", "") == ROOT.sha1
    text = shown("-text")
    for each in ROOT.vouches_for:
        assert each.partition("/")[0].partition("::")[0].upper() in text.upper()
    assert len(ROOT.vouches_for) >= len(local.LOCAL_DOMAINS) + 9


@pytest.mark.parametrize("pem", [b"", b"nonsense", authority().pem, authority().issue("x", ("a",)).pem])
def test_what_is_no_local_root(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"certificate|PEM"):
        read_root(pem)


def test_every_store_says_how_to_trust_and_how_to_forget() -> None:
    all_of_them = stores(FILE, ROOT)
    assert [each.id for each in all_of_them] == [
        "debian", "fedora", "suse", "arch", "macos", "windows", "chromium", "firefox", "curl", "python", "node", "java",
        "ios", "android",
    ]  # fmt: skip
    for each in all_of_them:
        assert each.trust
        assert each.remove
        if each.how == "commands":
            assert str(FILE) in " ".join(each.trust) or each.id == "windows"


@pytest.mark.parametrize(
    ("store", "trust", "remove"),
    [
        ("debian", "/usr/local/share/ca-certificates/NAME.crt", "/usr/local/share/ca-certificates/NAME.crt"),
        ("fedora", "/etc/pki/ca-trust/source/anchors/NAME.crt", "/etc/pki/ca-trust/source/anchors/NAME.crt"),
        ("suse", "/etc/pki/trust/anchors/NAME.crt", "/etc/pki/trust/anchors/NAME.crt"),
        ("arch", "--store FILE", "--remove FILE"),
        ("macos", "System.keychain FILE", "delete-certificate -Z SHA1 /Library"),
        ("windows", "-addstore Root local-root.crt", "-delstore Root SHA1"),
        ("chromium", "-n 'TITLE' -i FILE", "-D -n 'TITLE'"),
        ("firefox", "-n 'TITLE' -i FILE", "-D -n 'TITLE'"),
        ("java", "-alias NAME -file FILE", "-delete -cacerts -storepass changeit -alias NAME"),
    ],
)
def test_what_was_added_is_removed_under_the_same_name(store: str, trust: str, remove: str) -> None:
    (found,) = [each for each in stores(FILE, ROOT) if each.id == store]
    for lines, expected in ((found.trust, trust), (found.remove, remove)):
        for word, value in (
            ("NAME", f"flm-local-root-{ROOT.fingerprint[:8]}"),
            ("FILE", str(FILE)),
            ("SHA1", ROOT.sha1),
            ("TITLE", ROOT.name),
        ):
            expected = expected.replace(word, value)
        assert expected in "\n".join(lines)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_path_of_any_characters_is_one_word_of_the_shell(name: str) -> None:
    file = Path("/data", name.replace("/", "_")) / "local-root.crt"
    for each in stores(file, ROOT):
        if each.how == "commands" and each.id not in ("windows", "chromium", "firefox"):
            words = [word.rpartition("=")[2] for line in each.trust for word in shlex.split(line)]
            assert str(file).rpartition("=")[2] in words


def test_two_roots_have_two_names() -> None:
    other = read_root(_make_root(NOW).chain_pem)
    assert other.name != ROOT.name
    assert not {line for each in stores(FILE, ROOT) for line in each.remove if ROOT.name in line} & {
        line for each in stores(FILE, other) for line in each.remove
    }

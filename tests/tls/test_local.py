"""The local root is made once and kept; what it signs follows the machine's addresses and the clock."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from flm.disk.private import write_atomically
from flm.errors import CommandCode, CommandError
from flm.tls import local
from flm.tls.files import read_pair
from flm.tls.local import EARLIEST, LEAF_SECONDS, ROOT_SECONDS, SLACK_SECONDS, LocalAuthority
from flm.tls.pair import Pair, check
from tests.tls.issuing import DAY, NOW, authority, make

NAMES = ("localhost", "127.0.0.1", "::1", "box", "box.local", "192.168.1.5")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "host_name", lambda: "box")


@pytest.fixture
def ours(tmp_path: Path) -> LocalAuthority:
    return LocalAuthority(tmp_path / "certs")


def failure(call: object, code: CommandCode = CommandCode.PROXY_CERT_FAILED) -> str:
    with pytest.raises(CommandError) as error:
        call()  # type: ignore[operator]
    assert error.value.code is code
    assert "PRIVATE" not in error.value.message
    return error.value.message


def certificate(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.chain_pem)


class TestRoot:
    def test_what_it_is(self, ours: LocalAuthority) -> None:
        root = ours.root(NOW)
        found = certificate(root)
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
        assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
        assert (root.not_before, root.not_after) == (EARLIEST, NOW + ROOT_SECONDS)
        assert root.issuer.startswith("FLM local root box ")
        constraints = found.extensions.get_extension_for_class(x509.NameConstraints)
        assert constraints.critical
        permitted = [str(each.value) for each in constraints.value.permitted_subtrees or []]
        assert permitted == [
            "localhost", "local", "internal", "home.arpa", "lan", "box",
            "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
            "::1/128", "fc00::/7", "fe80::/10",
        ]  # fmt: skip
        assert [each.value for each in constraints.value.excluded_subtrees or []] == [".box"]

    @pytest.mark.parametrize(
        ("host", "more", "excluded"),
        [("box.example.org", ["box.example.org"], []), ("mac.local", [], []), ("", [], []), ("dev", ["dev"], [".dev"])],
    )
    def test_the_hosts_own_name(
        self, ours: LocalAuthority, monkeypatch: pytest.MonkeyPatch, host: str, more: list[str], excluded: list[str]
    ) -> None:
        monkeypatch.setattr(local, "host_name", lambda: host)
        value = certificate(ours.root(NOW)).extensions.get_extension_for_class(x509.NameConstraints).value
        domains = [each.value for each in value.permitted_subtrees or [] if isinstance(each, x509.DNSName)]
        assert domains[len(local.LOCAL_DOMAINS) :] == more
        assert [each.value for each in value.excluded_subtrees or []] == excluded

    def test_made_once_and_private(self, ours: LocalAuthority, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            root = ours.root(NOW)
        finally:
            os.umask(before)
        assert ours.root(NOW + 9 * 365 * DAY) == root == LocalAuthority(tmp_path / "certs").root(NOW)
        assert {each.name: stat.S_IMODE(each.lstat().st_mode) for each in (tmp_path / "certs").iterdir()} == {
            "root.pem": 0o600,
            "local-root.crt": 0o600,
        }
        assert stat.S_IMODE((tmp_path / "certs").stat().st_mode) == 0o700

    def test_what_is_public_holds_no_key(self, ours: LocalAuthority) -> None:
        assert "there is no local root yet" in failure(ours.public_pem)
        root = ours.root(NOW)
        assert ours.public_pem() == ours.public_file.read_bytes() == root.chain_pem
        assert b"PRIVATE" not in root.chain_pem
        ours.public_file.write_bytes(b"damaged")
        ours.root(NOW)
        assert ours.public_file.read_bytes() == root.chain_pem

    def test_eight_processes_at_once_make_one(self, tmp_path: Path) -> None:
        folders = [tmp_path / str(number) / "certs" for number in range(10)]
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(8)
        with context.Pool(8, _wait_at, (barrier,)) as pool:
            answers = pool.map(_leaves, [folders] * 8, chunksize=1)
        assert all(answer == answers[0] for answer in answers)
        for folder in folders:
            assert sorted(each.name for each in folder.iterdir()) == ["local-root.crt", "local.pem", "root.pem"]

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    @pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
    def test_a_kill_at_any_step_heals(self, tmp_path: Path, step: str, number: int) -> None:
        program = (
            "import os, signal, sys; from pathlib import Path\n"
            "from flm.tls.local import LocalAuthority\n"
            "steps = []\n"
            f"real = os.{step}\n"
            "def counted(*arguments):\n"
            "    steps.append(arguments)\n"
            f"    if len(steps) == {number}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(*arguments)\n"
            f"os.{step} = counted\n"
            f"LocalAuthority(Path(sys.argv[1])).leaf(['localhost'], {NOW})"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "certs")], timeout=60, check=False)
        reached = step == "fsync" or number <= 3  # three files: three renames, and two fsyncs a file
        assert done.returncode == (-signal.SIGKILL if reached else 0)
        kept = read_pair(tmp_path / "certs/root.pem")
        ours = LocalAuthority(tmp_path / "certs")
        root, leaf = ours.root(NOW), ours.leaf(["localhost"], NOW)
        assert kept in (None, root)
        certificate(leaf).verify_directly_issued_by(certificate(root))
        for name in ("root.pem", "local.pem"):  # the next time each is written
            write_atomically(tmp_path / "certs" / name, (tmp_path / "certs" / name).read_bytes())
        assert sorted(each.name for each in (tmp_path / "certs").iterdir()) == [
            "local-root.crt",
            "local.pem",
            "root.pem",
        ]

    @pytest.mark.parametrize(
        ("now", "words"),
        [
            (NOW + ROOT_SECONDS + 1, "the local root expired at 2039-12-30"),
            (EARLIEST - 1, "valid from 2026-01-01T00:00:00Z on, and the clock here says 2025-12-31T23:59:59Z; set"),
        ],
    )
    def test_one_out_of_its_time_is_refused_and_kept(self, ours: LocalAuthority, now: float, words: str) -> None:
        root = ours.root(NOW)
        for call in (lambda: ours.root(now), lambda: ours.leaf(["localhost"], now)):
            message = failure(call)
            assert words in message
            assert "`flm certs replace`" in message
        assert ours.root(NOW) == root
        assert ours.public_pem() == root.chain_pem  # export does not mind

    def test_no_root_is_made_by_a_clock_that_cannot_be_right(self, ours: LocalAuthority, tmp_path: Path) -> None:
        for call in (lambda: ours.root(0), lambda: ours.replace(0)):
            assert "the clock here says 1970-01-01T00:00:00Z, which cannot be" in failure(call)
        assert not (tmp_path / "certs/root.pem").exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "is damaged: "),
            (b"nonsense", "is damaged: "),
            (make("x", ca=True).pem, "holds no private key"),
            (authority().key_pem + authority().pem, "mixed up"),
            ((theirs := authority("mkcert")).key_pem + theirs.pem, "no local root that FLM made: it is no authority's"),
            ((leaf := theirs.issue("leaf", ("localhost",))).key_pem + leaf.pem, "it is not signed by itself"),
        ],
    )
    def test_a_damaged_or_foreign_one_is_refused_and_kept(
        self, ours: LocalAuthority, tmp_path: Path, content: bytes, words: str
    ) -> None:
        path = tmp_path / "certs/root.pem"
        write_atomically(path, content)
        for call in (lambda: ours.root(NOW), lambda: ours.leaf(["localhost"], NOW), ours.public_pem):
            message = failure(call)
            assert words in message
            assert str(path) in message
            assert "`flm certs replace`" in message
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("ca", "constraints", "critical"),
        [
            (True, x509.NameConstraints([x509.DNSName("local")], None), False),  # which clients may overlook
            (True, x509.NameConstraints(None, [x509.DNSName("example")]), True),
            (False, x509.NameConstraints([x509.DNSName("local")], None), True),
        ],
    )
    def test_one_that_bounds_nothing_is_refused(
        self, ours: LocalAuthority, tmp_path: Path, ca: bool, constraints: x509.NameConstraints, critical: bool
    ) -> None:
        theirs = make("theirs", ca=ca, constraints=(constraints, critical))
        write_atomically(tmp_path / "certs/root.pem", theirs.key_pem + theirs.pem)
        assert "or it may vouch for any site" in failure(lambda: ours.root(NOW))

    def test_a_link_is_refused(self, ours: LocalAuthority, tmp_path: Path) -> None:
        ours.root(NOW)
        (tmp_path / "certs/root.pem").rename(tmp_path / "elsewhere")
        (tmp_path / "certs/root.pem").symlink_to(tmp_path / "elsewhere")
        assert "symbolic link" in failure(lambda: ours.root(NOW), CommandCode.IO_ERROR)

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_replacement_that_is_killed_leaves_one_root_and_loses_none(self, tmp_path: Path, number: int) -> None:
        ours = LocalAuthority(tmp_path / "certs")
        old = ours.root(NOW)
        program = (
            "import os, signal, sys; from pathlib import Path\n"
            "from flm.tls.local import LocalAuthority\n"
            "steps, real = [], os.rename\n"
            "def counted(*arguments):\n"
            "    steps.append(arguments)\n"
            f"    if len(steps) == {number}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(*arguments)\n"
            "os.rename = counted\n"
            f"LocalAuthority(Path(sys.argv[1])).replace({NOW})"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "certs")], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        root = ours.root(NOW)
        assert ours.public_file.read_bytes() == root.chain_pem
        kept = [read_pair(each) for each in (tmp_path / "certs").glob("root*.pem")]
        assert old in kept
        certificate(ours.leaf(["localhost"], NOW)).verify_directly_issued_by(certificate(root))

    @pytest.mark.parametrize("content", [None, b"nonsense", b"ours"])
    def test_replace(self, ours: LocalAuthority, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "certs/root.pem"
        if content == b"ours":
            ours.leaf(["localhost"], NOW)
            content = path.read_bytes()
        elif content is not None:
            write_atomically(path, content)
        old = path.read_bytes() if content else b""
        made = ours.replace(NOW)
        new, former = made.root, made.former
        assert ours.root(NOW) == new
        assert ours.public_pem() == ours.public_file.read_bytes() == new.chain_pem
        assert (former.read_bytes() if former else None) == content
        assert (made.former_public is not None) == old.startswith(b"-----")
        if made.former_public is not None:
            assert made.former_public.read_bytes() in old
            assert b"PRIVATE" not in made.former_public.read_bytes()
        assert former is None or (former.parent == path.parent and stat.S_IMODE(former.stat().st_mode) == 0o600)
        certificate(ours.leaf(["localhost"], NOW)).verify_directly_issued_by(certificate(new))


class TestLeaf:
    def test_what_it_is(self, ours: LocalAuthority, tmp_path: Path) -> None:
        leaf = ours.leaf(NAMES, NOW)
        check(leaf, NOW, NAMES)
        assert leaf.domains == ("localhost", "box", "box.local", "127.0.0.1", "::1", "192.168.1.5")
        assert (leaf.not_before, leaf.not_after) == (NOW - SLACK_SECONDS, NOW + LEAF_SECONDS)
        assert leaf.not_after - leaf.not_before < 398 * DAY  # what browsers allow
        assert leaf.issuer == ours.root(NOW).issuer
        assert leaf.key_pem != ours.root(NOW).key_pem
        assert leaf.chain_pem.count(b"BEGIN") == 1
        assert read_pair(tmp_path / "certs/local.pem") == leaf

    def test_kept_while_it_fits(self, ours: LocalAuthority) -> None:
        leaf = ours.leaf(NAMES, NOW)
        third = (leaf.not_after - leaf.not_before) / 3
        for now in (NOW, NOW - SLACK_SECONDS, leaf.not_after - third - 1):
            assert ours.leaf(NAMES, now) == leaf
        assert ours.leaf(NAMES[:2], NOW) == leaf  # an address less is no reason
        assert ours.leaf([*NAMES, "LOCALHOST", "0:0::1"], NOW) == leaf

    @pytest.mark.parametrize(
        "now", [NOW + 20 * DAY, NOW + LEAF_SECONDS + 1, NOW + 9 * 365 * DAY, NOW - SLACK_SECONDS - 1, NOW - 400 * DAY]
    )
    def test_new_when_it_is_old_or_the_clock_jumped(self, ours: LocalAuthority, now: float) -> None:
        first = ours.leaf(NAMES, NOW)
        second = ours.leaf(NAMES, now)
        assert second.fingerprint != first.fingerprint
        assert second.key_pem != first.key_pem
        check(second, now, NAMES)
        assert ours.leaf(NAMES, now) == second

    def test_new_when_there_is_a_new_address(self, ours: LocalAuthority) -> None:
        first = ours.leaf(NAMES, NOW)
        second = ours.leaf([*NAMES, "10.1.2.3"], NOW)
        assert second != first
        check(second, NOW, [*NAMES, "10.1.2.3"])
        assert ours.leaf(NAMES, NOW) == second

    @pytest.mark.parametrize("content", [b"", b"nonsense", authority().key_pem + authority().pem])
    def test_new_when_it_is_damaged(
        self, ours: LocalAuthority, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours.leaf(NAMES, NOW)
        write_atomically(tmp_path / "certs/local.pem", content)
        check(ours.leaf(NAMES, NOW), NOW, NAMES)
        assert "it is made anew" in caplog.text

    def test_new_when_it_is_of_another_root(self, ours: LocalAuthority, tmp_path: Path) -> None:
        other = LocalAuthority(tmp_path / "other")
        write_atomically(tmp_path / "certs/local.pem", other.leaf(NAMES, NOW).pem)
        certificate(ours.leaf(NAMES, NOW)).verify_directly_issued_by(certificate(ours.root(NOW)))

    def test_at_the_roots_end_it_ends_with_it_and_is_not_made_again_and_again(
        self, ours: LocalAuthority, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = ours.root(NOW)
        leaf = ours.leaf(NAMES, root.not_after - 5 * DAY)
        assert leaf.not_after == root.not_after
        assert ours.leaf(NAMES, root.not_after - 1) == leaf
        assert caplog.text.count("the local root expires at") == 1

    @pytest.mark.parametrize("name", [
        "example.com", "8.8.8.8", "203.0.113.9", "2001:db8::1", "com", "xlocal", "a.box", "b.a.box", "boxlocal", "",
        ".local", "*.local", "bücher.local", "a_b.local", "fe80::1%eth0", "::ffff:10.0.0.1", "local.example",
        "a\0.local",
    ])  # fmt: skip
    def test_a_name_it_may_not_sign_is_left_out(
        self, ours: LocalAuthority, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        leaf = ours.leaf(["localhost", name], NOW)
        assert leaf.domains == ("localhost",)
        assert f"is not for {name}:" in caplog.text
        caplog.clear()
        assert ours.leaf(["localhost", name], NOW) == leaf
        assert caplog.text == ""
        assert "may sign none of" in failure(lambda: ours.leaf([name], NOW))

    def test_no_names(self, ours: LocalAuthority) -> None:
        assert "may sign none of no names" in failure(lambda: ours.leaf([], NOW))

    def test_a_host_that_was_named_anew(self, ours: LocalAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
        ours.leaf(NAMES, NOW)
        monkeypatch.setattr(local, "host_name", lambda: "tower")
        assert ours.leaf(["tower", "tower.local", *NAMES], NOW).domains[:2] == ("tower.local", "localhost")

    @given(st.text(max_size=20) | st.ip_addresses().map(str))
    def test_any_name_is_signed_or_left_out(self, name: str) -> None:
        root = local._make_root(NOW)
        if local._may_sign(certificate(root), name):
            check(local._issue(root, certificate(root), [name], NOW), NOW, [name])

    def test_no_key_is_ever_logged(
        self, ours: LocalAuthority, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            root, leaf = ours.root(NOW), ours.leaf([*NAMES, "example.com"], NOW)
            ours.replace(NOW)
        said = caplog.text + "".join(capfd.readouterr()) + repr((root, leaf, ours))
        assert "made a local root" in said
        assert "PRIVATE" not in said
        assert not any(line in said for pair in (root, leaf) for line in pair.key_pem.decode().split("\n")[1:-2])


_barriers: list[threading.Barrier] = []


def _wait_at(barrier: threading.Barrier) -> None:
    _barriers.append(barrier)


def _leaves(folders: list[Path]) -> list[tuple[str, str]]:
    """Of each folder, which all processes enter together, the leaf and the root."""
    found = []
    for folder in folders:
        _barriers[0].wait(60)
        ours = LocalAuthority(folder)
        found.append((ours.leaf(["localhost"], NOW).fingerprint, ours.root(NOW).fingerprint))
    return found

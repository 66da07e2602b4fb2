"""The certificates of a backup: all that is worth keeping and nothing else, verified first, and the way back."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import stat
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from flm.disk.private import write_atomically
from flm.errors import CommandCode, CommandError
from flm.services import backup_certs
from flm.services.backup import BackupService, Created
from flm.services.certs import CertsService
from flm.store import swap
from flm.store.folder import Folder
from flm.tls.account_file import Kept, new_key_pem
from flm.tls.files import folder_of, locked, read_pair
from flm.tls.local import LocalAuthority
from flm.tls.pair import Pair, read
from tests.services.test_backup import SECRET, backup, content, labels, make_key, private, refused, restore, sealing
from tests.support.creation import modes_of_new_files
from tests.support.stepwise import BROKE, FINISHED, REFUSED, cut_off
from tests.tls.issuing import DAY, NOW, authority

URL = "https://ca.example/directory"
CA = f"acme/{folder_of(URL)}"
AUTHORITY = authority()


def issued(*, ends: float = NOW + 90 * DAY) -> bytes:
    leaf = AUTHORITY.issue("leaf", ("llm.example.com",), ends=ends)
    return read(leaf.key_pem + leaf.chain).pem


def account(url: str = URL) -> bytes:
    return msgspec.json.encode(Kept(url, new_key_pem().decode(), url="https://ca.example/account/1"))


def fill(folder: Folder, label: str) -> None:
    """A key, a root with what it has signed, and an account with a certificate and an order under way."""
    make_key(folder, label)
    ours = LocalAuthority(folder.certs)
    ours.leaf(["localhost"], NOW)
    ours.replace(NOW)
    ours.leaf(["localhost"], NOW)
    for name, data in (("account.json", account()), ("current.pem", issued()), ("pending.json", b"{}")):
        write_atomically(folder.certs / CA / name, data)


def certs(folder: Folder) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name.startswith("certs/")}


def worth_keeping(folder: Folder) -> dict[str, bytes]:
    names = ("certs/root.pem", f"certs/{CA}/account.json", f"certs/{CA}/current.pem")
    return {name: data for name, data in certs(folder).items() if name in names}


def create(folder: Folder, path: Path) -> Created:
    return asyncio.run(BackupService(folder, lambda: NOW).create(path, SECRET))


def root_of(folder: Folder) -> Pair | None:
    return read_pair(folder.certs / "root.pem")


def test_the_root_and_the_account_come_back(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "laptop")
    made = create(folder, tmp_path / "b")
    assert made.contains[3:] == ("certs/root.pem", f"certs/{CA}/account.json", f"certs/{CA}/current.pem")
    assert made.left_out == ()
    before = os.umask(0)
    try:
        with modes_of_new_files() as created:
            restored = restore(other, tmp_path / "b")
    finally:
        os.umask(before)
    assert set(created) == {0o600}
    assert private(other)
    assert sorted(restored.restored[3:]) == sorted([*made.contains[3:], "certs/local-root.crt"])
    assert restored.left_out == ()
    assert worth_keeping(other) == worth_keeping(folder)
    # What is made of the root is there, what is made again or out of use is not, and the root signs as before.
    assert certs(other).keys() == {*worth_keeping(folder), "certs/local-root.crt"}
    assert certs(other)["certs/local-root.crt"] == certs(folder)["certs/local-root.crt"]
    root = LocalAuthority(other.certs).root(NOW)
    assert root == LocalAuthority(folder.certs).root(NOW)
    assert LocalAuthority(other.certs).leaf(["localhost"], NOW).issuer == root.issuer


def test_no_key_is_in_the_file_or_lies_about_while_it_is_made(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "laptop")
    keys = [
        re.findall(rb"PRIVATE KEY-----\\?n?\n?([A-Za-z0-9+/=]{40})", data) for data in worth_keeping(folder).values()
    ]
    assert [len(each) for each in keys] == [1, 1, 1]
    clear: dict[str, bytes] = {}
    real = os.link

    def spy(source: Path, target: Path, **options: bool) -> None:
        """The last step, too: all is written."""
        clear.update({Path(name).name: data for name, data in content(folder).items() if name.startswith(".backup-")})
        real(source, target, **options)

    monkeypatch.setattr(os, "link", spy)
    create(folder, tmp_path / "b")
    assert clear.keys() >= {"config.db", "security.db", "pepper"}
    sealed = (tmp_path / "b").read_bytes()
    assert not [key for (key,) in keys for data in (*clear.values(), sealed) if key in data]


def test_a_backup_of_before_leaves_certificates_alone(folder: Folder, tmp_path: Path) -> None:
    fill(folder, "old")
    before = certs(folder)
    databases = {name: (folder.root / name).read_bytes() for name in ("config.db", "security.db", "pepper")}
    restored = restore(folder, sealing(tmp_path / "before", databases))
    assert certs(folder) == before
    assert not (Path(restored.kept or "") / "certs").exists()
    restore(folder, Path(restored.kept or ""), None)
    assert certs(folder) == before


def test_a_folder_without_certificates_stays_without(folder: Folder, other: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    made = create(folder, tmp_path / "b")
    assert made.contains == ("config.db", "security.db", "pepper")
    restore(other, tmp_path / "b")
    assert not folder.certs.exists()
    assert not other.certs.exists()
    fill(other, "new")
    before = certs(other)
    restore(other, tmp_path / "b")  # and of one that has some, nothing is taken away
    assert certs(other) == before


def test_it_can_be_undone(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "new")
    fill(other, "old")
    write_atomically(
        other.certs / "acme" / folder_of("https://b.example/") / "account.json", account("https://b.example/")
    )
    before = certs(other)
    create(folder, tmp_path / "b")
    restored = restore(other, tmp_path / "b")
    public = {"certs/local-root.crt": certs(folder)["certs/local-root.crt"]}
    assert certs(other) == {**before, **worth_keeping(folder), **public}
    assert private(other)
    again = restore(other, Path(restored.kept or ""), None)
    assert certs(other) == before
    assert labels(other) == ["old"]
    restore(other, Path(again.kept or ""), None)
    assert worth_keeping(other) == worth_keeping(folder)


def test_what_there_was_not_before_is_gone_when_it_is_undone(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "new")
    make_key(other, "old")
    write_atomically(other.certs / CA / "pending.json", b"{}")
    before = certs(other)
    create(folder, tmp_path / "b")
    restored = restore(other, tmp_path / "b")
    assert worth_keeping(other) == worth_keeping(folder)
    again = restore(other, Path(restored.kept or ""), None)
    assert certs(other) == before
    restore(other, Path(again.kept or ""), None)
    assert worth_keeping(other) == worth_keeping(folder)


def test_an_expired_certificate_replaces_none(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "new")
    write_atomically(folder.certs / CA / "current.pem", issued(ends=NOW - 1))
    fill(other, "old")
    good = (other.certs / CA / "current.pem").read_bytes()
    create(folder, tmp_path / "b")
    service = BackupService(other, lambda: NOW)
    restored = asyncio.run(service.restore(tmp_path / "b", SECRET))
    assert restored.left_out == (f"certs/{CA}/current.pem: it has expired",)
    assert f"certs/{CA}/current.pem" not in restored.restored
    assert (other.certs / CA / "current.pem").read_bytes() == good
    assert (other.certs / CA / "account.json").read_bytes() == (folder.certs / CA / "account.json").read_bytes()
    # Going back is going back, also to one that has expired.
    write_atomically(other.certs / CA / "current.pem", issued(ends=NOW - 1))
    before = certs(other)
    write_atomically(folder.certs / CA / "current.pem", issued())
    create(folder, tmp_path / "good")
    restored = asyncio.run(service.restore(tmp_path / "good", SECRET))
    asyncio.run(service.restore(Path(restored.kept or ""), None))
    assert worth_keeping(other) == {name: data for name, data in before.items() if name in worth_keeping(other)}


def mixed_up(good: dict[str, bytes]) -> dict[str, tuple[bytes, str]]:
    root, leaf = AUTHORITY, AUTHORITY.issue("leaf", ("llm.example.com",))
    return {
        "certs/root.pem": (root.key_pem + root.pem, "no authority's, or it may vouch for any site"),
        "certs/root.pem ": (good[f"certs/{CA}/current.pem"], "not signed by itself"),
        "certs/root.pem  ": (good["certs/root.pem"][:-100], "certs/root.pem: "),
        f"certs/{CA}/current.pem": (root.key_pem + leaf.chain, "mixed up"),
        f"certs/{CA}/current.pem ": (b"", "holds no private key"),
        f"certs/{CA}/current.pem  ": (b"x" * (1 << 20), "larger than"),
        f"certs/{CA}/account.json": (account("https://other.example/"), "another authority"),
        f"certs/{CA}/account.json ": (b"{}", "no account that FLM has written"),
        f"certs/{CA}/account.json  ": (
            msgspec.json.encode(Kept(URL, AUTHORITY.key_pem.decode().replace("A", "B"))),
            "no private key in PEM form",
        ),
    }


def test_what_is_not_what_its_name_says_changes_nothing(folder: Folder, tmp_path: Path) -> None:
    fill(folder, "old")
    good = {name: (folder.root / name).read_bytes() for name in ("config.db", "security.db", "pepper")}
    good |= worth_keeping(folder)
    restore(folder, sealing(tmp_path / "good", good))  # so that each of the next is refused for what it is
    for number, (name, (data, why)) in enumerate(mixed_up(good).items()):
        said = refused(
            folder, sealing(tmp_path / f"bad{number}", {**good, name.strip(): data}), CommandCode.BACKUP_INVALID
        )
        assert why in said
        assert name.strip() in said
        assert "PRIVATE" not in said
    names = (
        "local.pem",
        "../pepper",
        "acme/x/account.json",
        f"{CA}/../../../evil",
        f"{CA}/pending.json",
        "",
        "/etc/evil",
    )
    for number, name in enumerate(names):
        file = sealing(tmp_path / f"foreign{number}", {**good, f"certs/{name}": b"x"})
        assert "other files" in refused(folder, file, CommandCode.BACKUP_INVALID)


def test_what_cannot_be_used_is_left_out_and_named(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "old")
    (folder.certs / "root.pem").write_bytes(b"damaged")
    (folder.certs / CA / "current.pem").unlink()
    (folder.certs / CA / "current.pem").symlink_to(folder.pepper)
    (folder.certs / CA / ".account.json.new.1.1").write_bytes(account())  # of a writer that was killed
    (folder.certs / "acme/notes").mkdir()
    (folder.certs / "acme/notes/account.json").write_bytes(b"somebody's own")
    made = create(folder, tmp_path / "b")
    assert made.contains[3:] == (f"certs/{CA}/account.json",)
    root, certificate = made.left_out
    assert root.startswith("certs/root.pem: the certificate with its key cannot be used")
    assert certificate.startswith(f"certs/{CA}/current.pem: ")
    assert "symbolic link" in certificate
    restore(other, tmp_path / "b")
    assert certs(other).keys() == {f"certs/{CA}/account.json"}


@pytest.mark.parametrize("what", ["link", "file", "folder in a file's place"])
def test_a_folder_of_certificates_that_is_none(folder: Folder, tmp_path: Path, what: str) -> None:
    make_key(folder, "old")
    if what == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.certs.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        folder.certs.touch()
    else:
        (folder.certs / "root.pem").mkdir(parents=True)
    made = create(folder, tmp_path / "b")
    (left_out,) = made.left_out
    assert "is not used for secrets" in left_out
    restore(folder, tmp_path / "b")
    assert os.path.lexists(folder.certs)


@pytest.mark.parametrize("what", ["link", "file", "link in it", "folder in it"])
def test_certificates_that_cannot_be_put_in_place_change_nothing(
    folder: Folder, other: Folder, tmp_path: Path, what: str
) -> None:
    fill(folder, "new")
    create(folder, tmp_path / "b")
    make_key(other, "old")
    if what == "link":
        (tmp_path / "elsewhere").mkdir()
        other.certs.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        other.certs.touch()
    elif what == "link in it":
        other.certs.mkdir(mode=0o700)
        (other.certs / "root.pem").symlink_to(tmp_path / "nowhere")
    else:
        (other.certs / CA / "account.json").mkdir(parents=True)
    before = content(other)
    assert "is not used for secrets" in refused(other, tmp_path / "b", CommandCode.IO_ERROR)
    assert content(other) == before
    assert labels(other) == ["old"]
    assert not list(other.root.glob("before-restore-*"))
    assert not list(tmp_path.glob("elsewhere/*"))


def test_nobody_makes_a_certificate_meanwhile(
    folder: Folder, other: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "LOCK_SECONDS", 0.0)
    fill(folder, "new")
    fill(other, "old")
    create(folder, tmp_path / "b")
    with locked(other.certs):
        assert "at work in" in refused(other, tmp_path / "b", CommandCode.IO_ERROR)
    restore(other, tmp_path / "b")


def test_a_root_that_is_being_replaced_is_waited_for(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it there is none."""
    fill(folder, "old")
    waiting, made = threading.Event(), []
    real = backup_certs.locked

    def told(certs: Path) -> AbstractContextManager[None]:
        waiting.set()
        return real(certs)

    monkeypatch.setattr(backup_certs, "locked", told)
    thread = threading.Thread(target=lambda: made.append(create(folder, tmp_path / "b")))
    with locked(folder.certs):
        (folder.certs / "root.pem").rename(folder.certs / "root.replaced-1.pem")
        thread.start()
        assert waiting.wait(30)
        (folder.certs / "root.replaced-1.pem").rename(folder.certs / "root.pem")
    thread.join(30)
    assert "certs/root.pem" in made[0].contains


def test_what_is_kept_and_what_is_new_is_on_the_disk_before_the_journal_says_so(
    folder: Folder, other: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "new")
    fill(other, "old")
    create(folder, tmp_path / "b")
    steps: list[Path] = []
    journal = other.root / swap.JOURNAL
    sync, write, unlink = swap.sync, swap.write_new_file, os.unlink
    monkeypatch.setattr(swap, "sync", lambda path: (steps.append(path), sync(path))[1])
    monkeypatch.setattr(swap, "write_new_file", lambda path, data: (steps.append(path), write(path, data))[1])
    monkeypatch.setattr(os, "unlink", lambda path, **options: (steps.append(Path(path)), unlink(path, **options))[1])
    kept = Path(restore(other, tmp_path / "b").kept or "")
    begins, ends = (number for number, step in enumerate(steps) if step == journal)
    kept_in = {kept, *(path.parent for path in kept.rglob("*"))}
    assert kept_in == {kept, kept / "certs", kept / "certs/acme", kept / "certs" / CA}
    assert kept_in <= set(steps[:begins])
    new_in = {other.root, other.certs, other.certs / "acme", other.certs / CA}
    assert new_in <= set(steps[begins:ends])


@pytest.mark.slow
@pytest.mark.timeout(600)  # a disk that others use, too, takes its time for each fsync
@pytest.mark.parametrize("how", ["kill", "full"])
def test_cut_off_at_any_step_it_leaves_the_old_or_the_new(folder: Folder, tmp_path: Path, how: str) -> None:
    """Whoever looks next is a command about the databases, or one about the root; and neither finds a mixture."""
    assert how in ("kill", "full")
    fill(folder, "new")
    file = backup(folder, tmp_path / "b")
    fresh = _at(tmp_path / "fresh")
    make_key(fresh, "old")
    LocalAuthority(fresh.certs).root(NOW)
    write_atomically(fresh.certs / CA / "account.json", account())
    old, new = (["old"], worth_keeping(fresh)), (["new"], worth_keeping(folder))
    seen, in_a_row, step = [], 0, 0
    begun = False
    while step < 2000:
        step += 1 if begun else 4  # until there is something to keep nothing was touched
        victim = _at(tmp_path / f"victim{step}")
        shutil.copytree(fresh.root, victim.root)
        ended = cut_off(lambda at=victim: BackupService(at)._restore(file, SECRET), step, how, CommandError)
        assert ended != BROKE
        begun = bool(list(victim.root.glob("before-restore-*")))
        exported = asyncio.run(CertsService(victim, lambda: NOW).export()).pem if step % 2 else ""
        found = (labels(victim), worth_keeping(victim))
        assert found in ((old, new) if how == "kill" else (new,) if ended == FINISHED else (old,)), step
        seen.append(found)
        assert private(victim)
        root = root_of(victim)
        assert root is not None
        assert exported in ("", root.chain_pem.decode())
        assert (victim.certs / "local-root.crt").read_bytes() == root.chain_pem
        in_a_row = in_a_row + 1 if ended == FINISHED else 0
        if ended == FINISHED and (how == "kill" or in_a_row == 40):  # what fails in the tidying up does not count
            break
        assert ended in (FINISHED, -signal.SIGKILL if how == "kill" else REFUSED)
        shutil.rmtree(victim.root)
    assert old in seen
    assert new in seen
    assert len(seen) > 60


def _at(root: Path) -> Folder:
    return Folder(root, root / "config.db", root / "security.db")


def test_folders_are_private_too(folder: Folder, other: Folder, tmp_path: Path) -> None:
    fill(folder, "new")
    create(folder, tmp_path / "b")
    before = os.umask(0o277)
    try:
        restore(other, tmp_path / "b")
    finally:
        os.umask(before)
    for path in (other.certs, other.certs / "acme", other.certs / CA):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o700

"""Files of keys are private from their first byte, whole whenever somebody looks, and nobody else's are used."""

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
from hypothesis import given
from hypothesis import strategies as st

from flm.errors import CommandCode, CommandError
from flm.tls import files
from flm.tls.files import MAX_BYTES, folder_of, locked, make_folder, read_pair, read_private, write_atomically
from flm.tls.pair import read
from tests.tls.issuing import authority

ROOT = authority()
LEAF = ROOT.issue("leaf", ("example.com",))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(path: Path) -> str:
    with pytest.raises(CommandError) as error:
        read_private(path)
    assert error.value.code is CommandCode.IO_ERROR
    assert str(path) in error.value.message
    return error.value.message


class TestWriting:
    @pytest.mark.parametrize("umask", [0, 0o022, 0o277])
    def test_private_whatever_the_umask(self, tmp_path: Path, umask: int) -> None:
        path = tmp_path / "certs/acme/ca/current.pem"
        before = os.umask(umask)
        try:
            write_atomically(path, b"one")
            write_atomically(path, b"two")
        finally:
            os.umask(before)
        assert [mode(each) for each in (path, path.parent, tmp_path / "certs")] == [0o600, 0o700, 0o700]
        assert read_private(path) == b"two"
        assert [each.name for each in path.parent.iterdir()] == ["current.pem"]

    def test_private_from_the_first_byte(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        created: list[int] = []
        real = os.open

        def spy(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            if flags & os.O_CREAT:
                created.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            return descriptor

        monkeypatch.setattr(files.os, "open", spy)
        before = os.umask(0)
        try:
            write_atomically(tmp_path / "a.pem", b"one")
        finally:
            os.umask(before)
        assert created == [0o600]

    def test_on_the_disk_before_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: list[str] = []
        fsync, rename = os.fsync, os.rename
        monkeypatch.setattr(files.os, "fsync", lambda fd: (steps.append(_kind(fd)), fsync(fd))[1])
        monkeypatch.setattr(files.os, "rename", lambda a, b: (steps.append("rename"), rename(a, b))[1])
        write_atomically(tmp_path / "a.pem", b"one")
        assert steps == ["file", "rename", "folder"]

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_failure_leaves_the_old_content_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        path = tmp_path / "a.pem"
        write_atomically(path, b"old")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, step, full)
        with pytest.raises(CommandError, match="No space left on device") as error:
            write_atomically(path, b"new")
        assert error.value.code is CommandCode.IO_ERROR
        assert read_private(path) == b"old"
        assert [each.name for each in tmp_path.iterdir()] == ["a.pem"]

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_kill_leaves_the_old_content_and_the_next_writer_sweeps(self, tmp_path: Path, step: str) -> None:
        path = tmp_path / "a.pem"
        write_atomically(path, b"old")
        program = (
            "import os, signal, sys; from pathlib import Path; from flm.tls import files\n"
            f"files.os.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "files.write_atomically(Path(sys.argv[1]), b'new')"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2
        write_atomically(tmp_path / "b.pem", b"another")  # whose writer leaves it alone
        assert len(list(tmp_path.iterdir())) == 3
        write_atomically(path, b"newer")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pem", "b.pem"]

    def test_a_writer_at_work_is_not_swept(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        temporary, descriptor = files._create_beside(path)
        try:
            write_atomically(path, b"another writer's")
            assert temporary.exists()
        finally:
            os.close(descriptor)
        write_atomically(path, b"again")
        assert not temporary.exists()

    def test_one_swept_before_it_was_locked_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.pem"
        real, calls = files._try_lock, []

        def late(descriptor: int) -> bool:
            if not calls:
                calls.append(descriptor)
                files._sweep(path)  # whose own lock comes first
            return real(descriptor)

        monkeypatch.setattr(files, "_try_lock", late)
        write_atomically(path, b"whole")
        assert read_private(path) == b"whole"

    def test_eight_writers_leave_the_whole_of_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        contents = [bytes([65 + number]) * 100_000 for number in range(8)]
        with multiprocessing.get_context("spawn").Pool(8) as pool:
            pool.starmap(write_atomically, [(path, content) for content in contents for _ in range(5)])
        assert read_private(path) in contents
        assert [each.name for each in tmp_path.iterdir()] == ["a.pem"]

    def test_a_link_in_its_place_is_replaced_not_followed(self, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        theirs.write_bytes(b"theirs")
        (tmp_path / "a.pem").symlink_to(theirs)
        write_atomically(tmp_path / "a.pem", b"ours")
        assert (theirs.read_bytes(), read_private(tmp_path / "a.pem")) == (b"theirs", b"ours")

    def test_a_folder_that_is_a_link_or_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "file").touch()
        for name, words in (("link", "it is a symbolic link"), ("file", "it is not a folder")):
            with pytest.raises(CommandError, match=words):
                write_atomically(tmp_path / name / "a.pem", b"x")
        with pytest.raises(CommandError, match="Not a directory"):
            write_atomically(tmp_path / "file/deeper/a.pem", b"x")
        assert list((tmp_path / "real").iterdir()) == []


class TestReading:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert read_private(tmp_path / "none") is None
        assert read_private(tmp_path / "none/none") is None
        assert read_pair(tmp_path / "none") is None

    def test_one_that_others_may_read_is_tightened(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "a.pem"
        path.write_bytes(b"x")
        path.chmod(0o644)
        with caplog.at_level(logging.WARNING):
            assert read_private(path) == b"x"
        assert mode(path) == 0o600
        assert f"{path} could be read by others (mode 644)" in caplog.text
        caplog.clear()
        assert read_private(path) == b"x"
        assert caplog.text == ""

    def test_links_folders_pipes_and_large_ones(self, tmp_path: Path) -> None:
        (tmp_path / "real").write_bytes(b"x")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
        assert "symbolic link" in refused(tmp_path / "link")
        assert "symbolic link" in refused(tmp_path / "dangling")
        assert "not a regular file" in refused(tmp_path / "pipe")
        assert "Is a directory" in refused(tmp_path) or "not a regular file" in refused(tmp_path)
        assert "larger than" in refused(tmp_path / "large")

    def test_another_users(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.pem").write_bytes(b"x")
        monkeypatch.setattr(files.os, "geteuid", lambda: 4_000_000)
        assert "belongs to user id" in refused(tmp_path / "a.pem")

    def test_a_pair(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        pair = read(LEAF.key_pem + LEAF.chain)
        write_atomically(path, pair.pem)
        assert read_pair(path) == pair
        write_atomically(path, ROOT.key_pem + LEAF.chain)
        with pytest.raises(CommandError, match=r"a\.pem: .*mixed up") as error:
            read_pair(path)
        assert error.value.code is CommandCode.PROXY_CERT_FAILED


class TestLocked:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        inside: list[int] = []
        most: list[int] = []

        def enter(number: int) -> None:
            with locked(tmp_path / "certs"):
                inside.append(number)
                most.append(len(inside))
                os.sched_yield()
                inside.remove(number)

        threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert most == [1] * 8
        assert list((tmp_path / "certs").iterdir()) == []

    def test_one_that_hangs_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
        with (
            locked(tmp_path),
            pytest.raises(CommandError, match="another flm has been at work"),
            locked(tmp_path),
        ):
            raise AssertionError("both are in")

    def test_a_dead_holder_holds_nothing(self, tmp_path: Path) -> None:
        program = (
            "import os, signal, sys; from pathlib import Path; from flm.tls.files import locked\n"
            "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
        with locked(tmp_path):
            pass


class TestFolderOf:
    @pytest.mark.parametrize(
        ("url", "readable"),
        [
            ("https://acme-v02.api.letsencrypt.org/directory", "acme-v02.api.letsencrypt.org-"),
            ("https://127.0.0.1:14000/dir", "127.0.0.1_14000-"),
            ("https://user:word@CA.example/", "ca.example-"),
            ("https://[::1]:1/", "___1__1-"),
            ("nonsense", "ca-"),
            ("https://[", "ca-"),
            ("https://\ud800/", "_-"),
        ],
    )
    def test_readable(self, url: str, readable: str) -> None:
        assert folder_of(url).startswith(readable)
        assert len(folder_of(url)) == len(readable) + 12

    def test_of_one_host_each_directory_has_its_own(self) -> None:
        assert folder_of("https://ca.example/a") != folder_of("https://ca.example/b")

    @given(st.text(max_size=300))
    def test_any_url_is_one_harmless_name(self, text: str) -> None:
        name = folder_of(f"https://{text}/dir")
        assert len(name) < 200
        assert Path(name).name == name
        assert not name.startswith(".")


def test_make_folder_tightens(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    make_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o700


def _kind(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

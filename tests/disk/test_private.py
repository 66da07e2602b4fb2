"""Private files are private from their first byte, whole whenever somebody looks, and nobody else's are used."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flm.disk import private
from flm.disk.private import create_file, read_file, secure_file, secure_folder, write_atomically, write_new_file
from flm.errors import CommandCode, CommandError
from tests.support.creation import modes_of_new_files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def content(path: Path) -> bytes | None:
    return read_file(path, 1 << 20)


def refused(look: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CommandError) as error:
        look(path)
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
        assert content(path) == b"two"
        assert [each.name for each in path.parent.iterdir()] == ["current.pem"]

    def test_private_from_the_first_byte(self, tmp_path: Path, no_umask: None) -> None:
        with modes_of_new_files() as created:
            write_atomically(tmp_path / "a.pem", b"one")
            write_new_file(tmp_path / "b.pem", b"one")
            os.close(create_file(tmp_path / "c.pem"))
        assert created == [0o600] * 3

    def test_on_the_disk_before_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: list[str] = []
        fsync, rename = os.fsync, os.rename
        monkeypatch.setattr(private.os, "fsync", lambda fd: (steps.append(_kind(fd)), fsync(fd))[1])
        monkeypatch.setattr(private.os, "rename", lambda a, b: (steps.append("rename"), rename(a, b))[1])
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

        monkeypatch.setattr(private.os, step, full)
        with pytest.raises(CommandError, match="No space left on device") as error:
            write_atomically(path, b"new")
        assert error.value.code is CommandCode.IO_ERROR
        assert content(path) == b"old"
        assert [each.name for each in tmp_path.iterdir()] == ["a.pem"]

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_kill_leaves_the_old_content_and_the_next_writer_sweeps(self, tmp_path: Path, step: str) -> None:
        path = tmp_path / "a.pem"
        write_atomically(path, b"old")
        program = (
            "import os, signal, sys; from pathlib import Path; from flm.disk import private\n"
            f"private.os.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "private.write_atomically(Path(sys.argv[1]), b'new')"
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
        temporary, descriptor = private._create_beside(path)
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
        real, calls = private.try_lock, []

        def late(descriptor: int) -> bool:
            if not calls:
                calls.append(descriptor)
                private._sweep(path)  # whose own lock comes first
            return real(descriptor)

        monkeypatch.setattr(private, "try_lock", late)
        write_atomically(path, b"whole")
        assert content(path) == b"whole"

    def test_eight_writers_leave_the_whole_of_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        contents = [bytes([65 + number]) * 100_000 for number in range(8)]
        with multiprocessing.get_context("spawn").Pool(8) as pool:
            pool.starmap(write_atomically, [(path, content) for content in contents for _ in range(5)])
        assert content(path) in contents
        assert [each.name for each in tmp_path.iterdir()] == ["a.pem"]

    def test_a_link_in_its_place_is_replaced_not_followed(self, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        theirs.write_bytes(b"theirs")
        (tmp_path / "a.pem").symlink_to(theirs)
        write_atomically(tmp_path / "a.pem", b"ours")
        assert (theirs.read_bytes(), content(tmp_path / "a.pem")) == (b"theirs", b"ours")

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

    def test_a_new_file_is_whole_and_never_over_another(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        assert write_new_file(path, b"one")
        assert not write_new_file(path, b"two")
        assert [each.name for each in tmp_path.iterdir()] == ["a.pem"]
        assert (content(path), mode(path)) == (b"one", 0o600)
        with pytest.raises(CommandError, match="could not be written: No such file"):
            write_new_file(tmp_path / "none/a.pem", b"one")

    def test_what_a_killed_writer_of_a_new_file_left_is_swept(self, tmp_path: Path) -> None:
        left, descriptor = private._create_beside(tmp_path / "a.pem")
        os.close(descriptor)
        write_new_file(tmp_path / "a.pem", b"one")
        assert not left.exists()


class TestLooking:
    """By the name alone, and with the file open: the same is refused, and the same is tightened."""

    @pytest.fixture(params=["secure_file", "read_file"])
    def look(self, request: pytest.FixtureRequest) -> Callable[[Path], bytes | int | None]:
        return secure_file if request.param == "secure_file" else lambda path: read_file(path, 2)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert (secure_file(tmp_path / "none"), secure_file(tmp_path / "none/none")) == (-1, -1)
        assert (read_file(tmp_path / "none", 1), read_file(tmp_path / "none/none", 1)) == (None, None)

    def test_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        assert secure_file(tmp_path / "a") == 3
        assert read_file(tmp_path / "a", 2) == b"ab"

    def test_one_that_others_may_read_is_tightened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, look: Callable[[Path], object]
    ) -> None:
        path = tmp_path / "a.pem"
        path.write_bytes(b"x")
        path.chmod(0o644)
        with caplog.at_level(logging.WARNING):
            look(path)
        assert mode(path) == 0o600
        assert f"{path} could be read by others (mode 644)" in caplog.text
        caplog.clear()
        look(path)
        assert caplog.text == ""

    def test_links_folders_and_pipes(self, tmp_path: Path, look: Callable[[Path], object]) -> None:
        (tmp_path / "real").write_bytes(b"x")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe")
        for name, why in (("link", "symbolic link"), ("dangling", "symbolic link"), ("pipe", "not a regular file")):
            assert why in refused(look, tmp_path / name)
        assert "not a regular file" in refused(look, tmp_path)

    def test_another_users(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
    ) -> None:
        (tmp_path / "a.pem").write_bytes(b"x")
        monkeypatch.setattr(private.os, "geteuid", lambda: 4_000_000)
        assert "belongs to user id" in refused(look, tmp_path / "a.pem")

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        """A folder's is not read, and closed all the same."""
        before = len(os.listdir("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd"))
        refused(lambda path: read_file(path, 1), tmp_path)
        assert len(os.listdir("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd")) == before


@pytest.mark.parametrize(
    ("number", "next_step"),
    [
        (errno.EACCES, "run flm as a user who may do that, or name another folder"),
        (errno.EROFS, "mount its file system so that it can be written"),
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space within your quota"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, next_step: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CommandError) as refused:
        secure_folder(tmp_path / "home")
    assert f"home could not be used: {os.strerror(number)}; {next_step}" in refused.value.message


def test_a_folder_is_tightened(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    secure_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o700


def _kind(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

"""Who runs in a folder: the lock and the record, each of which alone proves nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from flm.errors import CommandError
from flm.runtime import instance


def record(pid: int, start_time: str, boot_id: str) -> instance.Instance:
    return instance.Instance("id", pid, start_time, boot_id, "local-http", "127.0.0.1", 3560, "0.1.0", "now")


def of_this_process() -> instance.Instance:
    me = instance.identify(os.getpid())
    assert me is not None
    return record(os.getpid(), me.start_time, me.boot_id)


def test_lock_and_record_together_are_a_proxy(tmp_path: Path) -> None:
    lock = instance.acquire(tmp_path)
    assert lock is not None
    mine = of_this_process()
    instance.write(tmp_path, mine)
    assert instance.running(tmp_path) == mine
    instance.remove(tmp_path)
    assert instance.running(tmp_path) is None
    os.close(lock)


def test_a_record_without_a_lock_is_left_over(tmp_path: Path) -> None:
    instance.write(tmp_path, of_this_process())
    assert instance.running(tmp_path) is None
    assert not instance.is_locked(tmp_path)


@pytest.mark.parametrize("change", [{"start_time": "1"}, {"boot_id": "another"}, {"pid": 2**22 - 1}])
def test_a_lock_with_somebody_elses_record_is_no_proxy(tmp_path: Path, change: dict[str, object]) -> None:
    lock = instance.acquire(tmp_path)
    assert lock is not None
    instance.write(tmp_path, msgspec.structs.replace(of_this_process(), **change))
    assert instance.running(tmp_path) is None
    os.close(lock)


def test_a_second_taker_gives_up_at_once_when_a_proxy_runs(tmp_path: Path) -> None:
    lock = instance.acquire(tmp_path)
    assert lock is not None
    instance.write(tmp_path, of_this_process())
    assert instance.acquire(tmp_path, timeout=60) is None
    os.close(lock)


def test_who_only_looks_does_not_make_a_start_fail(tmp_path: Path) -> None:
    looking = os.open(instance.lock_path(tmp_path), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert instance.acquire(tmp_path, timeout=0.05) is None
    os.close(looking)
    lock = instance.acquire(tmp_path, timeout=0.05)
    assert lock is not None
    os.close(lock)


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flm.runtime import instance; instance.acquire(Path(sys.argv[1])); "
    )
    code += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert instance.is_locked(tmp_path)
        holder.kill()
        holder.wait()
    assert not instance.is_locked(tmp_path)


def test_files_are_private(tmp_path: Path) -> None:
    lock = instance.acquire(tmp_path)
    assert lock is not None
    instance.write(tmp_path, of_this_process())
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    os.close(lock)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"pid":1}', b"{" * 100_000])
def test_garbage_is_no_record(tmp_path: Path, content: bytes) -> None:
    instance.record_path(tmp_path).write_bytes(content)
    assert instance.read(tmp_path) is None


def test_a_symbolic_link_is_not_locked_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    instance.lock_path(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"):
        instance.acquire(tmp_path)


def test_what_cannot_be_seen_is_no_empty_folder(tmp_path: Path) -> None:
    instance.refuse_unseen(tmp_path / "home" / "run")  # it is not there: nothing runs
    (tmp_path / "home").mkdir()
    instance.refuse_unseen(tmp_path / "home" / "run")
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"whether a proxy runs in .*file cannot be seen: Not a directory; run flm"):
        instance.refuse_unseen(tmp_path / "file" / "run")


def test_identity_of_processes() -> None:
    me = instance.identify(os.getpid())
    assert me == instance.identify(os.getpid())
    assert me != instance.identify(1)
    assert instance.identify(2**22 - 1) is None


def test_a_name_with_blanks_and_brackets_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    """The second field of /proc/pid/stat is the program's name, as it is."""
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as odd:
        found = instance.identify(odd.pid)
        assert found is not None
        assert int(found.start_time) > 1000
        odd.kill()


def test_a_zombie_is_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert instance.identify(child.pid) is None


def test_start_time_where_there_is_no_proc() -> None:
    """What macOS gets; `ps` answers the same question here."""
    assert instance._ps_start_time(os.getpid())
    assert instance._ps_start_time(2**22 - 1) is None
    assert instance._ps_start_time(0) is None


def test_a_fifo_in_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(instance.record_path(tmp_path))
    os.mkfifo(instance.lock_path(tmp_path))
    assert instance.read(tmp_path) is None
    assert not instance.is_locked(tmp_path)
    assert instance.running(tmp_path) is None

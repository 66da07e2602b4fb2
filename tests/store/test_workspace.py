"""What lies in clear for a command is gone with it, or with the next one, and never under the feet of one at work."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flm.store import workspace as workspaces
from flm.store.database import open_config, open_security
from flm.store.folder import Folder
from flm.store.workspace import COPIES, UNSEALED, sweep, workspace

AT_WORK = (
    "import sys; from pathlib import Path; from flm.store.workspace import UNSEALED, workspace\n"
    "with workspace(Path(sys.argv[1]), UNSEALED) as path:\n"
    "    (path / 'secret').write_text('in clear')\n"
    "    print(path, flush=True)\n"
    "    sys.stdin.read()"
)


async def _open(folder: Folder, database: str) -> None:
    async with await (open_config if database == "config" else open_security)(folder):
        pass


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with workspace(tmp_path, COPIES) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "deep").mkdir()
        (path / "deep/secret").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), workspace(tmp_path, COPIES) as path:
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("database", ["config", "security"])
@pytest.mark.parametrize("beginning", [COPIES, UNSEALED])
def test_whoever_opens_a_database_removes_what_a_killed_command_left(
    folder: Folder, database: str, beginning: str
) -> None:
    left = folder.root / f"{beginning}4711-1"
    (left / "certs").mkdir(parents=True)
    (left / "certs/root.pem").write_bytes(b"in clear")
    asyncio.run(_open(folder, database))
    assert not left.exists()


def test_what_a_command_in_another_process_uses_stays_until_that_is_dead(folder: Folder) -> None:
    folder.root.mkdir()
    command = [sys.executable, "-c", AT_WORK, str(folder.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        used = Path(process.stdout.readline().rstrip("\n"))
        asyncio.run(_open(folder, "security"))
        with workspace(folder.root, UNSEALED):
            pass
        assert (used / "secret").read_text() == "in clear"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    asyncio.run(_open(folder, "security"))
    assert not used.exists()


def test_one_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = workspaces.try_lock, []

    def late(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            sweep(tmp_path)  # whose own lock comes first
        return real(descriptor)

    monkeypatch.setattr(workspaces, "try_lock", late)
    with workspace(tmp_path, COPIES) as path:
        assert path.is_dir()
        assert len(calls) == 3  # ours, the sweeper's, ours again
        assert list(tmp_path.iterdir()) == [path]


def test_links_files_and_other_folders_stay(folder: Folder, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "dear").touch()
    folder.root.mkdir(mode=0o700)
    (folder.root / f"{UNSEALED}link").symlink_to(theirs)
    (folder.root / f"{UNSEALED}file").touch()
    (folder.root / "before-restore-x").mkdir()
    asyncio.run(_open(folder, "config"))
    assert (theirs / "dear").exists()
    assert {f"{UNSEALED}link", f"{UNSEALED}file", "before-restore-x"} <= set(os.listdir(folder.root))


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []

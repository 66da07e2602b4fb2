"""Secret files are private from their first byte, and nobody else's file is ever used as one."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from flm.disk.private import secure_folder
from flm.errors import CommandCode, CommandError
from flm.store import folder as folders
from flm.store.database import open_config, open_security
from flm.store.folder import Folder, locate
from flm.store.pepper import load_pepper
from tests.support.creation import modes_of_new_files

SECRETS = ("config.db", "security.db", "pepper")
BESIDE = ("config.db-wal", "config.db-shm")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def use(folder: Folder) -> None:
    async with await open_config(folder) as config, await open_security(folder):
        async with config.transaction() as transaction:
            await transaction.change("INSERT INTO settings VALUES ('a', 'b')")
        for name in BESIDE:
            assert mode(folder.root / name) == 0o600
    load_pepper(folder, create=True)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o277])
def test_everything_is_private_whatever_the_umask(folder: Folder, umask: int) -> None:
    before = os.umask(umask)
    try:
        asyncio.run(use(folder))
    finally:
        os.umask(before)
    assert mode(folder.root) == 0o700
    assert {name: mode(folder.root / name) for name in SECRETS} == dict.fromkeys(SECRETS, 0o600)


def test_parents_that_had_to_be_made_are_private_too(tmp_path: Path, no_umask: None) -> None:
    asyncio.run(use(locate({"FLM_HOME": str(tmp_path / "a/b/home")})))
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/home")] == [0o700] * 3


def test_the_first_byte_is_private_already(folder: Folder, no_umask: None) -> None:
    with modes_of_new_files() as created:
        asyncio.run(use(folder))
    assert len(created) >= 4  # marker, two databases, pepper
    assert set(created) == {0o600}


@pytest.mark.parametrize("name", [*SECRETS, "config.db-wal"])
def test_a_file_others_may_read_is_tightened_with_a_warning(
    folder: Folder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(use(folder))
    path = folder.root / name
    path.touch()
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        asyncio.run(use_without_insert(folder))
    assert not path.exists() or mode(path) == 0o600
    assert [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]


async def use_without_insert(folder: Folder) -> None:
    async with await open_config(folder), await open_security(folder):
        pass
    load_pepper(folder, create=False)


def test_a_folder_others_may_enter_is_tightened(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.root.mkdir(mode=0o755)
    folder.root.chmod(0o755)
    asyncio.run(use(folder))
    assert mode(folder.root) == 0o700
    assert "could be read by others" in caplog.text


@pytest.mark.parametrize("name", [*SECRETS, "security.db-wal"])
def test_a_symbolic_link_is_refused(folder: Folder, tmp_path: Path, name: str) -> None:
    asyncio.run(use(folder))
    target = tmp_path / "elsewhere"
    target.write_bytes(b"theirs")
    (folder.root / name).unlink(missing_ok=True)
    (folder.root / name).symlink_to(target)
    with pytest.raises(CommandError) as refused:
        asyncio.run(use_without_insert(folder))
    assert refused.value.code is CommandCode.IO_ERROR
    assert "symbolic link" in refused.value.message
    assert target.read_bytes() == b"theirs"


def test_a_linked_folder_is_refused(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    folder.root.symlink_to(tmp_path / "real")
    with pytest.raises(CommandError, match="symbolic link"):
        asyncio.run(use(folder))
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("name", ["", *SECRETS])
def test_another_users_file_is_refused(folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(use(folder))
    stranger = os.geteuid() + 1
    if name == "":
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    elif os.geteuid() != 0:
        pytest.skip("only root can give files away")
    else:
        os.chown(folder.root / name, stranger, -1)
    with pytest.raises(CommandError, match="belongs to user id"):
        asyncio.run(use_without_insert(folder))


@pytest.mark.parametrize("name", SECRETS)
def test_a_folder_in_a_files_place_is_refused(folder: Folder, name: str) -> None:
    folder.root.mkdir(mode=0o700)
    (folder.root / name).mkdir()
    with pytest.raises(CommandError) as refused:
        asyncio.run(use(folder))
    assert refused.value.code is CommandCode.IO_ERROR


def test_databases_elsewhere(tmp_path: Path, no_umask: None) -> None:
    folder = locate(
        {"FLM_HOME": str(tmp_path / "home")}, config=str(tmp_path / "a/c.db"), security=str(tmp_path / "b/s.db")
    )
    asyncio.run(use_elsewhere(folder))
    assert [mode(tmp_path / name) for name in ("a", "b", "a/c.db", "b/s.db")] == [0o700, 0o700, 0o600, 0o600]
    assert not (folder.root / "config.db").exists()


async def use_elsewhere(folder: Folder) -> None:
    async with await open_config(folder), await open_security(folder):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"FLM_HOME": "/x/y"}, "/x/y"), ({"FLM_HOME": "/x/../z/"}, "/z"), ({"FLM_HOME": "rel"}, f"{os.getcwd()}/rel")],
)
def test_where_the_folder_is(environment: dict[str, str], expected: str) -> None:
    assert str(locate(environment).root) == expected


def test_the_users_own_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    root = locate({}).root
    assert root.is_relative_to(tmp_path)
    assert root.name == "flm"


def test_a_lock_that_is_never_given_back_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.0)
    with folders.locked(tmp_path), pytest.raises(CommandError) as refused, folders.locked(tmp_path):
        pass
    assert refused.value.code is CommandCode.DB_ERROR


class TestPepper:
    def test_is_made_once(self, folder: Folder) -> None:
        secure_folder(folder.root)
        first = load_pepper(folder, create=True)
        assert len(first) == 32
        assert load_pepper(folder, create=True) == first
        assert load_pepper(folder, create=False) == first

    def test_of_many_that_make_it_at_once_one_wins(self, folder: Folder) -> None:
        secure_folder(folder.root)
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(load_pepper(folder, create=True))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 16
        assert len(set(found)) == 1
        assert [path.name for path in folder.root.iterdir()] == ["pepper"]

    def test_missing_while_keys_depend_on_it_is_refused(self, folder: Folder) -> None:
        secure_folder(folder.root)
        with pytest.raises(CommandError, match="is missing") as refused:
            load_pepper(folder, create=False)
        assert refused.value.code is CommandCode.IO_ERROR
        assert not folder.pepper.exists()

    @pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
    def test_of_another_length_is_refused_and_left(self, folder: Folder, content: bytes) -> None:
        secure_folder(folder.root)
        folder.pepper.write_bytes(content)
        folder.pepper.chmod(0o600)
        with pytest.raises(CommandError, match="damaged"):
            load_pepper(folder, create=True)
        assert folder.pepper.read_bytes() == content

"""Backups: whole while others write, restored whole or not at all, and the way back."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime import instance
from flm.services.backup import KEPT, BackupService, Contents, File, Restored
from flm.services.config import ConfigService
from flm.services.engines import EngineService
from flm.services.security import SecurityService
from flm.store import audit as audit_rows
from flm.store import swap
from flm.store.audit_file import open_for_reading, open_for_writing
from flm.store.database import open_config, open_security
from flm.store.engines import credentials, registered
from flm.store.folder import Folder, locate
from flm.store.schema import SECURITY
from flm.store.sealed import Secret, seal
from tests.runtime.harness import prepare
from tests.support.stepwise import BROKE, FINISHED, REFUSED, cut_off

SECRET = Secret("passphrase", b"hunter2-and-some-more")


def make_key(folder: Folder, label: str) -> str:
    return asyncio.run(SecurityService(folder).create_key(label)).key


def labels(folder: Folder) -> list[str]:
    return [key.label for key in asyncio.run(SecurityService(folder).list_keys())]


def backup(folder: Folder, path: Path) -> Path:
    asyncio.run(BackupService(folder).create(path, SECRET))
    return path


def restore(folder: Folder, path: Path, secret: Secret | None = SECRET) -> Restored:
    return asyncio.run(BackupService(folder).restore(path, secret))


def refused(folder: Folder, path: Path, code: CommandCode, secret: Secret | None = SECRET) -> str:
    """What a restore that is refused says; and that it changed nothing at all."""
    before = content(folder)
    with pytest.raises(CommandError) as caught:
        restore(folder, path, secret)
    assert caught.value.code is code, caught.value.message
    assert content(folder) == before
    return caught.value.message


def content(folder: Folder) -> dict[str, bytes]:
    """Every file of the folder, but for the lock and what it holds."""
    if not folder.root.exists():
        return {}
    found = [path for path in folder.root.rglob("*") if path.is_file() and path.parent != folder.run]
    return {str(path.relative_to(folder.root)): path.read_bytes() for path in found}


def private(folder: Folder) -> bool:
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in folder.root.rglob("*")}
    return modes <= {0o600, 0o700}


def test_keys_settings_and_engines_come_back(folder: Folder, other: Folder, tmp_path: Path) -> None:
    async def fill() -> None:
        await ConfigService(folder, {}).set("proxy.port", "4711")
        engine = ("gpu1", "openai", "http://127.0.0.1:9")
        await EngineService(folder, {}).add(*engine, credential="sk-engine-canary")

    key = make_key(folder, "laptop")
    asyncio.run(fill())
    file = backup(folder, tmp_path / "b")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for secret in (b"sk-engine-canary", b"laptop", b"4711", key[17:].encode(), folder.pepper.read_bytes()):
        assert secret not in file.read_bytes()

    restored = restore(other, file)
    assert (restored.keys, restored.kept) == (1, None)
    assert labels(other) == ["laptop"]
    assert other.pepper.read_bytes() == folder.pepper.read_bytes()

    async def look() -> None:
        async with await open_config(other) as config, await open_security(other) as security:
            assert [each.id for each in await registered(config)] == ["gpu1"]
            assert await credentials(security) == {"gpu1": "sk-engine-canary"}

    asyncio.run(look())
    assert private(other)
    assert not list(folder.root.glob(".backup-*")) + list(other.root.glob(".restore-*"))


def test_a_folder_that_was_never_used_can_be_backed_up(folder: Folder, other: Folder, tmp_path: Path) -> None:
    restore(other, backup(folder, tmp_path / "b"))
    assert labels(other) == []
    make_key(other, "first")


def test_a_restore_can_be_undone(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    make_key(folder, "new")
    restored = restore(folder, file)
    assert labels(folder) == ["old"]
    assert restored.kept is not None
    assert restored.to_undo == f"flm security backup restore {restored.kept}"
    assert private(folder)
    again = restore(folder, Path(restored.kept), None)
    assert labels(folder) == ["old", "new"]
    assert again.kept is not None
    assert again.kept != restored.kept
    assert len(list(folder.root.glob(f"{KEPT}*"))) == 2


def test_the_way_back_names_databases_that_lie_elsewhere(folder: Folder, tmp_path: Path) -> None:
    elsewhere = msgspec.structs.replace(folder, config=tmp_path / "else where/config")
    make_key(elsewhere, "old")
    restored = restore(elsewhere, backup(elsewhere, tmp_path / "b"))
    assert f"--db-path-config '{elsewhere.config}'" in restored.to_undo
    assert labels(elsewhere) == ["old"]


def audited(folder: Folder) -> list[str]:
    """The request ids in the audit log."""

    async def read() -> list[str]:
        database = await open_for_reading(folder)
        if database is None:
            return []
        async with database:
            return [row[0] for row in await database.rows("SELECT request_id FROM audit_logs ORDER BY id")]

    return asyncio.run(read())


def audit(folder: Folder, request_id: str) -> None:
    async def write() -> None:
        async with await open_for_writing(folder) as database:
            row = (hash(request_id), 1, request_id, "::1", None, "GET", "/", None, None, 200, 1.0, None, 0, 0, None)
            await audit_rows.add(database, [row])

    asyncio.run(write())


def test_the_audit_log_goes_along_only_where_it_is_asked_for(folder: Folder, other: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    audit(folder, "first")
    without = backup(folder, tmp_path / "without")
    made = asyncio.run(BackupService(folder).create(tmp_path / "with", SECRET, with_audit=True))
    assert made.contains == ("config.db", "security.db", "pepper", "audit.db")
    audit(folder, "second")
    restored = restore(folder, without)
    assert audited(folder) == ["first", "second"]
    assert not (Path(restored.kept or "") / "audit.db").exists()
    restored = restore(folder, tmp_path / "with")
    assert audited(folder) == ["first"]
    restore(folder, Path(restored.kept or ""), None)
    assert audited(folder) == ["first", "second"]
    restore(other, tmp_path / "with")
    assert (audited(other), labels(other)) == (["first"], ["old"])
    # Asked for where there is none, it is left out; and a damaged one is refused.
    (folder.audit).unlink()
    made = asyncio.run(BackupService(folder).create(tmp_path / "none", SECRET, with_audit=True))
    assert "audit.db" not in made.contains
    folder.audit.write_bytes(b"garbage" * 1000)
    with pytest.raises(CommandError, match="damaged"):
        asyncio.run(BackupService(folder).create(tmp_path / "never", SECRET, with_audit=True))
    assert not (tmp_path / "never").exists()


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder on another file system, where no second name of a file here can be."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a disk that others use, too, takes its time for each fsync
def test_a_database_on_another_file_system_is_replaced_with_the_others(
    folder: Folder, tmp_path: Path, other_disk: Path
) -> None:
    make_key(folder, "new")
    file = backup(folder, tmp_path / "b")
    seen = []
    for step in range(1, 2000, 4):
        root = tmp_path / f"victim{step}"
        victim = msgspec.structs.replace(
            locate({"FLM_HOME": str(root)}), security=other_disk / f"{step}" / "keys.db", config=root / "config.db"
        )
        make_key(victim, "old")
        ended = cut_off(lambda at=victim: BackupService(at)._restore(file, SECRET), step, "kill", CommandError)
        seen += labels(victim)
        if ended == FINISHED:
            break
    assert set(seen) == {"old", "new"}
    assert seen[-1] == "new"
    (kept,) = victim.root.glob(f"{KEPT}*")
    restore(victim, kept, None)
    assert labels(victim) == ["old"]


def test_a_folder_for_a_database_is_made(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "new")
    file = backup(folder, tmp_path / "b")
    fresh = locate({"FLM_HOME": str(tmp_path / "fresh")}, config=str(tmp_path / "far/away/config.db"))
    restore(fresh, file)
    assert labels(fresh) == ["new"]
    assert stat.S_IMODE(fresh.config.parent.stat().st_mode) == 0o700


def test_a_backup_may_be_put_where_a_link_leads(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "backups").symlink_to(tmp_path / "disk")
    backup(folder, tmp_path / "backups/b")
    assert (tmp_path / "disk/b").stat().st_size > 0


def test_a_file_that_is_there_is_not_overwritten(folder: Folder, tmp_path: Path) -> None:
    file = tmp_path / "b"
    file.write_bytes(b"dear")
    with pytest.raises(CommandError, match="is there already") as taken:
        backup(folder, file)
    assert taken.value.code is CommandCode.USAGE
    assert file.read_bytes() == b"dear"


def test_a_cut_file_changes_nothing(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    whole = backup(folder, tmp_path / "b").read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(whole), 1024), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        said = refused(folder, cut, CommandCode.BACKUP_INVALID)
        assert ("is empty" if length == 0 else "cut short") in said


def test_a_changed_file_changes_nothing(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    whole = backup(folder, tmp_path / "b").read_bytes()
    changed = tmp_path / "changed"
    for at in range(0, len(whole), 1000):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(folder, changed, CommandCode.BACKUP_INVALID)


def test_it_says_what_a_file_is(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    for wrong in (Secret("passphrase", b"hunter3"), Secret("key file", SECRET.value), None):
        assert "passphrase" in refused(folder, file, CommandCode.BACKUP_INVALID, wrong)
    assert "no backup of FLM's" in refused(folder, folder.security, CommandCode.BACKUP_INVALID)
    assert "no folder of former files" in refused(folder, tmp_path, CommandCode.BACKUP_INVALID)
    assert "none: No such file" in refused(folder, tmp_path / "none", CommandCode.USAGE)
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in refused(folder, tmp_path / "fifo", CommandCode.BACKUP_INVALID)


def sealing(path: Path, files: dict[str, bytes], contents: bytes | None = None) -> Path:
    """A genuine sealed file with any content."""
    listed = tuple(File(name, len(data)) for name, data in files.items())
    line = contents or msgspec.json.encode(Contents("9.9", 0, listed))
    plain = line + b"\n" + b"".join(files.values())
    with open(path, "wb") as file:
        seal(file, [plain], len(plain), SECRET)
    return path


def test_a_genuine_file_of_something_else_changes_nothing(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    good = {name: (folder.root / name).read_bytes() for name in ("config.db", "security.db", "pepper")}
    sealing(tmp_path / "good", good)
    restore(folder, tmp_path / "good")  # so that each of the next is refused for what it is
    cases: list[tuple[dict[str, bytes], CommandCode, str]] = [
        ({**good, "pepper": b"short"}, CommandCode.IO_ERROR, "pepper"),
        ({**good, "security.db": good["security.db"][:8192]}, CommandCode.DB_ERROR, "damaged"),
        ({**good, "security.db": good["config.db"]}, CommandCode.DB_ERROR, "not FLM's security database"),
        ({**good, "config.db": b""}, CommandCode.DB_ERROR, "missing or empty"),
        ({**good, "config.db": b"no database at all"}, CommandCode.DB_ERROR, "config.db"),
        ({**good, "../../evil": b"x"}, CommandCode.BACKUP_INVALID, "other files"),
        ({name: good[name] for name in ("config.db", "pepper")}, CommandCode.BACKUP_INVALID, "other files"),
    ]
    for number, (files, code, why) in enumerate(cases):
        assert why in refused(folder, sealing(tmp_path / f"bad{number}", files), code)
    for number, line in enumerate((b"[]", b"\xff", b'{"flm":"1","created_at":0,"files":[]}', b"x" * 200_000)):
        refused(folder, sealing(tmp_path / f"line{number}", good, line), CommandCode.BACKUP_INVALID)
    lying = tuple(File(name, len(data) - 1) for name, data in good.items())
    line = msgspec.json.encode(Contents("9.9", 0, lying))
    assert "longer than it says" in refused(folder, sealing(tmp_path / "lying", good, line), CommandCode.BACKUP_INVALID)
    assert labels(folder) == ["old"]


def test_a_newer_database_is_refused_and_an_older_one_is_brought_up_to_date(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    staged = tmp_path / "staged"
    shutil.copytree(folder.root, staged)
    connection = sqlite3.connect(staged / "security.db")
    connection.execute(f"PRAGMA user_version = {SECURITY.version + 1}")
    connection.close()
    files = {name: (staged / name).read_bytes() for name in ("config.db", "security.db", "pepper")}
    assert "newer FLM" in refused(folder, sealing(tmp_path / "newer", files), CommandCode.MIGRATION_FAILED)

    (staged / "config.db").unlink()
    connection = sqlite3.connect(staged / "config.db", isolation_level=None)
    for statement in the_first_config():
        connection.execute(statement)
    connection.close()
    files["config.db"] = (staged / "config.db").read_bytes()
    restore(folder, sealing(tmp_path / "older", {**files, "security.db": folder.security.read_bytes()}))
    asyncio.run(EngineService(folder, {}).add("e", "openai", "http://127.0.0.1:9", credential=None))
    assert labels(folder) == ["old"]


def the_first_config() -> list[str]:
    from flm.store.schema import CONFIG

    return [*CONFIG.migrations[0], f"PRAGMA application_id = {CONFIG.application_id}", "PRAGMA user_version = 1"]


def test_a_running_proxy_forbids_a_restore(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    folder.run.mkdir(mode=0o700)
    lock = instance.acquire(folder.run)
    assert lock is not None
    identity = instance.identify(os.getpid())
    assert identity is not None
    me = instance.Instance(
        "i", os.getpid(), identity.start_time, identity.boot_id, "local-http", "127.0.0.1", 1, "1", "now"
    )
    instance.write(folder.run, me)
    try:
        assert "flm proxy stop" in refused(folder, file, CommandCode.PROXY_ALREADY_RUNNING)
        backup(folder, tmp_path / "b2")
    finally:
        os.close(lock)
    restore(folder, file)


def test_a_command_that_has_the_databases_open_forbids_a_restore(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what it writes next would be lost, in a file that is no longer there."""
    monkeypatch.setattr(swap, "BUSY_SECONDS", 0.2)
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    pid = os.fork()  # another process: SQLite's locks are between processes
    if pid == 0:
        connection = sqlite3.connect(folder.security)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("SELECT count(*) FROM api_keys").fetchone()
        signal.pause()
    try:
        while not Path(f"{folder.security}-shm").exists():
            pass
        with pytest.raises(CommandError, match=r"another command has had .* open"):
            restore(folder, file)
        assert labels(folder) == ["old"]
        assert not list(folder.root.glob(f"{KEPT}*"))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    restore(folder, file)


def test_buckets_are_cleared(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    folder.run.mkdir(mode=0o700, exist_ok=True)
    (folder.run / "buckets").write_bytes(b"of other keys")
    restore(folder, file)
    assert not (folder.run / "buckets").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: folder.security.write_bytes(b"garbage" * 1000),
        lambda folder: folder.security.unlink(),
        lambda folder: folder.config.write_bytes(b""),
        lambda folder: folder.pepper.unlink(),
        lambda folder: os.truncate(folder.security, 8192),
    ],
    ids=["garbage", "missing", "empty", "no pepper", "cut"],
)
def test_a_folder_that_is_damaged_is_mended(folder: Folder, tmp_path: Path, spoil: object) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    assert callable(spoil)
    spoil(folder)
    damaged = {name: len(data) for name, data in content(folder).items()}  # a header says how a database is closed
    restored = restore(folder, file)
    assert labels(folder) == ["old"]
    assert "not whole" in restored.to_undo
    kept = Path(restored.kept or "")
    assert {path.name: path.stat().st_size for path in kept.iterdir()} == damaged


def test_a_copy_is_of_one_moment(folder: Folder, other: Folder, tmp_path: Path) -> None:
    """An engine and its credential lie in two databases: a copy has both or neither, also in the middle of writing."""
    make_key(folder, "old")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number, began = number + 1, time.monotonic()
            config, security = sqlite3.connect(folder.config, timeout=30), sqlite3.connect(folder.security, timeout=30)
            config.isolation_level = security.isolation_level = None
            config.execute("BEGIN IMMEDIATE")
            config.execute("INSERT INTO upstreams (id, kind, url, created_at) VALUES (?, 'k', 'u', 0)", (str(number),))
            security.execute("BEGIN IMMEDIATE")
            security.execute("INSERT INTO engine_credentials VALUES (?, 'c')", (str(number),))
            security.execute("COMMIT")
            config.execute("COMMIT")
            config.close()
            security.close()
            time.sleep(time.monotonic() - began)  # on a slow disk others get no turn otherwise: SQLite has no queue

    pid = os.fork()
    if pid == 0:
        write()
        os._exit(0)
    try:
        for number in range(6):
            file = backup(folder, tmp_path / f"b{number}")
            restore(other, file)

            async def look() -> tuple[set[str], set[str]]:
                async with await open_config(other) as config, await open_security(other) as security:
                    return {each.id for each in await registered(config)}, set(await credentials(security))

            engines, secrets = asyncio.run(look())
            assert engines == secrets
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a disk that others use, too, takes its time for each fsync
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_restore_cut_off_at_any_step_leaves_the_old_or_the_new(folder: Folder, tmp_path: Path, how: str) -> None:
    """Killed (-9), or told that the disk is full, at each of its calls to the system in turn."""
    assert how in ("kill", "full")
    make_key(folder, "new")
    audit(folder, "new")
    file = tmp_path / "b"
    asyncio.run(BackupService(folder).create(file, SECRET, with_audit=True))
    fresh = locate({"FLM_HOME": str(tmp_path / "fresh")})
    make_key(fresh, "old")
    audit(fresh, "old")
    old, new = ((["old"],) * 2, fresh.pepper.read_bytes()), ((["new"],) * 2, folder.pepper.read_bytes())
    seen, in_a_row = [], 0
    for step in range(1, 2000):
        victim = locate({"FLM_HOME": str(tmp_path / f"victim{step}")})
        shutil.copytree(fresh.root, victim.root)
        ended = cut_off(lambda at=victim: BackupService(at)._restore(file, SECRET), step, how, CommandError)
        assert ended != BROKE
        found = ((labels(victim), audited(victim)), victim.pepper.read_bytes())
        assert found in ((old, new) if how == "kill" else (new,) if ended == FINISHED else (old,)), step
        seen.append(found)
        assert private(victim)
        assert not swap.unsettled(victim)
        assert not list(victim.root.glob(".restore-*"))  # any command removes what was unsealed
        if ended == FINISHED and how == "kill":
            break
        if how == "kill":
            assert ended == -signal.SIGKILL
            restore(victim, file)
        in_a_row = in_a_row + 1 if ended == FINISHED else 0
        if in_a_row == 40:  # what fails in the tidying up does not count; here nothing is left that could fail
            break
        shutil.rmtree(victim.root)
    assert old in seen
    assert new in seen
    assert len(seen) > 60


def test_the_start_of_a_proxy_removes_what_a_killed_restore_left(folder: Folder, tmp_path: Path) -> None:
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    proxy = prepare(tmp_path / "victim")
    for step in range(1, 2000):
        ended = cut_off(lambda: BackupService(proxy.folder)._restore(file, SECRET), step, "kill", CommandError)
        assert ended == -signal.SIGKILL
        if list(proxy.folder.root.glob(".restore-*/pepper")):
            break

    async def main() -> None:
        await proxy.start()
        try:
            assert not list(proxy.folder.root.glob(".restore-*"))
        finally:
            await proxy.service.stop(now=True)

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(600)  # a disk that others use, too, takes its time for each fsync
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_backup_cut_off_at_any_step_leaves_no_half_file(folder: Folder, tmp_path: Path, how: str) -> None:
    assert how in ("kill", "full")
    make_key(folder, "old")
    before, left, in_a_row = content(folder), 0, 0
    for step in range(1, 2000):
        file = tmp_path / f"b{step}"
        ended = cut_off(lambda at=file: BackupService(folder)._create(at, SECRET), step, how, CommandError)
        assert ended in (FINISHED, -signal.SIGKILL if how == "kill" else REFUSED)
        left += len(list(folder.root.glob(".backup-*")))
        assert labels(folder) == ["old"]
        assert not list(folder.root.glob(".backup-*"))
        if file.exists():
            restore(locate({"FLM_HOME": str(tmp_path / f"into{step}")}), file)
        in_a_row = in_a_row + 1 if ended == FINISHED else 0
        if ended == FINISHED and (how == "kill" or in_a_row == 40):  # as above
            break
    assert step > 30
    assert left
    backup(folder, tmp_path / "last")
    assert content(folder) == before
    assert labels(folder) == ["old"]


def test_a_real_full_disk_is_told(folder: Folder, tmp_path: Path) -> None:
    """A limit on the size of files, which fails writes in the middle, SQLite's as well."""
    make_key(folder, "old")
    file = backup(folder, tmp_path / "b")
    other = locate({"FLM_HOME": str(tmp_path / "other")})

    def within(limit: int, work: object) -> int:
        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            assert callable(work)
            work()

        return cut_off(limited, 1_000_000, "full", CommandError)

    for limit in (1000, 10_000, 20_000):
        assert within(limit, lambda: BackupService(folder)._create(tmp_path / "none", SECRET)) == REFUSED
        assert not (tmp_path / "none").exists()
        assert within(limit, lambda: BackupService(other)._restore(file, SECRET)) == REFUSED
        assert [path.name for path in other.root.iterdir()] == ["run"]
    assert labels(folder) == ["old"]

"""Opening, migrating and refusing; transactions that hold whatever happens in the middle of them."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from flm.errors import CommandCode, CommandError
from flm.store import database, engines, inspection, opening, settings
from flm.store.database import Database, open_config, open_security
from flm.store.folder import Folder
from flm.store.schema import CONFIG, SCHEMAS, SECURITY, Schema

ROOT = Path(__file__).resolve().parents[2]


async def create(folder: Folder) -> None:
    async with await open_config(folder), await open_security(folder):
        pass


@pytest.fixture
def used(folder: Folder) -> Folder:
    """A folder with both databases and one setting, nobody has them open."""

    async def use() -> None:
        await create(folder)
        async with await open_config(folder) as config, config.transaction() as transaction:
            await settings.put(transaction, "proxy.port", "4000")

    asyncio.run(use())
    return folder


def refusal(folder: Folder, opened: Callable[[Folder], object] = open_security) -> CommandError:
    async def open_and_close() -> None:
        async with await opened(folder):  # type: ignore[misc]
            pass

    with pytest.raises(CommandError) as refused:
        asyncio.run(open_and_close())
    return refused.value


def contents(folder: Folder) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.root.iterdir()}


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_what_sqlite_does_not_say_is_said(tmp_path: Path) -> None:
    """It calls a folder in which it may not write one whose file it cannot open."""
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as refused:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "nowhere" / "config.db"),))
    connection.close()
    assert "its file system may be written (mount)" in opening.next_step(refused.value)
    assert opening.next_step(sqlite3.OperationalError("no such table: x")) == ""


class TestOpening:
    def test_both_are_made_together(self, folder: Folder) -> None:
        asyncio.run(create(folder))
        assert sorted(path.name for path in folder.root.iterdir()) == ["config.db", "security.db"]
        for schema in SCHEMAS:
            connection = sqlite3.connect(opening.path_of(folder, schema))
            assert connection.execute("PRAGMA user_version").fetchone() == (schema.version,)
            assert connection.execute("PRAGMA application_id").fetchone() == (schema.application_id,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            assert names == schema.tables
            connection.close()

    def test_a_revocation_survives_a_power_cut(self, folder: Folder) -> None:
        async def level(opened: Database) -> object:
            async with opened:
                return await opened.rows("PRAGMA synchronous")

        async def both() -> tuple[object, object]:
            return await level(await open_config(folder)), await level(await open_security(folder))

        assert asyncio.run(both()) == ([(1,)], [(2,)])  # NORMAL, FULL

    @pytest.mark.parametrize("name", ["config.db", "security.db"])
    @pytest.mark.parametrize("loss", ["missing", "empty"])
    @pytest.mark.parametrize("opened", [open_config, open_security])
    def test_one_that_is_gone_while_the_other_is_there_is_a_loss(
        self, used: Folder, name: str, loss: str, opened: Callable[[Folder], object]
    ) -> None:
        path = used.root / name
        path.unlink()
        if loss == "empty":
            path.touch(0o600)
        before = contents(used)
        refused = refusal(used, opened)
        assert refused.code is CommandCode.DB_ERROR
        assert str(path) in refused.message
        assert contents(used) == before

    def test_both_empty_in_a_folder_that_was_in_use_is_a_loss(self, used: Folder) -> None:
        for name in ("config.db", "security.db"):
            (used.root / name).write_bytes(b"")
        used.pepper.write_bytes(b"p" * 32)
        before = contents(used)
        assert refusal(used).code is CommandCode.DB_ERROR
        assert contents(used) == before

    def test_empty_files_in_a_new_folder_are_filled(self, folder: Folder, tmp_path: Path) -> None:
        folder.root.mkdir(mode=0o700)
        folder.config.touch(0o600)
        asyncio.run(create(folder))
        assert folder.config.stat().st_size > 0

    def test_a_creation_that_was_cut_off_is_taken_up_again(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = opening.migrate

        def killed(path: Path, schema: Schema) -> None:
            if schema is SECURITY:
                raise KeyboardInterrupt
            real(path, schema)

        monkeypatch.setattr(opening, "migrate", killed)
        folder.root.mkdir(mode=0o700)
        with pytest.raises(KeyboardInterrupt):
            opening.open_connection(folder, CONFIG)
        assert (folder.root / opening.MARKER).exists()
        assert folder.config.stat().st_size > 0
        monkeypatch.undo()
        asyncio.run(create(folder))
        assert not (folder.root / opening.MARKER).exists()

    def test_many_processes_create_it_at_once(self, folder: Folder) -> None:
        code = (
            "import asyncio, os\n"
            "from flm.store.folder import locate\n"
            "from flm.store.database import open_config, open_security\n"
            "async def main():\n"
            "    folder = locate(os.environ)\n"
            "    async with await open_config(folder) as c, await open_security(folder) as s:\n"
            "        async with c.transaction() as t:\n"
            "            await t.change('INSERT INTO settings VALUES (?, 1)', (str(os.getpid()),))\n"
            "asyncio.run(main())\n"
        )
        environment = {"FLM_HOME": str(folder.root), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        children = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) for _ in range(8)
        ]
        complaints = [child.communicate(timeout=60)[1] for child in children]
        assert complaints == [b""] * 8

        async def count() -> int:
            async with await open_config(folder) as config:
                return len(await settings.all_settings(config))

        assert asyncio.run(count()) == 8


class TestRefusing:
    @pytest.mark.parametrize("name", ["config.db", "security.db"])
    def test_a_newer_version(self, used: Folder, name: str) -> None:
        edit(used.root / name, "PRAGMA user_version = 99")
        before = contents(used)
        refused = refusal(used, open_config if name == "config.db" else open_security)
        assert refused.code is CommandCode.MIGRATION_FAILED
        assert "newer FLM" in refused.message
        assert contents(used) == before

    @pytest.mark.parametrize(
        "statement",
        ["PRAGMA application_id = 0", "PRAGMA user_version = 0", "DROP TABLE api_keys", "PRAGMA user_version = -3"],
    )
    def test_what_is_not_flms(self, used: Folder, statement: str) -> None:
        edit(used.security, statement)
        before = contents(used)
        assert refusal(used).code is CommandCode.DB_ERROR
        assert contents(used) == before

    def test_one_database_in_the_place_of_the_other(self, used: Folder) -> None:
        used.security.write_bytes(used.config.read_bytes())
        before = contents(used)
        assert "not FLM's security database" in refusal(used).message
        assert contents(used) == before

    @pytest.mark.parametrize(
        "content", [b"x", b"no database at all\n" * 99, b"SQLite format 3\0", b"SQLite format 3\0" + b"\0" * 4080]
    )
    def test_garbage(self, used: Folder, content: bytes) -> None:
        used.security.write_bytes(content)
        before = contents(used)
        assert refusal(used).code is CommandCode.DB_ERROR
        assert contents(used) == before

    def test_a_cut_off_file(self, used: Folder) -> None:
        whole = used.security.read_bytes()
        for length in (50, 100, 4096, 5000, len(whole) - 4096, len(whole) - 1):
            used.security.write_bytes(whole[:length])
            before = contents(used)
            assert refusal(used).code is CommandCode.DB_ERROR, length
            assert contents(used) == before

    def test_damage_at_many_offsets_is_refused_or_does_not_matter(self, used: Folder) -> None:
        """Whatever 16 bytes are overwritten: the file is refused and left as it is, or every row is as it was."""
        path = used.config
        whole = path.read_bytes()
        refused = 0

        async def read() -> dict[str, str]:
            async with await open_config(used) as config:
                return await settings.all_settings(config)

        for offset in range(0, len(whole), 97):
            damaged = whole[:offset] + b"\xa5" * 16 + whole[offset + 16 :]
            path.write_bytes(damaged)
            try:
                rows = asyncio.run(read())
            except CommandError:
                refused += 1
                assert path.read_bytes() == damaged, offset
            else:
                assert rows == {"proxy.port": "4000"} or offset // 4096 > 0, (offset, rows)
        assert refused > 10

    def test_a_busy_file_is_looked_at_again_before_it_is_called_damaged(
        self, used: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[bool] = []
        real = inspection._look

        def torn_at_first(path: Path, schema: Schema, *, immutable: bool) -> int:
            looks.append(immutable)
            if len(looks) == 1:
                os.utime(path, ns=(1, 1))  # somebody was writing
                raise CommandError(CommandCode.DB_ERROR, "torn")
            return real(path, schema, immutable=immutable)

        monkeypatch.setattr(inspection, "_look", torn_at_first)
        assert inspection.inspect(used.config, CONFIG) == CONFIG.version
        assert len(looks) == 2

    def test_looking_leaves_no_trace(self, used: Folder) -> None:
        before = contents(used)
        inspection.inspect(used.security, SECURITY)
        assert contents(used) == before


class TestMigrating:
    NEXT = msgspec.structs.replace(
        CONFIG, migrations=(*CONFIG.migrations, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)"))
    )
    BROKEN = msgspec.structs.replace(
        CONFIG, migrations=(*CONFIG.migrations, ("CREATE TABLE more (x)", "INSERT INTO nowhere VALUES (1)"))
    )

    def test_a_step_is_applied_and_a_copy_kept(self, used: Folder) -> None:
        connection = opening.open_connection(used, self.NEXT)
        assert connection.execute("SELECT x FROM more").fetchall() == [(1,)]
        assert connection.execute("SELECT value FROM settings").fetchall() == [("4000",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (CONFIG.version + 1,)
        connection.close()
        copy = used.root / f"config.db.before-v{CONFIG.version + 1}"
        assert copy.stat().st_mode & 0o777 == 0o600
        kept = sqlite3.connect(copy)
        assert kept.execute("PRAGMA user_version").fetchone() == (CONFIG.version,)
        assert kept.execute("SELECT value FROM settings").fetchall() == [("4000",)]
        kept.close()

    def test_a_step_that_fails_is_undone_whole(self, used: Folder) -> None:
        with pytest.raises(CommandError) as refused:
            opening.open_connection(used, self.BROKEN)
        assert refused.value.code is CommandCode.MIGRATION_FAILED
        connection = opening.open_connection(used, CONFIG)
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert names == CONFIG.tables
        assert connection.execute("PRAGMA user_version").fetchone() == (CONFIG.version,)
        connection.close()

    def test_a_copy_that_was_cut_off_is_no_copy(self, used: Folder) -> None:
        copy = used.root / f"config.db.before-v{CONFIG.version + 1}"
        partial = copy.with_name(copy.name + ".partial")
        partial.write_bytes(b"half")
        opening.open_connection(used, self.NEXT).close()
        assert not partial.exists()
        assert copy.stat().st_size > 4096

    def test_engines_of_the_first_version_have_no_authorities_of_their_own(self, folder: Folder) -> None:
        first = msgspec.structs.replace(CONFIG, migrations=CONFIG.migrations[:1])
        folder.root.mkdir(mode=0o700)
        for schema in (first, SECURITY):
            path = opening.path_of(folder, schema)
            path.touch(mode=0o600)
            opening.migrate(path, schema)
        connection = sqlite3.connect(folder.config)
        connection.execute("INSERT INTO upstreams VALUES ('a', 'openai', 'http://127.0.0.1:1', 1, NULL, NULL, 0, 7)")
        connection.commit()
        connection.close()

        async def main() -> list[engines.Upstream]:
            async with await open_config(folder) as config:
                before = await config.generation()
                async with config.transaction() as transaction:
                    await engines.register(
                        transaction, engines.Upstream("b", "openai", "https://h", None, None, None, None, 8, "PEM")
                    )
                assert await config.generation() > before
                return await engines.registered(config)

        old, new = asyncio.run(main())
        assert (old.id, old.connect_timeout, old.total_timeout, old.created_at, old.ca) == ("a", 1, 0, 7, None)
        assert (new.id, new.ca) == ("b", "PEM")


def test_no_room_for_the_files_beside_a_database_is_said_as_what_to_do(used: Folder) -> None:
    """SQLite calls it `disk I/O error`, which sounds like a broken disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        error = refusal(used)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.code is CommandCode.DB_ERROR
    assert "free space, and try again" in error.message


async def put_and_raise(config: Database) -> None:
    async with config.transaction() as transaction:
        await settings.put(transaction, "log.level", "debug")
        raise RuntimeError


async def put_too_much(config: Database) -> None:
    async with config.transaction() as transaction:
        await settings.put(transaction, "small", "1")
        await settings.put(transaction, "big", "x" * 100_000)


class TestTransactions:
    def test_all_or_nothing(self, used: Folder) -> None:
        async def main() -> dict[str, str]:
            async with await open_config(used) as config:
                with pytest.raises(RuntimeError):
                    await put_and_raise(config)
                return await settings.all_settings(config)

        assert asyncio.run(main()) == {"proxy.port": "4000"}

    def test_one_that_is_cancelled_leaves_the_database_usable(self, used: Folder) -> None:
        async def main() -> dict[str, str]:
            async with await open_config(used) as config:
                entered = asyncio.Event()

                async def hang() -> None:
                    async with config.transaction() as transaction:
                        await settings.put(transaction, "log.level", "debug")
                        entered.set()
                        await asyncio.Event().wait()

                task = asyncio.create_task(hang())
                await entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with config.transaction() as transaction:
                    await settings.put(transaction, "log.keep", "1")
                return await settings.all_settings(config)

        assert asyncio.run(main()) == {"proxy.port": "4000", "log.keep": "1"}

    def test_many_tasks_take_turns(self, used: Folder) -> None:
        async def add(config: Database, number: int) -> None:
            async with config.transaction() as transaction:
                count = len(await settings.all_settings(transaction))
                await settings.put(transaction, f"k{number}", str(count))

        async def main() -> dict[str, str]:
            async with await open_config(used) as config:
                await asyncio.gather(*(add(config, number) for number in range(20)))
                return await settings.all_settings(config)

        assert sorted(int(value) for key, value in asyncio.run(main()).items() if key[0] == "k") == list(range(1, 21))

    def test_a_lock_held_by_another_is_reported_and_nothing_lost(
        self, used: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "BUSY_SECONDS", 0.05)
        other = sqlite3.connect(used.config, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        async def put() -> None:
            async with await open_config(used) as config, config.transaction() as transaction:
                await settings.put(transaction, "log.keep", "1")

        with pytest.raises(CommandError, match="another program holds the database") as refused:
            asyncio.run(put())
        assert refused.value.code is CommandCode.DB_ERROR
        other.execute("ROLLBACK")
        other.close()
        asyncio.run(put())

    def test_a_lock_that_is_given_back_is_waited_for(self, used: Folder) -> None:
        other = sqlite3.connect(used.config, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.2, lambda: other.execute("ROLLBACK")).start()

        async def put() -> dict[str, str]:
            async with await open_config(used) as config:
                async with config.transaction() as transaction:
                    await settings.put(transaction, "log.keep", "1")
                return await settings.all_settings(config)

        assert asyncio.run(put())["log.keep"] == "1"
        other.close()

    def test_a_full_disk_is_reported_and_undone(self, used: Folder) -> None:
        async def main() -> dict[str, str]:
            async with await open_config(used) as config:
                ((pages,),) = await config.rows("PRAGMA page_count")
                await config.rows(f"PRAGMA max_page_count = {pages + 2}")
                with pytest.raises(CommandError, match="free disk space") as refused:
                    await put_too_much(config)
                assert refused.value.code is CommandCode.DB_ERROR
                return await settings.all_settings(config)

        assert asyncio.run(main()) == {"proxy.port": "4000"}


class TestGeneration:
    CHANGES = (
        ("config", "INSERT INTO settings VALUES ('x', '1')", 1),
        ("config", "UPDATE settings SET value = '2'", 1),
        ("config", "DELETE FROM settings", 1),
        ("config", "INSERT INTO upstreams (id, kind, url, created_at) VALUES ('a', 'b', 'c', 1)", 1),
        ("config", "INSERT INTO model_aliases VALUES ('a', 'b')", 1),
        (
            "config",
            "INSERT INTO engines_cache VALUES ('a', 'k', 'u', 's', 's', null, null, null, '[]', 1)",
            0,
        ),
        (
            "security",
            "INSERT INTO api_keys (id, slot, label, scopes, salt, digest, created_at) VALUES (1, 0, 'l', 's', 2, 3, 4)",
            1,
        ),
        ("security", "UPDATE api_keys SET revoked_at = 5", 1),
        ("security", "UPDATE api_keys SET scopes = 'chat'", 1),
        ("security", "UPDATE api_keys SET models = 'a*'", 1),
        ("security", "UPDATE api_keys SET engines = 'e'", 1),
        ("security", "UPDATE api_keys SET expires_at = 5", 1),
        ("security", "UPDATE api_keys SET replaced_by = 'b'", 0),
        ("security", "UPDATE api_keys SET last_used_at = 5", 0),
        ("security", "INSERT INTO engine_credentials VALUES ('a', 'b')", 1),
        ("security", "DELETE FROM engine_credentials", 1),
    )

    def test_every_change_that_matters_is_counted_whoever_made_it(self, folder: Folder) -> None:
        async def main() -> None:
            async with await open_config(folder) as config, await open_security(folder) as security:
                for name, statement, bumps in self.CHANGES:
                    watched = config if name == "config" else security
                    before = await watched.generation()
                    other = sqlite3.connect(watched.path, isolation_level=None)
                    other.execute(statement)
                    other.close()
                    assert await watched.generation() - before == bumps, statement

        asyncio.run(main())


class TestThreads:
    def test_none_is_left_and_no_connection_either(self, used: Folder) -> None:
        before = set(threading.enumerate())

        async def main() -> None:
            for _ in range(5):
                async with await open_config(used), await open_security(used):
                    pass
            opened = await open_config(used)
            await opened.close()
            await opened.close()

        asyncio.run(main())
        gc.collect()  # a connection that was not closed would warn, and a warning is an error here
        assert set(threading.enumerate()) <= before
        assert not +opening._open

    def test_an_opening_that_is_cancelled_closes_what_it_opened(
        self, used: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started, go_on = threading.Event(), threading.Event()
        real = opening.open_connection

        def slow(folder: Folder, schema: Schema) -> sqlite3.Connection:
            started.set()
            assert go_on.wait(10)
            return real(folder, schema)

        monkeypatch.setattr(database.opening, "open_connection", slow)

        async def main() -> None:
            task = asyncio.create_task(open_config(used))
            await asyncio.to_thread(started.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        gc.collect()
        assert not +opening._open

    def test_a_refused_opening_leaves_no_thread(self, used: Folder) -> None:
        before = set(threading.enumerate())
        used.security.write_bytes(b"garbage")
        refusal(used)
        deadline = time.monotonic() + 10
        while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        assert not left


WRITER = """
import asyncio, os, sys
from flm.store import settings
from flm.store.database import open_config, open_security
from flm.store.folder import locate

async def main():
    folder = locate(os.environ)
    async with await open_config(folder) as config:
        for number in range(100_000):
            async with config.transaction() as transaction:
                await settings.put(transaction, f"k{number % 50}", str(number))
                await settings.put(transaction, "last", str(number))
            print(number, flush=True)

asyncio.run(main())
"""


def test_kill_9_under_writes_loses_no_committed_row(folder: Folder) -> None:
    """Thirty times at a random moment: the database is whole, and what was said to be written is there."""
    dice = random.Random(9)
    environment = {"FLM_HOME": str(folder.root), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}

    async def look() -> tuple[list[str], int]:
        async with await open_config(folder) as config:
            return await config.damage(), int((await settings.all_settings(config)).get("last", -1))

    for round_ in range(30):
        with subprocess.Popen([sys.executable, "-c", WRITER], env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(dice.randint(0, 40) if round_ else 40)]
            os.kill(child.pid, signal.SIGKILL)
            said += child.stdout.readlines()
        lines = [int(line) for line in said if line.endswith(b"\n")]
        damage, last = asyncio.run(look())
        assert damage == []
        if lines:
            assert last in (lines[-1], lines[-1] + 1)  # one may have been committed and not yet said

"""From the databases into shared memory, and into force for the next request of every worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flm._native import Keyring, generate_key, hash_secret
from flm.errors import CommandCode, CommandError
from flm.policy import scopes
from flm.policy.document import Policy, RateLimit
from flm.policy.restrictions import Restriction
from flm.runtime.memory import SNAPSHOT_BYTES, Memory
from flm.runtime.publish import NOT_PUBLISHED, Publisher
from flm.services.notice import put_in_force
from flm.services.security import SecurityService
from flm.snapshot import Engine, Model, decode
from flm.store import keys, policy, settings
from flm.store.database import open_config, open_security
from flm.store.folder import Folder, locate
from flm.store.pepper import load_pepper
from tests.runtime.harness import get, prepare, run, running

SALT = b"s" * 16


class Bench:
    """A publisher with its memory, and a reader of it as a worker has it."""

    def __init__(self, root: Path) -> None:
        self.folder: Folder = locate({"FLM_HOME": str(root / "home")})
        self.publisher = Publisher(self.folder, {"proxy.workers": 3}, "instance")

    async def open(self) -> None:
        await self.publisher.open()
        self.folder.run.mkdir(mode=0o700, exist_ok=True)
        self.memory = Memory.create(self.folder.run, await self.publisher.key_count())
        self.pepper = load_pepper(self.folder, create=False)
        self.reader = Keyring.attach(self.memory.keyring_fd, self.pepper)

    async def add_key(self, slot: int, expires_at: int | None = None, **more: Any) -> tuple[str, str]:
        key, key_id = generate_key()
        digest = hash_secret(self.pepper, SALT, key)
        granted = more.pop("scopes", ("inference",))
        row = keys.StoredKey(key_id, slot, "label", granted, SALT, digest, 0, expires_at, **more)
        async with await open_security(self.folder) as database, database.transaction() as transaction:
            await keys.add(transaction, row)
        return key, key_id

    async def set_policy(self, text: bytes) -> None:
        async with await open_security(self.folder) as database, database.transaction() as transaction:
            await policy.put(transaction, text, 0)

    def published(self) -> Policy:
        return decode(self.memory.shared.snapshot()[1]).policy

    def valid(self, key: str, now: float = 1.0) -> bool:
        return self.reader.verify(key.encode(), int(now * 1000)) is not None


def test_keys_and_settings_are_in_force_after_a_refresh(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, key_id = await bench.add_key(0)
        assert not bench.valid(key)
        epoch = await bench.publisher.refresh(bench.memory)
        assert bench.memory.shared.epoch() == epoch == 1
        assert bench.valid(key)
        assert decode(bench.memory.shared.snapshot()[1]).settings.proxy_workers == 3, "flags win over the database"
        async with await open_security(bench.folder) as database, database.transaction() as transaction:
            await keys.revoke(transaction, key_id, 5)
        await bench.publisher.refresh(bench.memory)
        assert not bench.valid(key)
        await bench.publisher.close()

    run(main)


def test_changes_by_others_are_noticed_once(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.publisher.refresh(bench.memory)
        assert not await bench.publisher.changed()
        await bench.add_key(0)
        assert await bench.publisher.changed()
        await bench.publisher.refresh(bench.memory)
        assert not await bench.publisher.changed()
        async with await open_config(bench.folder) as database, database.transaction() as transaction:
            await settings.put(transaction, "log.level", "debug")
        assert await bench.publisher.changed()
        await bench.publisher.close()

    run(main)


def test_an_unreadable_setting_leaves_what_was_in_force(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, key_id = await bench.add_key(0)
        await bench.publisher.refresh(bench.memory)
        async with await open_config(bench.folder) as database, database.transaction() as transaction:
            await settings.put(transaction, "log.level", "shouting")
        async with await open_security(bench.folder) as database, database.transaction() as transaction:
            await keys.revoke(transaction, key_id, 5)
        assert bench.valid(key)
        with pytest.raises(CommandError, match=r"log\.level"):
            await bench.publisher.refresh(bench.memory)
        assert bench.memory.shared.epoch() == 1
        assert not bench.valid(key), "a revocation waits for nothing"
        assert bench.publisher.resolved.settings.log_level == "info"
        await bench.publisher.close()

    run(main)


def test_the_policy_is_part_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.publisher.refresh(bench.memory)
        assert bench.published() == Policy()
        await bench.set_policy(b'{"rate_limit":{"rpm":60,"burst":10}}')
        assert await bench.publisher.changed()
        await bench.publisher.refresh(bench.memory)
        assert bench.published() == Policy(rate_limit=RateLimit(60, 10))
        await bench.publisher.close()

    run(main)


@pytest.mark.parametrize("stored", [b"", b"{", b"null", b'{"ip_whitelist":null}', b'{"of":"a newer version"}'])
def test_nothing_starts_with_a_policy_that_cannot_be_read(tmp_path: Path, stored: bytes) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.set_policy(stored)
        with pytest.raises(CommandError, match=r"lets nobody in.*`flm security policy set") as refused:
            await bench.publisher.refresh(bench.memory)
        assert refused.value.code is CommandCode.POLICY_INVALID
        assert bench.memory.shared.epoch() == 0
        await bench.publisher.close()

    run(main)


def test_the_last_good_policy_stays_while_revocations_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = Policy(ip_whitelist=("192.0.2.1",))

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, key_id = await bench.add_key(0)
        await bench.set_policy(b'{"ip_whitelist":["192.0.2.1"]}')
        await bench.publisher.refresh(bench.memory)
        await bench.set_policy(b'{"ip_whitelist":')
        for _ in range(2):
            await bench.publisher.refresh(bench.memory)
            assert bench.published() == good
            assert "cannot be read" in (bench.publisher.last_error or "")
        assert len([each for each in caplog.records if "stays in force" in each.getMessage()]) == 1
        async with await open_security(bench.folder) as database, database.transaction() as transaction:
            await keys.revoke(transaction, key_id, 5)
        await bench.publisher.refresh(bench.memory)
        assert not bench.valid(key)
        await bench.set_policy(b"{}")
        await bench.publisher.refresh(bench.memory)
        assert (bench.published(), bench.publisher.last_error) == (Policy(), None)
        await bench.publisher.close()

    run(main)


async def delete_policy(folder: Folder) -> None:
    async with await open_security(folder) as database, database.transaction() as transaction:
        await transaction.change("DELETE FROM security_policies")


def test_a_deleted_policy_stays_in_force_until_one_is_set_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = Policy(ip_whitelist=("192.0.2.1",))

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.set_policy(b'{"ip_whitelist":["192.0.2.1"]}')
        await bench.publisher.refresh(bench.memory)
        await delete_policy(bench.folder)
        for _ in range(2):
            await bench.publisher.refresh(bench.memory)
            assert bench.published() == good
            assert "deleted it while it was in force" in (bench.publisher.last_error or "")
        assert len([each for each in caplog.records if "stays in force" in each.getMessage()]) == 1
        await SecurityService(bench.folder).set_policy(b"{}")
        await bench.publisher.refresh(bench.memory)
        assert (bench.published(), bench.publisher.last_error) == (Policy(), None)
        await delete_policy(bench.folder)  # the default is in force, with a row or without
        await bench.publisher.refresh(bench.memory)
        assert (bench.published(), bench.publisher.last_error) == (Policy(), None)
        await bench.publisher.close()

    run(main)


def test_a_running_proxy_keeps_a_deleted_policy_over_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        await store_policy(proxy.folder, b'{"allowed_hosts":["a.example"]}')
        async with running(tmp_path) as started:
            await delete_policy(started.folder)
            assert await put_in_force(started.folder)
            assert "deleted it" in ((await started.handle()).last_error or "")
            await started.service.restart()
            assert "deleted it" in ((await started.handle()).last_error or "")
            await SecurityService(started.folder).set_policy(b"{}")
            assert (await started.handle()).last_error is None

    run(main)


def test_an_expiry_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, _ = await bench.add_key(0, expires_at=100)
        await bench.publisher.refresh(bench.memory)
        assert bench.valid(key, 99)
        assert not bench.valid(key, 100)
        await bench.publisher.close()

    run(main)


def edit(folder: Folder, statement: str, *values: object) -> None:
    """As another program may."""
    with contextlib.closing(sqlite3.connect(folder.security)) as database, database:
        database.execute(statement, values)


@pytest.mark.parametrize("end", [0, -5, 1])
def test_an_end_that_has_passed_is_one_however_it_is_written(tmp_path: Path, end: int) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, _ = await bench.add_key(0, expires_at=end)
        late, _ = await bench.add_key(1, expires_at=1 << 62)
        await bench.publisher.refresh(bench.memory)
        assert not bench.valid(key)
        assert bench.valid(late, 1e9)
        await bench.publisher.close()

    run(main)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "../no id"),
        ("id", b"blob"),
        ("slot", -1),
        ("slot", 1 << 40),
        ("slot", "text"),
        ("label", b"\xff"),
        ("scopes", b"\xff"),
        ("models", b"m"),
        ("engines", b"e"),
        ("salt", b""),
        ("salt", "sixteen letters!"),
        ("digest", b"x" * 31),
        ("digest", b"x" * 33),
        ("created_at", "x"),
        ("expires_at", "never"),
        ("expires_at", 1.5),
        ("last_used_at", "x"),
        ("replaced_by", b"x"),
    ],
)
def test_a_damaged_row_is_no_valid_key_and_hinders_nothing_else(tmp_path: Path, column: str, value: object) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        service = SecurityService(bench.folder)
        key, key_id = await bench.add_key(0)
        leaving, leaving_id = await bench.add_key(1)
        await bench.publisher.refresh(bench.memory)
        edit(bench.folder, f"UPDATE api_keys SET {column} = ? WHERE id = ?", value, key_id)
        await bench.publisher.refresh(bench.memory)
        assert not bench.valid(key)
        assert bench.valid(leaving)
        assert str(bench.publisher.last_error).startswith("damaged rows of security.db are no valid keys: ")
        made = await service.create_key("made after it")
        await service.revoke_key(leaving_id)
        await bench.publisher.refresh(bench.memory)
        assert (bench.valid(made.key), bench.valid(leaving)) == (True, False)
        (damaged,) = [found for found in await service.list_keys() if found.label == "(damaged)"]
        with pytest.raises(CommandError, match="is damaged"):
            await service.rotate_key(damaged.id)
        edit(bench.folder, "UPDATE api_keys SET revoked_at = 5 WHERE label = 'label'")
        await bench.publisher.refresh(bench.memory)
        assert bench.publisher.last_error is None or column == "label"
        await bench.publisher.close()

    run(main)


@pytest.mark.parametrize("name", ["config.db", "security.db"])
@pytest.mark.parametrize("way", ["moved", "emptied"])
def test_a_database_that_is_gone_is_said_and_what_was_in_force_stays(tmp_path: Path, name: str, way: str) -> None:
    """SQLite would go on reading the file that it has open, and commands would write to another one."""

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, _ = await bench.add_key(0)
        await bench.publisher.refresh(bench.memory)
        path = bench.folder.root / name
        if way == "moved":
            path.rename(tmp_path / name)
        else:
            whole = path.read_bytes()
            path.write_bytes(b"")
        for ask in (bench.publisher.changed(), bench.publisher.refresh(bench.memory)):
            with pytest.raises(CommandError, match=f"{name} was moved away, deleted or emptied") as gone:
                await ask
            assert gone.value.code is CommandCode.DB_ERROR
        assert bench.valid(key)
        if way == "moved":
            (tmp_path / name).rename(path)
        else:
            path.write_bytes(whole)
        assert await bench.publisher.changed(), "so that the error of before is forgotten"
        await bench.publisher.refresh(bench.memory)
        assert not await bench.publisher.changed()
        await bench.publisher.close()

    run(main)


def test_a_database_that_was_replaced_is_the_one_that_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        service = SecurityService(bench.folder)
        key, key_id = await bench.add_key(0)
        await bench.publisher.refresh(bench.memory)
        copy = tmp_path / "copy.db"
        with contextlib.closing(sqlite3.connect(bench.folder.security)) as database:
            database.execute("VACUUM INTO ?", (str(copy),))
        copy.chmod(0o600)
        await bench.publisher.close()  # its write-ahead log with it, which would belong to no copy
        await bench.publisher.open()
        os.replace(copy, bench.folder.security)
        assert await bench.publisher.changed()
        assert "security.db was replaced by another program" in caplog.text
        await service.revoke_key(key_id)
        await bench.publisher.refresh(bench.memory)
        assert not bench.valid(key)
        assert not await bench.publisher.changed()
        await bench.publisher.close()

    run(main)


def test_scopes_are_in_the_keyring_and_restrictions_in_the_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        free, free_id = await bench.add_key(0, scopes=("chat", "timing", "of a newer FLM"))
        bound, bound_id = await bench.add_key(1, scopes=(), models=("a*", "b c"), engines=("e",))
        await bench.add_key(2, engines=("e",), revoked_at=5)
        await bench.publisher.refresh(bench.memory)
        assert bench.reader.verify(free.encode(), 1) == (free_id, 0, scopes.CHAT | scopes.TIMING)
        assert bench.reader.verify(bound.encode(), 1) == (bound_id, 1, scopes.RESTRICTED)
        published = decode(bench.memory.shared.snapshot()[1])
        assert published.restrictions == {bound_id: Restriction(("a*", "b c"), ("e",))}
        edit = "UPDATE api_keys SET scopes = 'models', models = '', engines = '' WHERE slot = 1"
        connection = sqlite3.connect(bench.folder.security)
        connection.execute(edit)
        connection.commit()
        connection.close()
        assert await bench.publisher.changed()
        await bench.publisher.refresh(bench.memory)
        assert bench.reader.verify(bound.encode(), 1) == (bound_id, 1, scopes.MODELS)
        assert decode(bench.memory.shared.snapshot()[1]).restrictions == {}
        await bench.publisher.close()

    run(main)


def test_a_chat_key_may_do_what_a_chat_needs_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.publisher.refresh(bench.memory)
        verified = bench.reader.verify((await bench.publisher.chat_key(bench.memory)).encode(), int(time.time() * 1000))
        assert verified is not None
        assert verified[2] == scopes.INFERENCE
        await bench.publisher.close()

    run(main)


def test_a_chat_key_lives_for_a_while_and_outlives_a_refresh_and_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.publisher.refresh(bench.memory)
        key = await bench.publisher.chat_key(bench.memory)
        now = time.time()
        await bench.publisher.refresh(bench.memory)
        assert bench.valid(key, now)
        assert not bench.valid(key, now + 3600)
        successor = Publisher(bench.folder, {}, "instance")
        await successor.open()
        successor.adopt(bench.memory.keyring, bench.publisher.chat_keys)
        await successor.refresh(bench.memory)
        assert bench.valid(key, now)
        await successor.close()
        await bench.publisher.close()

    run(main)


def test_a_successor_takes_out_keys_that_were_revoked_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        key, key_id = await bench.add_key(0)
        kept, _ = await bench.add_key(1)
        await bench.publisher.refresh(bench.memory)
        async with await open_security(bench.folder) as database, database.transaction() as transaction:
            await keys.revoke(transaction, key_id, 5)
        successor = Publisher(bench.folder, {}, "instance")
        await successor.open()
        former = bench.memory
        mapped = (former.shared_fd, former.keyring_fd, former.buckets_fd, former.rings_fd)
        memory = Memory.adopt(*(os.dup(descriptor) for descriptor in mapped))
        assert memory is not None
        successor.adopt(memory.keyring, {})
        await successor.refresh(memory)
        assert not bench.valid(key)
        assert bench.valid(kept)
        await successor.close()
        await bench.publisher.close()

    run(main)


def test_engines_are_part_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        engine = Engine("one", "openai", "http://127.0.0.1:1", "RunningHealthy")
        bench.publisher.engines = (engine,)
        assert bench.publisher.engines_in_force == (), "no request knows it yet, so status has nothing to say of it"
        await bench.publisher.refresh(bench.memory)
        assert decode(bench.memory.shared.snapshot()[1]).engines == (engine,) == bench.publisher.engines_in_force
        await bench.publisher.close()

    run(main)


BAD = {
    "number": Model("m", context_length=2**64),
    "name": Model("\ud800"),
    "size": Model("m", capabilities=("c" * (SNAPSHOT_BYTES // 2),)),
}


@pytest.mark.parametrize("fault", BAD)
def test_an_engine_that_cannot_be_published_loses_its_models_and_hinders_nobody(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    half = Model("h", capabilities=("c" * (SNAPSHOT_BYTES // 2 - 1_000),))
    good = Engine("good", "k", "http://127.0.0.1:1", "RunningHealthy", "1.0", models=(half,))
    bad = Engine("bad", "k", "http://127.0.0.1:2", "RunningHealthy", "2.0", models=(BAD[fault],))

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.open()
        bench.publisher.engines = (good, bad)
        for _ in range(2):
            await bench.publisher.refresh(bench.memory)
        shown, bare = decode(bench.memory.shared.snapshot()[1]).engines
        assert shown == good
        assert bare == msgspec.structs.replace(bad, models=(), version=None, last_error=NOT_PUBLISHED)
        assert (bench.publisher.last_error or "").startswith("bad: its model list cannot be published")
        assert len([each for each in caplog.records if "bad: its model list" in each.getMessage()]) == 1
        bench.publisher.engines = (good,)
        await bench.publisher.refresh(bench.memory)
        assert (bench.publisher.last_error, bench.memory.shared.epoch()) == (None, 3)
        await bench.publisher.close()

    run(main)


def test_files_of_another_layout_are_not_adopted(tmp_path: Path) -> None:
    opened = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("shared", "keyring", "buckets", "audit")]
    os.write(opened[0], b"another version" * 1000)
    assert Memory.adopt(*opened) is None
    for descriptor in opened:
        os.close(descriptor)


def test_a_running_proxy_takes_changes(tmp_path: Path) -> None:
    """Asked to, at once; not asked, within a second or so."""

    async def main() -> None:
        async with running(tmp_path, proxy__workers=2) as proxy:

            async def epoch() -> int:
                return int((await get(proxy.port)).partition(b'"epoch": ')[2].rstrip(b"}"))

            before = await epoch()
            assert await put_in_force(proxy.folder)
            assert {await epoch() for _ in range(10)} == {before + 1}
            async with await open_config(proxy.folder) as database, database.transaction() as transaction:
                await settings.put(transaction, "log.level", "debug")
            async with asyncio.timeout(5):
                while await epoch() == before + 1:
                    await asyncio.sleep(0.01)
            key = (await proxy.service.access()).key
            assert key.startswith("flm_")

    run(main)


def test_refresh_with_nothing_running(tmp_path: Path) -> None:
    async def main() -> None:

        assert not await put_in_force(prepare(tmp_path).folder)

    run(main)


def test_a_proxy_with_an_unreadable_policy_neither_starts_nor_restarts_nor_opens(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        await store_policy(proxy.folder, b"{")
        with pytest.raises(CommandError, match="`flm security policy set") as refused:
            await proxy.start()
        assert refused.value.code is CommandCode.POLICY_INVALID
        await store_policy(proxy.folder, b'{"allowed_hosts":["a.example"]}')
        async with running(tmp_path) as started:
            await store_policy(started.folder, b"{")
            assert await put_in_force(started.folder)
            handle = await started.handle()
            assert (handle.state, "cannot be read" in (handle.last_error or "")) == ("running", True)
            with pytest.raises(CommandError, match=r"goes on as it was.*cannot be read"):
                await started.service.restart()
            assert (await get(started.port)).startswith(b"HTTP/1.1 200")

    run(main)


async def store_policy(folder: Folder, text: bytes) -> None:
    async with await open_config(folder), await open_security(folder) as database, database.transaction() as change:
        await policy.put(change, text, 0)

"""Keys: made, listed, revoked; the secret is shown once and is nowhere in the folder."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3

import pytest

from flm._native import KEY_PATTERN, hash_secret, key_id
from flm.errors import CommandCode, CommandError
from flm.services import security
from flm.services.security import CreatedKey, SecurityService
from flm.store.database import open_security
from flm.store.folder import Folder
from flm.store.keys import StoredKey, all_keys

NOW = 1_795_000_000.5


def stored(folder: Folder) -> list[StoredKey]:
    async def read() -> list[StoredKey]:
        async with await open_security(folder) as database:
            return await all_keys(database)

    return asyncio.run(read())


def create(folder: Folder, label: str = "laptop") -> CreatedKey:
    return asyncio.run(SecurityService(folder, lambda: NOW).create_key(label))


def test_a_key_is_what_it_should_be(folder: Folder) -> None:
    created = create(folder)
    assert re.fullmatch(KEY_PATTERN, created.key)
    assert key_id(created.key.encode()) == created.id
    assert created.label == "laptop"
    assert created.scopes == ("inference", "passthrough")
    assert created.created_at == "2026-11-18T11:06:40Z"
    assert (created.expires_at, created.revoked_at, created.last_used_at) == (None, None, None)
    assert created.key not in repr(created)
    (row,) = stored(folder)
    assert row.digest == hash_secret(folder.pepper.read_bytes(), row.salt, created.key)
    assert len(row.salt) == 16


def test_the_plain_key_is_nowhere_in_the_folder(folder: Folder) -> None:
    """Not in a database nor in its write-ahead log, open or closed; not even its secret part alone."""

    async def main() -> None:
        service = SecurityService(folder)
        async with await open_security(folder):  # keeps the write-ahead log from being folded in
            keys = [(await service.create_key(f"k{number}")).key for number in range(5)]
            await service.revoke_key("k0")
            assert (folder.root / "security.db-wal").stat().st_size > 0
            search(keys)
        search(keys)

    def search(keys: list[str]) -> None:
        files = [path for path in folder.root.rglob("*") if path.is_file()]
        assert len(files) >= 3
        for path in files:
            content = path.read_bytes()
            for key in keys:
                secret = key.split("_")[2]
                for piece in (key, secret, secret[:20], secret[-20:]):
                    assert piece.encode() not in content, path

    asyncio.run(main())


def test_slots_are_dense_and_never_used_twice(folder: Folder) -> None:
    async def main() -> None:
        service = SecurityService(folder)
        for label in "abc":
            await service.create_key(label)
        await service.revoke_key("b")
        await service.create_key("d")

    asyncio.run(main())
    assert [(key.label, key.slot) for key in stored(folder)] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]


def test_many_made_at_once_are_all_there(folder: Folder) -> None:
    async def main() -> list[CreatedKey]:
        services = [SecurityService(folder) for _ in range(20)]
        return await asyncio.gather(*(service.create_key("same") for service in services))

    created = asyncio.run(main())
    rows = stored(folder)
    assert {key.id for key in created} == {row.id for row in rows}
    assert [row.slot for row in rows] == list(range(20))
    pepper = folder.pepper.read_bytes()
    by_id = {row.id: row for row in rows}
    for key in created:
        assert hash_secret(pepper, by_id[key.id].salt, key.key) == by_id[key.id].digest


@pytest.mark.parametrize(
    "label", ["", "   ", "x" * 65, "a\nb", "tab\there", "bell\x07", "\x1b[31mred", "\udcff", "zero\u200bwidth"]
)
def test_a_label_is_a_line_of_printable_characters(folder: Folder, label: str) -> None:
    with pytest.raises(CommandError) as refused:
        create(folder, label)
    assert refused.value.code is CommandCode.USAGE
    assert not folder.root.exists()


@pytest.mark.parametrize("label", ["x", "x" * 64, "Ünïcödé 鍵 🦊", "a b", "'; DROP TABLE api_keys; --"])
def test_labels_that_are_fine(folder: Folder, label: str) -> None:
    assert create(folder, f" {label} ").label == label
    assert [key.label for key in stored(folder)] == [label]


class TestRevoking:
    def test_by_id_and_by_label(self, folder: Folder) -> None:
        first, second = create(folder, "a"), create(folder, "b")
        service = SecurityService(folder, lambda: NOW)
        assert asyncio.run(service.revoke_key(first.id)).revoked_at is not None
        assert asyncio.run(service.revoke_key("b")).id == second.id
        assert [key.revoked_at for key in stored(folder)] == [int(NOW)] * 2

    def test_twice_keeps_the_first_time(self, folder: Folder) -> None:
        created = create(folder)
        asyncio.run(SecurityService(folder, lambda: NOW).revoke_key(created.id))
        again = asyncio.run(SecurityService(folder, lambda: NOW + 99).revoke_key("laptop"))
        assert again.revoked_at == "2026-11-18T11:06:40Z"

    def test_of_two_keys_with_one_label_the_living_one(self, folder: Folder) -> None:
        first, second = create(folder, "same"), create(folder, "same")
        service = SecurityService(folder)
        with pytest.raises(CommandError, match=f"{first.id}, {second.id}") as refused:
            asyncio.run(service.revoke_key("same"))
        assert refused.value.code is CommandCode.KEY_NOT_FOUND
        asyncio.run(service.revoke_key(first.id))
        assert asyncio.run(service.revoke_key("same")).id == second.id

    @pytest.mark.parametrize("name", ["", "nobody", "%", "' OR 1=1", "x" * 10_000])
    def test_an_unknown_one(self, folder: Folder, name: str) -> None:
        create(folder)
        with pytest.raises(CommandError) as refused:
            asyncio.run(SecurityService(folder).revoke_key(name))
        assert refused.value.code is CommandCode.KEY_NOT_FOUND
        assert len(refused.value.message) < 300
        assert stored(folder)[0].revoked_at is None


def test_the_default_key_is_made_once_ever(folder: Folder) -> None:
    service = SecurityService(folder)
    created = asyncio.run(service.ensure_default_key())
    assert created is not None
    assert created.label == "default"
    assert asyncio.run(service.ensure_default_key()) is None
    asyncio.run(service.revoke_key("default"))
    assert asyncio.run(service.ensure_default_key()) is None


def test_a_lost_pepper_is_not_made_anew(folder: Folder) -> None:
    create(folder)
    folder.pepper.unlink()
    with pytest.raises(CommandError, match="pepper is missing"):
        create(folder)
    assert not folder.pepper.exists()
    assert len(stored(folder)) == 1


def test_a_new_key_is_shown_even_if_the_proxy_does_not_take_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hung(_folder: Folder) -> bool:
        raise CommandError(CommandCode.IO_ERROR, "the proxy has not answered")

    monkeypatch.setattr(security, "put_in_force", hung)
    with caplog.at_level(logging.WARNING):
        assert create(folder).key
    assert "has not answered" in caplog.text
    with pytest.raises(CommandError, match="has not answered"):
        asyncio.run(SecurityService(folder).revoke_key("laptop"))
    assert stored(folder)[0].revoked_at is not None


def test_ten_thousand_keys_are_listed_in_order(folder: Folder) -> None:
    create(folder, "first")
    connection = sqlite3.connect(folder.security)
    connection.executemany(
        "INSERT INTO api_keys (id, slot, label, scopes, salt, digest, created_at) "
        "VALUES (?, ?, 'bulk', 'inference', zeroblob(16), zeroblob(32), 1)",
        [(f"id{number:010}", number) for number in range(1, 10_000)],
    )
    connection.commit()
    connection.close()
    listed = asyncio.run(SecurityService(folder).list_keys())
    assert len(listed) == 10_000
    assert listed[0].label == "first"
    assert create(folder, "next").label == "next"


class TestPolicy:
    def test_it_is_stored_whole_and_shown_again(self, folder: Folder) -> None:
        async def main() -> None:
            service = SecurityService(folder, lambda: NOW)
            before = await service.policy()
            after = await service.set_policy(b'{"rate_limit":{"rpm":60}}')
            assert after == before | {"rate_limit": {"rpm": 60, "burst": 60}}
            assert await service.policy() == after
            async with await open_security(folder) as database:
                ((text, at),) = await database.rows("SELECT document, updated_at FROM security_policies")
            assert (json.loads(text), at) == (after, int(NOW))

        asyncio.run(main())

    def test_one_that_cannot_be_read_is_never_shown_as_another(self, folder: Folder) -> None:
        async def main() -> None:
            service = SecurityService(folder)
            await service.set_policy(b'{"ip_whitelist":["::1"]}')
            async with await open_security(folder) as database, database.transaction() as transaction:
                await transaction.change("UPDATE security_policies SET document = '{}}'")
            with pytest.raises(CommandError, match=r"cannot be read.*`flm security policy set") as refused:
                await service.policy()
            assert refused.value.code is CommandCode.POLICY_INVALID
            await service.set_policy(b"{}")
            assert (await service.policy())["ip_whitelist"] == []

        asyncio.run(main())

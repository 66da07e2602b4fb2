"""The policy's row: kept as it stands, and every change of it noticed."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec
import pytest

from flm.errors import CommandCode, CommandError
from flm.policy.document import Policy
from flm.store import keys, opening, policy
from flm.store.database import Database, open_security
from flm.store.folder import Folder
from flm.store.schema import CONFIG, SECURITY


async def put(database: Database, text: bytes, at: int = 7) -> None:
    async with database.transaction() as transaction:
        await policy.put(transaction, text, at)


def edit(folder: Folder, sql: str) -> None:
    connection = sqlite3.connect(folder.security)
    connection.execute(sql)
    connection.commit()
    connection.close()


def test_none_then_one_then_another(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            assert await policy.document(database) is None
            await put(database, b'{"a":1}')
            await put(database, '{"ä":2}'.encode(), 8)
            assert await policy.document(database) == '{"ä":2}'.encode()
            assert await database.rows("SELECT id, updated_at FROM security_policies") == [("default", 8)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("value", "stands"), [("x'fffe00'", b"\xff\xfe\x00"), ("''", b""), ("7", b"7"), ("'{'", b"{"), ("x''", b"")]
)
def test_whatever_stands_there_comes_back(folder: Folder, value: str, stands: bytes) -> None:
    async def main() -> bytes | None:
        async with await open_security(folder) as database:
            await put(database, b"{}")
        edit(folder, f"UPDATE security_policies SET document = {value}")
        async with await open_security(folder) as database:
            return await policy.document(database)

    assert asyncio.run(main()) == stands


def test_what_holds(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            assert await policy.current(database) == Policy()
            await put(database, b'{"ip_whitelist":["::1"]}')
            assert await policy.current(database) == Policy(ip_whitelist=("::1",))
            await put(database, b'{"ip_whitelist":"::1"}')
            with pytest.raises(CommandError, match=r"cannot be read.*ip_whitelist: .*`flm security policy set") as no:
                await policy.current(database)
            assert no.value.code is CommandCode.POLICY_INVALID

    asyncio.run(main())


def test_every_change_is_noticed_whoever_makes_it(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            seen = [await database.generation()]
            await put(database, b"{}")
            seen.append(await database.generation())
            await put(database, b"{ }")
            seen.append(await database.generation())
            edit(folder, "UPDATE security_policies SET document = 'x'")
            seen.append(await database.generation())
            edit(folder, "DELETE FROM security_policies")
            seen.append(await database.generation())
            assert len(set(seen)) == 5
            assert seen == sorted(seen)

    asyncio.run(main())


def test_there_is_no_second_policy(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder):
            pass

    asyncio.run(main())
    with pytest.raises(sqlite3.IntegrityError):
        edit(folder, "INSERT INTO security_policies VALUES ('other', '{}', 1)")


def test_a_database_of_the_first_version_gets_the_table(folder: Folder) -> None:
    first = msgspec.structs.replace(SECURITY, migrations=SECURITY.migrations[:1])
    folder.root.mkdir(mode=0o700)
    for schema in (CONFIG, first):
        path = opening.path_of(folder, schema)
        path.touch(mode=0o600)
        opening.migrate(path, schema)
    edit(
        folder,
        "INSERT INTO api_keys "
        "VALUES ('idOfTwelve12', 0, 'label', 'inference', zeroblob(16), zeroblob(32), 1, NULL, NULL, NULL)",
    )

    async def main() -> None:
        async with await open_security(folder) as database:
            assert await policy.document(database) is None
            await put(database, b"{}")
            assert [key.label for key in await keys.all_keys(database)] == ["label"]

    asyncio.run(main())

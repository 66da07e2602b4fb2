"""`check` says what is wrong and where, and touches nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.check import Checked, CheckService
from flm.services.security import SecurityService
from flm.store import audit, audit_file
from flm.store.folder import Folder, locate


def check(folder: Folder) -> dict[str, Checked]:
    return {each.name: each for each in asyncio.run(CheckService(folder).check())}


def test_a_folder_that_was_never_used_stays_so(folder: Folder) -> None:
    found = check(folder)
    assert [each.exists for each in found.values()] == [False] * 4
    assert all(each.well for each in found.values())
    assert not folder.root.exists()


def test_a_folder_that_cannot_be_looked_into_is_not_called_well(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(CommandError, match=r"home/config\.db cannot be looked at: Not a directory") as refused:
        asyncio.run(CheckService(locate({"FLM_HOME": str(tmp_path / "home")})).check())
    assert refused.value.code is CommandCode.IO_ERROR


def test_all_is_well(folder: Folder) -> None:
    asyncio.run(SecurityService(folder).create_key("a"))
    found = check(folder)
    assert list(found) == ["config.db", "security.db", "pepper", "audit.db"]
    assert all(each.well for each in found.values())
    assert [name for name, each in found.items() if each.exists and each.bytes] == [
        "config.db",
        "security.db",
        "pepper",
    ]
    assert found["security.db"].generation == 2


def test_a_folder_without_keys_needs_no_pepper(folder: Folder) -> None:
    asyncio.run(SecurityService(folder).list_keys())
    assert check(folder)["pepper"] == Checked("pepper", str(folder.pepper), False, ())


def test_a_policy_that_cannot_be_read(folder: Folder) -> None:
    asyncio.run(SecurityService(folder).set_policy(b"{}"))
    assert check(folder)["security.db"].well
    connection = sqlite3.connect(folder.security, isolation_level=None)
    connection.execute("UPDATE security_policies SET document = 'null'")
    connection.close()
    found = check(folder)["security.db"]
    assert "`flm security policy set" in found.problems[0]
    assert found.generation == 3


@pytest.mark.parametrize("name", ["config.db", "security.db", "pepper"])
def test_what_is_missing_is_named(folder: Folder, name: str) -> None:
    asyncio.run(SecurityService(folder).create_key("a"))
    (folder.root / name).unlink()
    assert name in check(folder)[name].problems[0]


def test_an_index_that_does_not_match_its_table(folder: Folder) -> None:
    """Damage that a quick check does not see."""
    asyncio.run(SecurityService(folder).create_key("a"))
    connection = sqlite3.connect(folder.security, isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_master SET sql = replace(sql, 'slot INTEGER', 'slot TEXT') WHERE name = 'api_keys'"
    )
    connection.execute(
        "INSERT INTO sqlite_master SELECT 'index', 'ghost', 'api_keys', 9999, 'CREATE INDEX ghost ON api_keys(label)'"
    )
    connection.close()
    assert not check(folder)["security.db"].well


def test_rows_that_break_a_rule_are_found(folder: Folder) -> None:
    asyncio.run(SecurityService(folder).create_key("a"))
    connection = sqlite3.connect(folder.security, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("UPDATE generation SET one = 2")
    connection.close()
    assert not check(folder)["security.db"].well


def test_a_damaged_audit_log(folder: Folder) -> None:
    asyncio.run(SecurityService(folder).create_key("a"))

    async def begin() -> None:
        async with await audit_file.open_for_writing(folder) as database:
            await audit.add(
                database,
                [(n, n, f"r{n}", "::1", None, "GET", "/", None, None, 200, 1.0, None, 0, 0, None) for n in range(500)],
            )

    asyncio.run(begin())
    found = check(folder)["audit.db"]
    assert (found.exists, found.problems) == (True, ())
    with open(folder.audit, "r+b") as file:
        file.seek(3 * 4096 + 7)
        file.write(b"\xff" * 2000)
    before = folder.audit.read_bytes()
    assert "audit.db is not used: it is damaged" in check(folder)["audit.db"].problems[0]
    assert "keys and settings" not in check(folder)["audit.db"].problems[0]
    assert folder.audit.read_bytes() == before

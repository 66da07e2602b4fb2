"""What is known of certificates: it comes back as it was written, and nobody is woken by it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm.errors import CommandError
from flm.store import certificates, keys, opening
from flm.store.certificates import CertificateRow
from flm.store.database import Database, open_security
from flm.store.folder import Folder
from flm.store.schema import CONFIG, SECURITY

FULL = CertificateRow(
    id="acme",
    directory="https://ca.example/directory",
    domains=("flm.example.com", "www.example.com"),
    issuer="An Authority",
    serial="0a1b",
    fingerprint="ab" * 32,
    not_before=1_795_000_000.0,
    not_after=1_802_776_000.5,
    trusted=True,
    renew_after=1_800_000_000.25,
    window_start=1_799_000_000.0,
    window_end=1_799_500_000.0,
    window_next_at=1_795_021_600.0,
    last_attempt_at=1_795_000_001.5,
    last_error="the CA said: no",
    failures=3,
    next_attempt_at=1_795_003_600.0,
    wait_asked=True,
    next_on_staging=True,
    updated_at=1_795_000_002.0,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def write(database: Database, row: CertificateRow) -> None:
    async with database.transaction() as transaction:
        await certificates.write(transaction, row)


def test_nothing_is_known_at_first(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            assert await certificates.read(database, "acme") is None
            assert await certificates.read_all(database) == []

    run(main())


@pytest.mark.parametrize("row", [FULL, CertificateRow("acme")], ids=["full", "empty"])
def test_it_comes_back_as_it_was_also_after_a_restart(folder: Folder, row: CertificateRow) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            await write(database, row)
        async with await open_security(folder) as database:
            found = await certificates.read(database, "acme")
            assert found == row
            assert found is not None
            assert {type(value) for value in (found.trusted, found.wait_asked, found.next_on_staging)} == {bool}

    run(main())


def test_each_field_has_its_own_column() -> None:
    """So that two of one type that were swapped would be seen above."""
    values = [value for value in msgspec.structs.astuple(FULL) if not isinstance(value, bool)]
    assert len(set(values)) == len(values)


@given(
    row=st.builds(
        CertificateRow,
        st.just("acme"),
        directory=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        domains=st.lists(st.from_regex(r"[a-z0-9.:-]{1,20}", fullmatch=True)).map(tuple),
        not_before=st.none() | st.floats(-1e12, 1e12),
        last_error=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        failures=st.integers(0, 2**62),
        wait_asked=st.booleans(),
        next_on_staging=st.booleans(),
    )
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_it_is(folder: Folder, row: CertificateRow) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            await write(database, row)
            assert await certificates.read(database, "acme") == row

    run(main())


def test_an_error_that_names_a_file_of_any_name_can_be_kept(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            await write(database, CertificateRow("acme", last_error="no such file: /\udcff"))
            found = await certificates.read(database, "acme")
            assert found is not None
            assert found.last_error == "no such file: /\\udcff"

    run(main())


def test_a_later_one_takes_its_place_and_others_stay(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            other = msgspec.structs.replace(FULL, id="another")
            await write(database, other)
            await write(database, FULL)
            later = CertificateRow("acme", failures=1)
            await write(database, later)
            assert await certificates.read_all(database) == [later, other]

    run(main())


def test_no_request_needs_it_so_nobody_is_told(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            before = await database.generation()
            await write(database, FULL)
            await write(database, CertificateRow("acme"))
            assert await database.generation() == before

    run(main())


def test_one_that_is_not_whole_is_not_written_at_all(folder: Folder) -> None:
    async def main() -> None:
        async with await open_security(folder) as database:
            await write(database, FULL)
            with pytest.raises(CommandError):
                await write(database, msgspec.structs.replace(FULL, directory=None))
            assert await certificates.read(database, "acme") == FULL

    run(main())


def test_a_database_of_the_third_version_gets_the_table_and_keeps_its_keys(folder: Folder) -> None:
    third = msgspec.structs.replace(SECURITY, migrations=SECURITY.migrations[:3])
    folder.root.mkdir(mode=0o700)
    for schema in (CONFIG, third):
        path = opening.path_of(folder, schema)
        path.touch(mode=0o600)
        opening.migrate(path, schema)
    connection = sqlite3.connect(folder.security)
    connection.execute(
        "INSERT INTO api_keys (id, slot, label, scopes, salt, digest, created_at) "
        "VALUES ('idOfTwelve12', 0, 'label', 'inference', zeroblob(16), zeroblob(32), 1)"
    )
    connection.commit()
    connection.close()

    async def main() -> None:
        async with await open_security(folder) as database:
            await write(database, FULL)
            assert await certificates.read_all(database) == [FULL]
            assert [key.label for key in await keys.all_keys(database)] == ["label"]

    run(main())

"""What the audit log says, chosen in every way a person can choose, and followed while it grows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.audit import AuditEntry, AuditService, Query
from flm.services.security import SecurityService
from flm.store import audit, audit_file
from flm.store.database import Database
from flm.store.folder import Folder

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z


def test_a_key_that_nobody_knows_is_told_and_not_repeated(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        created = await SecurityService(folder).create_key("alice")
        for name in ("alice", created.id):
            assert await AuditService(folder).entries(Query(key=name)) == []
        assert not caplog.records
        assert await AuditService(folder).entries(Query(key=created.key)) == []
        (record,) = caplog.records
        assert "no key here has the id or label" in record.getMessage()
        assert created.key not in caplog.text

    asyncio.run(main())


def row(number: int, **fields: Any) -> tuple[Any, ...]:
    given = {
        "timestamp": int((NOW - 1000 + number) * 1000),
        "request_id": f"r{number}",
        "client_ip": "192.0.2.1",
        "api_key_id": None,
        "method": "POST",
        "endpoint": "/v1/chat/completions",
        "engine_id": "e",
        "model": "flm://e/small",
        "status": 200,
        "latency_ms": 12.5,
        "ttft_ms": None,
        "bytes_in": 3,
        "bytes_out": 4,
        "error_type": None,
        **fields,
    }
    return (number, *given.values())


async def store(folder: Folder, *rows: tuple[Any, ...]) -> None:
    async with await audit_file.open_for_writing(folder) as database:
        await audit.add(database, rows)


def chosen(folder: Folder, limit: int = 100, **query: Any) -> list[str]:
    entries = asyncio.run(AuditService(folder, lambda: NOW).entries(Query(**query), limit))
    return [entry.request_id for entry in entries]


def test_a_folder_without_a_log_has_no_rows_and_stays_so(folder: Folder) -> None:
    assert chosen(folder) == []
    assert not folder.root.exists()


def test_a_row_as_people_see_it(folder: Folder) -> None:
    asyncio.run(store(folder, row(0, timestamp=int(NOW * 1000) + 7, api_key_id="k", error_type="x", ttft_ms=1.5)))
    (entry,) = asyncio.run(AuditService(folder).entries(Query()))
    assert entry == AuditEntry(
        "2026-11-18T11:06:40.007Z", "r0", "192.0.2.1", "k", "POST", "/v1/chat/completions", "e", "flm://e/small",
        200, 12.5, 1.5, 3, 4, "x",
    )  # fmt: skip


def test_each_way_to_choose(folder: Folder) -> None:
    key = asyncio.run(SecurityService(folder).create_key("laptop"))
    rows = [
        row(0, status=404, error_type="not_found"),
        row(1, api_key_id=key.id),
        row(2, engine_id="other"),
        row(3, model="flm://e/large"),
        row(4, error_type="client_disconnected"),
        row(5, status=503, error_type="overloaded"),
        row(6, model="flm://e/sm[a]ll?"),
    ]
    asyncio.run(store(folder, *rows))
    assert chosen(folder) == ["r0", "r1", "r2", "r3", "r4", "r5", "r6"]
    assert chosen(folder, limit=2) == ["r5", "r6"]
    assert chosen(folder, key=key.id) == chosen(folder, key="laptop") == ["r1"]
    assert chosen(folder, key="nobody") == []
    assert chosen(folder, engine="other") == ["r2"]
    assert chosen(folder, model="flm://e/large") == chosen(folder, model="*/large") == ["r3"]
    assert chosen(folder, model="*[a]ll?") == ["r6"]
    assert chosen(folder, model="flm://e/smal?") == []
    assert chosen(folder, status="404") == ["r0"]
    assert chosen(folder, status="4xx") == ["r0"]
    assert chosen(folder, status="5XX", errors=True) == ["r5"]
    assert chosen(folder, errors=True) == ["r0", "r4", "r5"]
    assert chosen(folder, since="996s") == ["r4", "r5", "r6"]
    assert chosen(folder, until="2026-11-18T10:50:02Z") == ["r0", "r1"]
    assert chosen(folder, since="2026-11-18T10:50:01Z", until="2026-11-18T11:50:02.001+01:00") == ["r1", "r2"]
    assert chosen(folder, since="1d", limit=1) == ["r6"]


def test_rows_are_listed_by_their_times_and_then_as_they_were_stored(folder: Folder) -> None:
    times = [30, 10, 20, 10, 30]
    asyncio.run(store(folder, *(row(number, timestamp=time) for number, time in enumerate(times))))
    assert chosen(folder) == ["r1", "r3", "r2", "r0", "r4"]
    assert chosen(folder, limit=3) == ["r2", "r0", "r4"]


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        ({"since": "yesterday"}, 1),
        ({"until": "12"}, 1),
        ({"since": "999999999w"}, 1),
        ({"status": "600"}, 1),
        ({"status": "4x"}, 1),
        ({}, 0),
        ({}, 100_001),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Folder, query: dict[str, str], limit: int) -> None:
    if query.get("since") == "999999999w":
        assert chosen(folder, limit, **query) == []
        return
    with pytest.raises(CommandError) as refused:
        chosen(folder, limit, **query)
    assert refused.value.code is CommandCode.USAGE


def test_a_log_that_cannot_be_read_is_an_error_and_stays_as_it_is(folder: Folder) -> None:
    asyncio.run(store(folder, row(0)))
    folder.audit.write_bytes(b"?" * 5000)
    with pytest.raises(CommandError, match="a proxy that writes to it sets it aside") as refused:
        chosen(folder)
    assert refused.value.code is CommandCode.DB_ERROR
    assert folder.audit.read_bytes() == b"?" * 5000


def test_following_a_log_that_is_made_taken_away_and_made_anew(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.services.audit.FOLLOW_SECONDS", 0.01)

    async def main() -> None:
        looked, open_for_reading = asyncio.Event(), audit_file.open_for_reading

        async def watched(where: Folder) -> Database | None:
            found = await open_for_reading(where)
            looked.set()
            return found

        monkeypatch.setattr(audit_file, "open_for_reading", watched)
        follower = AuditService(folder).follow(Query(engine="e"))
        coming = asyncio.ensure_future(anext(follower))
        await looked.wait()  # there is no log yet
        await store(folder, row(0), row(1, engine_id="other"), row(2))
        seen = [(await coming).request_id, (await anext(follower)).request_id]
        coming = asyncio.ensure_future(anext(follower))
        await audit_file.set_aside(folder, "a test")
        await store(folder, row(3))
        seen.append((await coming).request_id)
        await store(folder, row(4))
        seen.append((await anext(follower)).request_id)
        await follower.aclose()  # type: ignore[attr-defined]
        assert seen == ["r0", "r2", "r3", "r4"]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_following_outlasts_a_file_that_is_about_to_be_set_aside(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flm.services.audit.FOLLOW_SECONDS", 0.01)

    async def main() -> None:
        refused, open_for_reading = asyncio.Event(), audit_file.open_for_reading

        async def watched(where: Folder) -> Database | None:
            try:
                return await open_for_reading(where)
            except CommandError:
                refused.set()
                raise

        monkeypatch.setattr(audit_file, "open_for_reading", watched)
        await store(folder, row(0))
        follower = AuditService(folder).follow(Query(), 1)
        assert (await anext(follower)).request_id == "r0"
        coming = asyncio.ensure_future(anext(follower))
        folder.audit.unlink()
        folder.audit.symlink_to("nowhere")
        await refused.wait()
        await audit_file.set_aside(folder, "a test")
        await store(folder, row(1))
        assert (await coming).request_id == "r1"
        monkeypatch.setattr("flm.services.audit.ANEW_SECONDS", 0.0)
        folder.audit.unlink()
        folder.audit.symlink_to("nowhere")
        with pytest.raises(CommandError, match="symbolic link"):
            await anext(follower)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_following_begins_with_the_last_rows_that_were_asked_for(folder: Folder) -> None:
    async def main() -> None:
        await store(folder, row(0), row(1), row(2))
        follower = AuditService(folder).follow(Query(), 2)
        assert [(await anext(follower)).request_id for _ in range(2)] == ["r1", "r2"]
        await store(folder, row(3))
        assert (await anext(follower)).request_id == "r3"
        await follower.aclose()  # type: ignore[attr-defined]
        with pytest.raises(CommandError, match="has no end"):
            await anext(AuditService(folder).follow(Query(until="1d")))

    asyncio.run(asyncio.wait_for(main(), 20))

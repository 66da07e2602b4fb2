"""Rows from the rings to `audit.db`: none is lost or stored twice whoever dies when, and trouble with the database
keeps no request waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flm._native import Rings
from flm.config import Settings
from flm.disk.private import secure_folder
from flm.proxy.audit import Auditor, AuditRow
from flm.proxy.recorder import Record
from flm.runtime import audit as trails
from flm.runtime.audit import AuditTrail
from flm.runtime.boot import WORKER_MODULE
from flm.services import EngineService, SecurityService
from flm.services.audit import AuditEntry, AuditService, Query
from flm.store import audit, audit_file
from flm.store.audit import Filter
from flm.store.database import Database, Row
from flm.store.folder import Folder, locate
from tests.proxy.harness import CHAT, chat
from tests.proxy.test_inference import DONE, GOOD_WHOLE, JSON, SSE, event
from tests.runtime.harness import Running, alive, get, run, running, until
from tests.support.engine import answer, chunked

RING_BYTES = 1 << 15


class Bench:
    """A data folder, rings in its memory, and what writes into them."""

    def __init__(self, root: Path) -> None:
        self.folder: Folder = locate({"FLM_HOME": str(root / "home")})
        secure_folder(self.folder.root)
        descriptor = os.open(root / "rings", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.rings = Rings.create(descriptor, 4, RING_BYTES)
        os.close(descriptor)
        for cell in range(4):
            self.rings.prepare(cell)
        self.settings: Settings | None = Settings()
        self.auditors = [Auditor(self._push(cell)) for cell in range(4)]
        self.written = 0

    def _push(self, cell: int) -> Callable[[bytes], bool]:
        return lambda row: self.rings.push(cell, row)

    def trail(self) -> AuditTrail:
        return AuditTrail(self.folder, self.rings, lambda: self.settings, lambda: (0, 1))

    def write(self, cell: int = 0, times: int = 1, **fields: Any) -> int:
        """Write rows `r0`, `r1` … as a worker does; the serial number of the last."""
        serial = 0
        for _ in range(times):
            record = Record(request_id=f"r{self.written}", client_ip="::1", method="GET", endpoint="/", status=200)
            serial = self.auditors[cell].write(msgspec.structs.replace(record, **fields), 1.5)
            self.written += 1
        return serial

    async def stored(self) -> list[str]:
        """The request ids of all rows, in their order."""
        database = await audit_file.open_for_reading(self.folder)
        assert database is not None
        async with database:
            return [row[2] for row in await audit.newest(database, Filter(), 1_000_000)]

    def aside(self) -> list[str]:
        return sorted(path.name for path in self.folder.root.glob("audit.db.damaged-*"))


def names(*numbers: int) -> list[str]:
    return [f"r{number}" for number in numbers]


def test_the_database_has_the_columns_of_a_row() -> None:
    assert AuditRow.__struct_fields__ == ("serial", *audit.COLUMNS)


def test_rows_of_every_ring_are_stored_dead_workers_included(tmp_path: Path) -> None:
    async def main() -> None:
        bench, trail = Bench(tmp_path), None
        bench.write(0)
        bench.write(3)  # of a worker that is no more
        trail = bench.trail()
        assert trail.line().since is None
        await trail.drain()
        assert bench.rings.waiting() == []
        bench.write(0)
        await trail.end()
        assert await bench.stored() == names(0, 1, 2)
        since = trail.line().since
        assert since is not None
        assert since.endswith("Z")
        assert trail.line().rows_dropped == 0

    run(main)


def test_what_a_killed_supervisor_had_stored_and_not_released_is_there_once(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.write(times=3)
        killed = bench.trail()
        database = await killed._open()
        rows = [trails._readable(row) for row in bench.rings.take(0, 9)[0]]
        await audit.add(database, [row for row in rows if row is not None])
        await database.close()  # the kill: stored, and the rings untouched
        bench.write()
        heir = bench.trail()
        await heir.end()
        assert await bench.stored() == names(0, 1, 2, 3)

    run(main)


def test_what_became_known_later_takes_the_rows_place_and_the_same_request_id_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        bench, trail = Bench(tmp_path), None
        trail = bench.trail()
        serial = bench.write(request_id="same")
        await trail.drain()
        bench.write(request_id="same")
        late = Record(request_id="same", client_ip="::1", method="GET", endpoint="/", status=200, error_type="late")
        bench.auditors[0].write(late, 2.5, serial=serial)
        await trail.end()
        database = await audit_file.open_for_reading(bench.folder)
        assert database is not None
        async with database:
            rows = sorted(await audit.newest(database, Filter(), 9))  # by their ids, which are first
        assert [(row[10], row[14]) for row in rows] == [(2.5, "late"), (1.5, None)]

    run(main)


def test_rows_no_sense_can_be_made_of_are_counted(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.rings.push(0, b"\xc1 no row")
        bench.write()
        bench.rings.push(0, msgspec.msgpack.encode(["shorter"]))
        trail = bench.trail()
        await trail.end()
        assert await bench.stored() == names(0)
        assert trail.line().rows_dropped == 2

    run(main)


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"x" * 4096, None])
def test_a_damaged_database_is_set_aside_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        if content is None:
            bench.folder.audit.mkdir()
        else:
            bench.folder.audit.write_bytes(content)
            bench.folder.audit.chmod(0o600)
        bench.write()
        trail = bench.trail()
        await trail.end()
        assert await bench.stored() == names(0)
        (aside,) = bench.aside()
        assert content is None or (bench.folder.root / aside).read_bytes() == content
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "a new audit log is begun" in caplog.text
        assert trail.line().last_error is None

    run(main)


def test_a_database_that_goes_bad_in_use_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        bench.write(times=100)
        await trail.end()
        size = bench.folder.audit.stat().st_size
        await trail.drain()
        with open(bench.folder.audit, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        bench.write(times=50)
        await trail.drain()
        assert trail.line().last_error is not None  # seen, and set aside
        await trail.drain()
        assert trail.line().last_error is None
        await trail.end()
        assert await bench.stored() == names(*range(100, 150))
        assert len([name for name in bench.aside() if name.count("-") == 1]) == 1
        assert "is written again; 0 rows were dropped" in caplog.text

    caplog.set_level(logging.INFO)
    run(main)


def test_damaged_files_do_not_pile_up(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        for number in range(5):
            bench.folder.audit.write_bytes(b"%d" % number * 4096)
            bench.folder.audit.chmod(0o600)
            await bench.trail().end()
        kept = sorted((bench.folder.root / name).read_bytes()[:1] for name in bench.aside())
        assert kept == [b"2", b"3", b"4"]

    run(main)


@pytest.mark.parametrize("linked", [False, True])
def test_a_database_that_is_taken_away_is_begun_anew(tmp_path: Path, linked: bool) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        bench.write()
        await trail.drain()
        bench.folder.audit.rename(tmp_path / "taken")
        if linked:  # readers would not follow it
            bench.folder.audit.symlink_to(tmp_path / "taken")
        bench.write()
        await trail.end()
        assert await bench.stored() == names(1)

    run(main)


@pytest.mark.parametrize("harm", ["emptied", "overwritten", "log removed", "log replaced"])
@pytest.mark.parametrize("moment", ["between two turns", "while rows are stored"])
def test_a_database_that_is_emptied_or_loses_its_log_in_use_costs_no_row_of_a_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str, moment: str
) -> None:
    def do_harm(bench: Bench) -> None:
        if harm == "emptied":
            os.truncate(bench.folder.audit, 0)
            return
        if harm == "overwritten":
            with open(bench.folder.audit, "r+b") as file:
                file.write(b"garbage" * 1000)
            return
        os.unlink(f"{bench.folder.audit}-wal")
        if harm == "log replaced":
            os.close(os.open(f"{bench.folder.audit}-wal", os.O_CREAT | os.O_EXCL, 0o600))

    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        bench.write(times=3)
        await trail.drain()
        bench.write(times=2)
        add = audit.add
        if moment == "between two turns":
            do_harm(bench)
        else:

            async def harmed(database: Database, rows: Sequence[Row]) -> None:
                monkeypatch.setattr(audit, "add", add)
                do_harm(bench)
                await add(database, rows)

            monkeypatch.setattr(audit, "add", harmed)
        await trail.drain()
        error = trail.line().last_error
        assert error is not None
        assert error.endswith("by another program")
        assert bench.rings.waiting() == [0]  # the rows are still there
        assert f"a new audit log is begun: {error}" in caplog.text
        await trail.drain()
        assert trail.line().last_error is None
        bench.write()
        await trail.end()
        assert await bench.stored() == names(3, 4, 5)
        assert trail.line().rows_dropped == 0
        assert len([name for name in bench.aside() if name.count("-") == 1]) == 1

    run(main)


def test_a_full_disk_costs_rows_only_when_the_ring_is_full_and_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        await trail.drain()
        database = await trail._open()
        ((pages,),) = await database.rows("PRAGMA page_count")
        await database.rows(f"PRAGMA max_page_count = {pages}")
        room = 0
        while bench.rings.dropped() == 0:
            room = bench.written
            bench.write()
        for _ in range(2):
            await trail.drain()
        assert "full" in (trail.line().last_error or "")
        assert trail.line().rows_dropped == 1
        assert caplog.text.count("its rows wait") == caplog.text.count("1 rows of the audit log were dropped") == 1
        await database.rows(f"PRAGMA max_page_count = {2**30}")
        await trail.drain()
        bench.write()
        await trail.end()
        assert trail.line() == msgspec.structs.replace(trail.line(), rows_dropped=1, last_error=None)
        assert await bench.stored() == names(*range(room), bench.written - 1)
        assert bench.aside() == []

    run(main)


def test_the_end_does_not_wait_for_a_database_that_somebody_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trails, "LAST_SECONDS", 0.05)

    async def main() -> None:
        bench = Bench(tmp_path)
        trail = bench.trail()
        await trail.drain()
        bench.write()
        holder = await audit_file.open_for_writing(bench.folder)
        async with holder.transaction():
            ending = asyncio.create_task(trail.end())
            await asyncio.wait([ending], timeout=0.5)
        await ending
        await holder.close()
        heir = bench.trail()
        await heir.drain()
        await heir.end()
        assert await bench.stored() == names(0)

    run(main)


def test_old_rows_go(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        now = int(time.time() * 1000)
        day = 86_400_000
        ages = {"older": 30 * day + 60_000, "younger": 30 * day - 60_000, "new": 0}
        async with await audit_file.open_for_writing(bench.folder) as database:
            rows = [
                (number, now - age, name, "::1", None, "GET", "/", None, None, 200, 1.0, None, 0, 0, None)
                for number, (name, age) in enumerate(ages.items())
            ]
            await audit.add(database, rows)
        bench.settings = None  # not known yet: nothing is deleted by a default
        trail = bench.trail()
        await trail.drain()
        assert await bench.stored() == ["older", "younger", "new"]
        bench.settings = Settings(audit_retention_days=30)
        await trail.end()
        assert await bench.stored() == ["younger", "new"]
        assert (trail.line().since or "") > time.strftime("%Y-%m-%d", time.gmtime(time.time() - 31 * 86_400))

    run(main)


def test_the_oldest_rows_go_when_there_is_too_much_and_the_disk_gets_their_room(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.settings = Settings(audit_max_bytes=1 << 30)
        trail = bench.trail()
        for _ in range(40):
            bench.write(times=100)
            await trail.drain()
        bench.settings = Settings(audit_max_bytes=200_000)
        assert len(await bench.stored()) == 4000
        for _ in range(30):
            bench.write()
            await trail.drain()
        await trail.end()
        assert 100_000 < bench.folder.audit.stat().st_size <= 200_000
        stored = await bench.stored()
        assert stored == names(*range(bench.written - len(stored), bench.written))
        assert len(stored) > 100

    run(main)


def test_refusals_before_the_key_push_out_no_row_of_a_key_while_there_are_others(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.settings = Settings(audit_max_bytes=200_000)
        trail = bench.trail()
        bench.write(times=100, api_key_id="k")
        await trail.drain()
        for _ in range(40):
            bench.write(times=100, status=403, error_type="ip_not_allowed")
            await trail.drain()
        for _ in range(30):
            bench.write()
            await trail.drain()
        await trail.end()
        assert bench.folder.audit.stat().st_size <= 200_000
        stored = await bench.stored()
        assert stored[:100] == names(*range(100))
        refused = stored[100:]
        assert refused == names(*range(bench.written - len(refused), bench.written))
        assert 0 < len(refused) < 2000

    run(main)


def test_rows_of_keys_go_oldest_first_when_there_are_no_others(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        async with await audit_file.open_for_writing(bench.folder) as database:
            rows = [
                (number, number, f"r{number}", "::1", key, "GET", "/", None, None, 200, 1.0, None, 0, 0, None)
                for number, key in enumerate(["k"] * 10 + [None] * 3 + ["k"] * 7)
            ]
            await audit.add(database, rows)
            gone = [await audit.shrink(database, 1) for _ in range(3)]
            left = [row[2] for row in await audit.newest(database, Filter(), 99)]
        assert gone == [2, 1, 2]  # a tenth, rounded up: two without a key, the last of them, and then two of the key
        assert left == names(*range(2, 10), *range(13, 20))

    run(main)


# --- a whole proxy -------------------------------------------------------------------------------------------------

EVENTS = 5


class FixedEngine:
    """An engine that answers every chat with the same short stream, or the same answer; it outlives workers."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                writer.write(self._answer(head, b'"stream":true' in body))
        writer.close()

    def _answer(self, head: bytes, stream: bool) -> bytes:
        if b"/chat/" not in head:
            return answer(200, b'{"object":"list","data":[{"id":"m","object":"model"}]}', JSON)
        return (
            chunked(200, [*(event("x") for _ in range(EVENTS)), event("y", "stop"), DONE], SSE)
            if stream
            else GOOD_WHOLE
        )


async def read_to_the_end(port: int, key: str, stream: bool) -> str:
    """One chat, as a client that stops reading with the answer's last byte; its request id."""
    body = json.dumps(chat("flm://e/m", stream=stream)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    )
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    got = await reader.readuntil(b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200"), got
    if stream:
        await reader.readuntil(DONE)
    else:
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", got)[1]))  # type: ignore[index]
    writer.close()
    return re.search(rb"x-request-id: (\S+)", got)[1].decode()  # type: ignore[index]


@contextlib.asynccontextmanager
async def real(root: Path, workers: int = 1) -> AsyncIterator[tuple[Running, str]]:
    """A proxy as people run it, with an engine, and a key of it."""
    fixed = FixedEngine()
    url = await fixed.start()
    try:
        async with running(root, WORKER_MODULE, proxy__workers=workers) as proxy:
            key = (await SecurityService(proxy.folder).create_key("k")).key
            await EngineService(proxy.folder).add("e", "openai", url)
            yield proxy, key
    finally:
        await fixed.close()


async def rows_of(proxy: Running) -> dict[str, AuditEntry]:
    entries = await AuditService(proxy.folder).entries(Query(), 100_000)
    found = {entry.request_id: entry for entry in entries}
    assert len(found) == len(entries)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_killed_as_soon_as_the_answer_is_read_has_left_its_row(tmp_path: Path, stream: bool) -> None:
    async def main() -> None:
        async with real(tmp_path) as (proxy, key):
            asked = []
            for _ in range(4):
                (pid,) = (await proxy.handle()).worker_pids
                asked.append(await read_to_the_end(proxy.port, key, stream))
                os.kill(pid, signal.SIGKILL)
                while (await proxy.handle()).worker_pids in ([], [pid]):
                    await asyncio.sleep(0.01)
            found = await rows_of(proxy)
            assert set(asked) <= set(found)
            assert {found[name].status for name in asked} == {200}
            assert all(found[name].bytes_out > 0 and found[name].model == "flm://e/m" for name in asked)

    run(main)


def test_rows_survive_reload_restart_stop_and_the_death_of_everything(tmp_path: Path) -> None:
    async def main() -> None:
        async with real(tmp_path, workers=2) as (proxy, key):
            asked = [await read_to_the_end(proxy.port, key, stream=True)]
            await proxy.service.reload()
            asked.append(await read_to_the_end(proxy.port, key, stream=False))
            await proxy.service.restart()
            asked.append(await read_to_the_end(proxy.port, key, stream=True))
            assert set(asked) <= set(await rows_of(proxy))
            handle = await proxy.handle()
            asked += [await read_to_the_end(proxy.port, key, stream=False) for _ in range(20)]
            for pid in (handle.pid, *handle.worker_pids):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not any(map(alive, (handle.pid, *handle.worker_pids))), 5)
            await proxy.start()
            asked.append(await read_to_the_end(proxy.port, key, stream=True))
            status = await proxy.handle()
            assert status.audit is not None
            await proxy.service.stop()
            found = await rows_of(proxy)
            assert set(asked) <= set(found)
            assert status.audit.rows_dropped == 0
            assert status.audit.since == min(entry.timestamp for entry in found.values())
            await proxy.start()
            assert set(await rows_of(proxy)) >= set(asked)

    run(main)


def test_a_damaged_audit_log_stops_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with real(tmp_path) as (proxy, key):
            await proxy.service.stop()
            proxy.folder.audit.write_bytes(b"\0" * 8192)
            await proxy.start()
            asked = await read_to_the_end(proxy.port, key, stream=False)
            assert asked in await rows_of(proxy)
            assert "a new audit log is begun" in proxy.log()
            assert len(list(proxy.folder.root.glob("audit.db.damaged-*"))) == 1

    run(main)


def test_nothing_of_keys_prompts_and_answers_is_in_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with real(tmp_path) as (proxy, key):
            await read_to_the_end(proxy.port, key, stream=True)
            await get(proxy.port, f"/{key}")
            await get(proxy.port, f"/v1/models/{key}?{key}")
            assert await rows_of(proxy)
            await proxy.service.stop(now=True)
            data = b"".join(path.read_bytes() for path in proxy.folder.root.glob("audit.db*"))
            with open(proxy.folder.run / "audit", "rb") as rings:
                data += rings.read(4 << 20)  # the rest was never written
            assert b"/v1/chat/completions" in data
            for secret in (key, key.split("_")[2], "hello", '"x"'):
                assert secret.encode() not in data

    run(main)

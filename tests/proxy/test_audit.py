"""The row of a request is written before the server gets the last byte of its answer, and tells what became of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flm.proxy.audit import Auditor, AuditRow, decode
from flm.proxy.recorder import Record
from tests.proxy.harness import CHAT, Client, World, chat, engine, run
from tests.proxy.test_inference import DONE, GOOD_STREAM, GOOD_WHOLE, STREAM_HEAD, event
from tests.support.engine import ScriptedEngine, answer, chunked, fin, receive, say, stall


class Witness(Client):
    """A client that notes how many rows there were when each piece was handed to the server."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.rows_at: list[int] = []

    async def _take(self, message: dict[str, Any]) -> None:
        self.rows_at.append(len(self.world.rows))
        await super()._take(message)

    def rows_when_it_had(self, end: bytes) -> int:
        """Rows that there were when the piece was handed over with which the body ends so."""
        had = b""
        for message, rows in zip(self.messages[1:], self.rows_at[1:], strict=True):
            had += message["body"]
            if had.endswith(end):
                return rows
        raise AssertionError(had)


def asked(script: list[Any], path: str, body: Any = None, method: str = "POST") -> tuple[Witness, World]:
    result: list[Any] = []

    async def test() -> None:
        async with ScriptedEngine(script) as scripted:
            world = World(engine(scripted.url))
            client = Witness(world, method, path, body=body)
            await client.begin()
            await world.app.aclose()
            result.extend((client, world))

    run(test())
    return result[0], result[1]


def test_a_whole_answer() -> None:
    client, world = asked([receive(), say(GOOD_WHOLE), stall()], CHAT, chat("flm://e/m"))
    assert client.rows_at == [0, 1]
    (row,), line = world.rows, world.lines[-1]
    for name in ("request_id", "client_ip", "api_key_id", "method", "endpoint", "engine_id", "model", "status"):
        assert getattr(row, name) == line[name], name
    for name in ("ttft_ms", "bytes_in", "bytes_out", "error_type"):
        assert getattr(row, name) == line[name], name
    assert row.bytes_out == len(client.body) > 0
    assert 0 < row.latency_ms <= line["latency_ms"]


def test_a_stream_that_its_reader_takes_for_complete_at_done() -> None:
    client, world = asked([receive(), say(GOOD_STREAM), stall()], CHAT, chat("flm://e/m", stream=True))
    assert client.rows_at[0] == 0
    assert client.rows_when_it_had(DONE) == 1
    (row,) = world.rows
    assert (row.bytes_out, row.ttft_ms) == (len(client.body), world.lines[-1]["ttft_ms"])


def test_a_stream_that_breaks_off_says_why_before_the_last_event() -> None:
    client, world = asked([receive(), say(STREAM_HEAD + event("a")), fin()], CHAT, chat("flm://e/m", stream=True))
    assert client.rows_at[-1] == 1
    (row,) = world.rows
    assert (row.status, row.error_type) == (200, world.lines[-1]["error_type"])
    assert row.error_type is not None


@pytest.mark.parametrize("length", [0, 5, 200_000])
def test_a_passed_answer_of_known_length_is_complete_with_its_last_byte(length: int) -> None:
    client, world = asked([receive(), say(answer(200, b"x" * length)), stall()], "/engine/e/x", method="GET")
    assert client.rows_when_it_had(b"x" * length) == 1
    assert world.rows[0].bytes_out == length
    assert client.rows_at[0] == 0


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (chunked(200, [b"a", b"b"]), "GET"),
        (b"HTTP/1.1 204 OK\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "HEAD"),
        (chunked(200, [b"data: 1\n\n", DONE]), "GET"),
    ],
)
def test_a_passed_answer_ends_with_its_row_written(data: bytes, method: str) -> None:
    client, world = asked([receive(), say(data), stall()], "/engine/e/x", method=method)
    assert client.rows_at[-1] == len(world.rows) == 1
    if DONE in data:
        assert client.rows_when_it_had(DONE) == 1
    if b"204" in data:
        assert client.rows_at == [0, 1, 1]


def test_an_error_of_flms_own() -> None:
    client, world = asked([], "/v1/nothing", method="GET")
    assert client.rows_at == [0, 1]
    assert (world.rows[0].status, world.rows[0].error_type) == (404, "not_found")


def test_a_client_that_leaves_before_the_answer_has_a_row() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), stall()]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m"))
            task = client.start()
            await client.until(lambda seen: seen.receives > 1)
            client.leave()
            await task
            await world.app.aclose()
        assert [(row.status, row.error_type) for row in world.rows] == [(499, "client_disconnected")]

    run(test())


def test_what_is_known_only_after_the_last_byte_takes_the_rows_place() -> None:
    async def test() -> None:
        world = World(proxy_send_timeout_seconds=0.1)
        client = world.client()
        client.reading.clear()
        await client.begin()
        first, second = world.rows
        assert first.serial == second.serial
        assert (first.error_type, second.error_type) == (None, "client_too_slow")
        assert first.request_id == second.request_id

    run(test())


def row_of(**fields: Any) -> AuditRow:
    rows: list[bytes] = []
    Auditor(rows.append).write(Record(**fields), 1.0)
    return decode(rows[0])


def test_no_key_and_no_long_words_of_a_caller_get_into_a_row() -> None:
    async def test() -> None:
        world = World()
        for path in (f"/v1/models/{world.key}", f"/{world.key}", "/" + "a" * 5000):
            await world.ask("GET", path)
        await world.ask("X" * 5000)
        assert len(world.rows) == 4
        text = json.dumps([row.endpoint for row in world.rows] + [row.model for row in world.rows])
        assert world.key not in text
        assert world.key.split("_")[2][:20] not in text
        assert all(len(row.endpoint) < 210 and len(row.method) <= 32 for row in world.rows)

    run(test())
    secret = "flm_AbCdEfGhIjKl_" + "s" * 49
    row = row_of(model=secret + "x" * 900, error_type=secret)
    assert secret not in f"{row}"
    assert len(row.model or "") < 210


def test_serial_numbers_are_no_others() -> None:
    rows: list[bytes] = []
    for _ in range(3):
        auditor = Auditor(rows.append)
        for _ in range(3):
            auditor.write(Record(), 1.0)
    serials = [decode(row).serial for row in rows]
    assert len(set(serials)) == 9
    assert all(0 < serial < 1 << 63 for serial in serials)


def test_a_row_without_room_changes_nothing_for_the_request() -> None:
    async def test() -> None:
        world = World()
        world.app._auditor = Auditor(lambda _row: False)
        assert (await world.ask()).status == 200

    run(test())

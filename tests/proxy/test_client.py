"""Clients that leave, dawdle or do not read; a worker that ends streams; and what the log says of all of them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from flm._native import ERRORS, IN_FLIGHT, REQUESTS
from flm.errors import ErrorKind, RequestError
from tests.proxy.harness import CHAT, Client, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, fin, flood, mark, receive, say, serve, stall

JSON = b"content-type: application/json"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
STOPPING = RequestError(ErrorKind.ENGINE_UNAVAILABLE, "FLM is stopping")
CANCEL_SECONDS = 0.25  # from the client's close to the engine's
PROMPT = "the-prompt-canary"


async def cancelled(world: World, client: Client, scripted: ScriptedEngine, *, started: bool) -> None:
    """Let the client leave, and see the engine's connection close and everything tidied up."""
    task = client.task
    assert task is not None
    peer = await scripted.peer(0)
    left = time.monotonic()
    client.leave()
    await asyncio.wait_for(peer.closed.wait(), 5)
    assert peer.closed_at - left < CANCEL_SECONDS
    await task
    assert not client.complete
    assert world.app.in_flight == 0
    assert world.shared.counter(0, IN_FLIGHT) == 0
    line = world.lines[-1]
    assert line["error_type"] == "client_disconnected"
    assert line["status"] == (200 if started else 499)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_stops_the_engine(stream: bool) -> None:
    async def test() -> None:
        asked = asyncio.Event()
        async with ScriptedEngine([receive(), mark(asked), stall()]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=stream))
            client.start()
            await asked.wait()
            await cancelled(world, client, scripted, started=False)
            assert client.messages == []

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_after_the_engines_head_stops_the_engine(stream: bool) -> None:
    async def test() -> None:
        asked = asyncio.Event()
        head = STREAM_HEAD if stream else b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"
        async with ScriptedEngine([receive(), say(head), mark(asked), stall()]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=stream))
            client.start()
            await asked.wait()
            await cancelled(world, client, scripted, started=False)

    run(test())


def test_a_client_that_leaves_in_the_middle_of_a_stream_stops_the_engine() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), say(STREAM_HEAD + EVENT), stall()]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            client.start()
            await client.until(lambda c: len(c.events) == 1)
            await cancelled(world, client, scripted, started=True)
            assert b"error" not in client.body

    run(test())


def test_a_client_that_leaves_while_it_does_not_read_stops_the_engine() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), say(STREAM_HEAD), flood(EVENT, 1 << 30)]) as scripted:
            world = World(engine(scripted.url))
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            client.reading.clear()
            client.start()
            await client.until(lambda c: bool(c.messages))
            client.leave()
            assert client.task is not None
            await client.task
            assert (world.lines[-1]["error_type"], world.lines[-1]["level"]) == ("client_disconnected", "info")
            assert scripted.peers[0].sent < 16 << 20  # the kernel's buffers, not FLM's memory

    run(test())


def test_a_client_that_does_not_read_is_cut_after_the_send_timeout() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), say(STREAM_HEAD), flood(EVENT, 1 << 30)]) as scripted:
            world = World(engine(scripted.url), proxy_send_timeout_seconds=0.1)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            client.reading.clear()
            client.start()
            assert client.task is not None
            await client.task
            assert world.cuts == [("127.0.0.1", "50000")]
            assert world.lines[-1]["error_type"] == "client_too_slow"
            assert not client.complete

    run(test())


def test_a_client_of_whom_the_kernel_says_so_is_too_slow_and_no_other() -> None:
    """All that there is for it is in buffers already: nothing waits for it here."""

    async def test() -> None:
        async with ScriptedEngine(*[[receive(), say(STREAM_HEAD + EVENT), stall()]] * 2) as scripted:
            world = World(engine(scripted.url))
            body = chat("flm://e/m", stream=True)
            slow = world.client("POST", CHAT, body=body)
            other = world.client("POST", CHAT, body=body, address="127.0.0.2")
            for client in (slow, other):
                client.start()
                await client.until(lambda c: len(c.events) == 1)
            world.app.cut_slow(("127.0.0.1", "50000"))
            slow.leave()  # as the server says, the moment a connection is cut
            assert slow.task is not None
            await slow.task
            assert set(world.cuts) == {("127.0.0.1", "50000")}
            assert [row.error_type for row in world.rows] == ["client_too_slow"]
            assert world.app.in_flight == 1
            world.app.cut_slow(("127.0.0.1", "50002"))  # its answer is all in the server's buffers
            assert world.cuts[-1] == ("127.0.0.1", "50002")
            other.leave()
            assert other.task is not None
            await other.task
            assert world.lines[-1]["error_type"] == "client_disconnected"

    run(test())


def test_a_client_that_reads_too_slowly_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.proxy.respond.PACE_SECONDS", 0.05)

    async def test() -> None:
        async with ScriptedEngine([receive(), say(STREAM_HEAD), flood(EVENT, 1 << 30)]) as scripted:
            world = World(engine(scripted.url), proxy_min_bytes_per_second=1 << 20)
            client = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            take = client._take

            async def slowly(message: dict[str, Any]) -> None:
                await take(message)
                await asyncio.sleep(0.2)  # this client's reading speed: 64 KiB in 0.2 s is less than 1 MiB/s

            client._take = slowly  # type: ignore[method-assign]
            client.start()
            assert client.task is not None
            await client.task
            assert world.lines[-1]["error_type"] == "client_too_slow"
            assert world.cuts

    run(test())


def test_a_worker_that_ends_its_streams_says_so_once_in_each() -> None:
    async def test() -> None:
        async with ScriptedEngine([receive(), say(STREAM_HEAD + EVENT), stall()], [receive(), stall()]) as scripted:
            world = World(engine(scripted.url))
            streaming = world.client("POST", CHAT, body=chat("flm://e/m", stream=True))
            streaming.start()
            await streaming.until(lambda c: len(c.events) == 1)
            waiting = world.client("POST", CHAT, body=chat("flm://e/m"))
            waiting.start()
            await (await scripted.peer(1)).stalled.wait()
            uploading = world.client("POST", CHAT, hold=True, headers={"content-length": "100"})
            uploading.start()
            await uploading.until(lambda c: c.receives == 1)
            assert world.app.in_flight == 3
            world.app.drain()
            world.app.abort_streams(STOPPING)
            world.app.abort_streams(STOPPING)  # a second time changes nothing
            for client in (streaming, waiting, uploading):
                assert client.task is not None
                await client.task
                assert client.complete
            assert len(streaming.events) == 2
            assert json.loads(streaming.events[1][6:])["error"]["code"] == "engine_unavailable"
            assert (waiting.status, waiting.code) == (503, "engine_unavailable")
            assert waiting.headers[b"connection"] == uploading.headers[b"connection"] == b"close"
            assert uploading.status == 503
            assert world.app.in_flight == 0

    run(test())


# --- bodies --------------------------------------------------------------------------------------------------------


def upload(pieces: list[bytes | None], headers: dict[str, str], **settings: Any) -> tuple[Client, World]:
    """A body in pieces that never ends; None: the client leaves. The engine must not be dialled."""
    result: list[Any] = []

    async def test() -> None:
        async with ScriptedEngine([fin()]) as scripted:
            world = World(engine(scripted.url), **settings)
            client = world.client("POST", CHAT, hold=True, headers={"content-type": "application/json", **headers})
            for piece in pieces:
                if piece is None:
                    client.leave()
                else:
                    client.feed(piece, more=True)
            await client.start()
            assert scripted.peers == []
            result.extend((client, world))

    run(test())
    return result[0], result[1]


CHUNKED = {"transfer-encoding": "chunked"}
BODY = json.dumps(chat("flm://e/m")).encode()


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([BODY, None], {"content-length": str(len(BODY) + 1)}),
        ([BODY, None], CHUNKED),  # whole JSON, but the last chunk never came
        ([BODY[:10], None], CHUNKED),
        ([None], {"content-length": "10"}),
    ],
)
def test_a_cut_body_is_400_and_never_reaches_an_engine(pieces: list[bytes | None], headers: dict[str, str]) -> None:
    client, world = upload(pieces, headers)
    assert (client.status, client.code) == (400, "invalid_request")
    assert client.headers[b"connection"] == b"close"
    assert world.lines[-1]["error_type"] == "invalid_request"


def test_a_body_announced_too_large_is_refused_unread() -> None:
    client, _ = upload([], {"content-length": "33554433"})
    assert (client.status, client.code, client.receives) == (413, "payload_too_large", 0)
    assert client.headers[b"connection"] == b"close"


def test_a_body_that_grows_too_large_is_refused_within_a_frame() -> None:
    pieces: list[bytes | None] = [b"x" * 1000] * 50
    client, _ = upload(pieces, CHUNKED, proxy_max_body_bytes=10_000)
    assert (client.status, client.code, client.receives) == (413, "payload_too_large", 11)
    assert client.headers[b"connection"] == b"close"


def test_a_body_of_just_the_limit_passes() -> None:
    async def test() -> None:
        answer_ = answer(200, b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[]}', JSON)
        async with ScriptedEngine([serve({CHAT: answer_})]) as scripted:
            world = World(engine(scripted.url), proxy_max_body_bytes=2000)
            body = json.dumps(chat("flm://e/m")).encode()
            body = body[:-1] + b" " * (2000 - len(body)) + b"}"
            assert (await world.ask("POST", CHAT, body)).status == 200
            assert (await world.ask("POST", CHAT, body + b" ")).status == 413
            client = world.client("POST", CHAT, hold=True, headers=CHUNKED)
            for index in range(0, 2000, 100):
                client.feed(body[index : index + 100], more=True)
            client.feed(b"", more=False)
            await client.start()
            assert client.status == 200
            assert world.lines[-1]["bytes_in"] == 2000
            await world.app.aclose()

    run(test())


@pytest.mark.parametrize("settings", [
    {"proxy_body_idle_timeout_seconds": 0.1}, {"proxy_body_total_timeout_seconds": 0.1},
])  # fmt: skip
def test_a_body_that_does_not_come_is_408(settings: dict[str, float]) -> None:
    client, _ = upload([b"{"], {"content-length": "100"}, **settings)
    assert (client.status, client.code) == (408, "request_timeout")
    assert client.headers[b"connection"] == b"close"


def test_behind_the_answer_to_an_unfinished_body_the_connection_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes it, but not always; a finished one is its own affair."""
    monkeypatch.setattr("flm.proxy.app.LINGER_SECONDS", 0.0)

    async def test() -> None:
        world = World(proxy_body_idle_timeout_seconds=0.1)
        finished = world.client("POST", CHAT, body=b"not json")
        await finished.start()
        assert finished.status == 400
        await asyncio.sleep(0)
        assert world.cuts == []
        cut = asyncio.get_running_loop().create_future()
        world.app._context.cut = cut.set_result
        unfinished = world.client("POST", CHAT, hold=True, headers={"content-length": "100"})
        unfinished.feed(b"{", more=True)
        await unfinished.start()
        assert unfinished.status == 408
        assert await asyncio.wait_for(cut, 5) == ("127.0.0.1", "50000")

    run(test())


def test_the_total_time_is_not_prolonged_by_dribbling() -> None:
    async def test() -> None:
        world = World(proxy_body_total_timeout_seconds=0.2)
        client = world.client("POST", CHAT, hold=True, headers={"content-length": "100000"})
        task = client.start()
        while not task.done():
            client.feed(b" ", more=True)
            await asyncio.wait([task], timeout=0.01)
        assert client.status == 408

    run(test())


def test_a_body_that_comes_too_slowly_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flm.proxy.body.PACE_SECONDS", 0.05)

    async def test() -> None:
        world = World(proxy_min_bytes_per_second=1 << 20)
        client = world.client("POST", CHAT, hold=True, headers={"content-length": "100000"})
        task = client.start()
        while not task.done():
            client.feed(b" ", more=True)
            await asyncio.wait([task], timeout=0.01)
        assert (client.status, client.code) == (408, "request_timeout")

    run(test())


@pytest.mark.parametrize(
    ("headers", "receives", "closes"),
    [
        ({"content-length": "100"}, 1, False),
        ({"content-length": "65537"}, 0, True),
        ({"content-length": "100", "expect": "100-continue"}, 0, True),
        ({}, 0, False),
    ],
)
def test_what_becomes_of_a_body_behind_a_401(headers: dict[str, str], receives: int, closes: bool) -> None:
    async def test() -> None:
        client = World().client("POST", CHAT, key=None, hold=True, headers=headers)
        client.feed(b"x" * 100, more=False)
        await client.start()
        assert client.status == 401
        assert client.receives == receives
        assert (client.headers.get(b"connection") == b"close") == closes

    run(test())


def test_the_401_does_not_wait_for_the_body() -> None:
    async def test() -> None:
        client = World().client("POST", CHAT, key=None, hold=True, headers={"content-length": "100"})
        task = client.start()
        await client.until(lambda c: c.complete and c.receives == 1)
        assert not task.done()
        client.feed(b"x" * 100, more=False)
        await task

    run(test())


def test_an_endless_unread_body_is_not_drained_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its connection left to whoever sends a byte now and then, and needs no key for it: the server does not
    always close it."""
    monkeypatch.setattr("flm.proxy.body.DRAIN_SECONDS", 0.01)
    monkeypatch.setattr("flm.proxy.app.LINGER_SECONDS", 0.0)

    async def test() -> None:
        for pieces, receives in ((0, 1), (100, 64)):
            world = World()
            cut = asyncio.get_running_loop().create_future()
            world.app._context.cut = cut.set_result
            client = world.client("POST", CHAT, key=None, hold=True, headers=CHUNKED)
            for _ in range(pieces):
                client.feed(b"x" * 1024, more=True)
            await client.start()
            assert (client.status, client.receives) == (401, receives)
            assert await asyncio.wait_for(cut, 5) == ("127.0.0.1", "50000")

    run(test())


# --- the log ---------------------------------------------------------------------------------------------------------

FIELDS = {
    "timestamp", "level", "request_id", "client_ip", "api_key_id", "method", "endpoint", "engine_id", "model",
    "status", "latency_ms", "ttft_ms", "bytes_in", "bytes_out", "error_type",
}  # fmt: skip


def test_one_line_per_request_with_every_field_and_no_secret() -> None:
    async def test() -> None:
        reply = b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[],"a":"the-answer-canary"}'
        async with ScriptedEngine([serve({CHAT: answer(200, reply, JSON)})]) as scripted:
            world = World(engine(scripted.url, credential="the-credential-canary"))
            stranger = World().key
            body = chat("flm://e/m", text=PROMPT)
            await world.ask("POST", CHAT, body)
            await world.ask("POST", CHAT, body, key=stranger)
            await world.ask("POST", CHAT, body, key=world.key[:-1])
            await world.ask("POST", CHAT, b"{" + PROMPT.encode())
            await world.ask("POST", CHAT, chat(world.key))  # a key where the model should be
            await world.ask("POST", CHAT, chat("flm://e/" + world.key[:-2]))
            await world.ask("GET", f"/v1/{world.key}/x?api_key={world.key}")
            await world.ask("GET", f"/v1/models/{world.key}")
            await world.app.aclose()
            text = b"".join(world.raw).decode()
            for secret in (world.key[17:40], stranger[17:40], PROMPT, "canary"):
                assert secret not in text
            assert len(world.lines) == 8
            assert all(set(line) >= FIELDS for line in world.lines)
            assert len({line["request_id"] for line in world.lines}) == 8
            assert [line["status"] for line in world.lines] == [200, 401, 401, 400, 404, 404, 404, 404]
            assert world.lines[0]["api_key_id"] == world.key[4:16]
            assert world.lines[1]["api_key_id"] is None
            assert world.lines[0]["timestamp"].endswith("Z")
            assert world.lines[0]["latency_ms"] > 0
            assert world.shared.counter(0, REQUESTS) == 8
            assert world.shared.counter(0, IN_FLIGHT) == 0
            assert world.shared.counter(0, ERRORS) == 0

    run(test())


def test_the_level_decides_which_lines_are_written() -> None:
    async def test() -> None:
        world = World(log_level="warning")
        await world.ask("GET", "/health")
        assert world.raw == []
        await world.ask("GET", "/nowhere")
        assert [line["level"] for line in world.lines] == ["warning"]

    run(test())

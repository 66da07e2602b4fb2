"""The client towards engines on real sockets: every way an engine can fail, back-pressure, reuse, cancelling."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from flm.config import IDLE_UPSTREAM_CONNECTIONS, SEND_FRAME_BYTES
from flm.engines.base import UpstreamRequest
from flm.errors import ErrorKind, RequestError, UpstreamProtocolError
from flm.upstream.connection import BUFFER_HIGH, RECEIVE_BYTES
from flm.upstream.pool import Pool, Response, Timeouts
from tests.support.engine import (
    ScriptedEngine,
    answer,
    bytewise,
    cut,
    deaf,
    fin,
    flood,
    interim,
    mark,
    receive,
    rst,
    say,
    serve,
    stall,
    until,
)
from tests.upstream.conftest import Run

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "engines"
PATIENT = Timeouts(connect=60, first_byte=60, between_bytes=60, total=0)  # longer than any test may take
ASK = UpstreamRequest("/v1/chat/completions", b'{"model":"m"}')
OK = answer(200, b"hello")


def open_pool(url: str, timeouts: Timeouts = PATIENT, **options: object) -> Pool:
    defaults: dict[str, object] = {"credential": None, "idle_seconds": 60.0, "max_in_flight": 0}
    return Pool(url, timeouts=timeouts, **(defaults | options))  # type: ignore[arg-type]


async def read_all(response: Response) -> bytes:
    body = b""
    while piece := await response.read():
        assert len(piece) <= SEND_FRAME_BYTES
        body += piece
    return body


async def ask(pool: Pool, request: UpstreamRequest = ASK) -> bytes:
    response = await pool.send(request)
    try:
        body = await read_all(response)
        response.release()
        return body
    finally:
        response.abort()


async def failure(pool: Pool, request: UpstreamRequest = ASK) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await ask(pool, request)
    return caught.value


# --- what goes right ------------------------------------------------------------------------------------


def test_an_exchange(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url + "/base", credential="tok")
            response = await pool.send(ASK)
            assert (response.status, response.headers) == (200, {b"content-length": b"5"})
            assert await read_all(response) == b"hello"
            assert await response.read() == b""
            response.release()
            assert await response.read() == b""
            expected = (
                b"POST /base/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\n"
                b"connection: keep-alive\r\nauthorization: Bearer tok\r\ncontent-type: application/json\r\n"
                b'content-length: 13\r\n\r\n{"model":"m"}' % engine.port
            )
            assert engine.peers[0].requests == [expected]
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_a_warm_connection_is_reused_and_the_latest_first(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, OK)]) as engine:
            pool = open_pool(engine.url)
            for _ in range(5):
                assert await ask(pool) == b"hello"
            assert len(engine.peers) == 1
            both = [await pool.send(ASK), await pool.send(ASK)]
            assert len(engine.peers) == 2
            for response in both:
                await read_all(response)
                response.release()
            before = len(engine.peers[1].requests)
            for _ in range(3):
                await ask(pool)
            assert len(engine.peers[1].requests) == before + 3  # given back last, lent first
            await pool.close()
            for peer in engine.peers:
                await peer.closed.wait()

    run(main())


@pytest.mark.parametrize(
    "spent",
    [
        OK + b"x",
        answer(200, b"hello", b"connection: close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["bytes after the end", "close", "1.0"],
)
def test_a_spent_connection_is_closed_and_not_reused(run: Run, spent: bytes) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(spent), stall()]) as engine:
            pool = open_pool(engine.url)
            assert await ask(pool) == b"hello"
            await engine.peers[0].closed.wait()
            assert await ask(pool) == b"hello"
            assert len(engine.peers) == 2
            await pool.close()

    run(main())


def test_an_answer_that_ends_with_its_connection(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(b"HTTP/1.1 200 OK\r\n\r\nhel"), say(b"lo"), fin()]) as engine:
            pool = open_pool(engine.url)
            assert await ask(pool) == b"hello"
            await pool.close()

    run(main())


def test_a_bodiless_answer_and_interim_answers(run: Run) -> None:
    async def main() -> None:
        script = [receive(), interim(3), say(b"HTTP/1.1 204 No\r\n\r\n"), receive(), say(OK), stall()]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url)
            assert await ask(pool) == b""
            assert await ask(pool) == b"hello"
            assert len(engine.peers) == 1
            await pool.close()

    run(main())


def test_release_before_the_end_closes(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(answer(200, b"x" * 10)[:-1]), stall()]) as engine:
            pool = open_pool(engine.url)
            response = await pool.send(ASK)
            response.release()
            await engine.peers[0].closed.wait()
            await pool.close()

    run(main())


def test_every_recorded_answer_passes_byte_by_byte(run: Run) -> None:
    paths = sorted(GOLDEN.glob("*/*chat_stream.response.http"))
    assert len(paths) >= 3

    async def main() -> None:
        for path in paths:
            data = path.read_bytes()
            async with ScriptedEngine([receive(), bytewise(data), fin()], [receive(), say(data), fin()]) as engine:
                pool = open_pool(engine.url)
                single = await ask(pool)
                assert single == await ask(pool)
                assert single
                await pool.close()

    run(main())


# --- what goes wrong ------------------------------------------------------------------------------------


def test_refused_is_503(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            await engine.stop_listening()
            failures: list[RequestError] = []
            pool = open_pool(engine.url, credential="sekret", on_failure=failures.append)
            error = await failure(pool)
            assert (error.kind, error.status) == (ErrorKind.ENGINE_UNAVAILABLE, 503)
            assert engine.url in error.message
            assert "sekret" not in error.message
            assert (b"retry-after", b"1") in error.headers
            assert failures == [error]
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_a_name_nobody_knows_is_503(run: Run) -> None:
    async def main() -> None:
        pool = open_pool("http://no-such-host.invalid:1")  # RFC 6761: never resolves, and never leaves this machine
        error = await failure(pool)
        assert error.kind is ErrorKind.ENGINE_UNAVAILABLE
        assert "no-such-host.invalid:1" in error.message
        await pool.close()

    run(main())


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full, so that a further connect hangs."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        waiting.append(client)
    return listener, waiting


@pytest.mark.parametrize("limit", ["connect", "total"])
def test_no_accept_in_time_is_504(run: Run, limit: str) -> None:
    async def main() -> None:
        listener, waiting = full_listener()
        short = {"connect": 5.0, "total": 0.0} | {limit: 0.05}
        pool = open_pool(
            f"http://127.0.0.1:{listener.getsockname()[1]}", Timeouts(first_byte=5, between_bytes=5, **short)
        )
        error = await failure(pool)
        assert (error.kind, error.status) == (ErrorKind.ENGINE_TIMEOUT, 504)
        await pool.close()
        for sock in (listener, *waiting):
            sock.close()

    run(main())


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
LATE = {
    "first byte": (b"", Timeouts(5, 0.05, 5, 0), "begin to answer"),
    "rest of the head": (HEAD[:20], Timeouts(5, 5, 0.05, 0), "head"),
    "head however it dawdles": (HEAD[:20], Timeouts(5, 0.05, 5, 0), "begin to answer"),
    "final answer after an interim one": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        Timeouts(5, 0.3, 0.05, 0),
        "begin to answer",
    ),
    "between bytes": (HEAD + b"12345", Timeouts(5, 5, 0.05, 0), "in the middle"),
    "total before the head": (b"", Timeouts(5, 5, 5, 0.3), "not done within 0.3 s"),
    "total after it": (HEAD + b"12345", Timeouts(5, 5, 5, 0.3), "not done within 0.3 s"),
}


@pytest.mark.parametrize("name", LATE)
def test_late_is_504_and_the_socket_is_closed(run: Run, name: str) -> None:
    sent, timeouts, words = LATE[name]

    async def main() -> None:
        async with ScriptedEngine([receive(), say(sent), stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, timeouts, on_failure=failures.append)
            error = await failure(pool)
            assert (error.kind, error.status) == (ErrorKind.ENGINE_TIMEOUT, 504)
            assert words in error.message
            assert engine.url in error.message
            assert failures == ([] if name.startswith("total") else [error])  # a caller may have read too slowly
            await engine.peers[0].closed.wait()
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_the_total_time_ends_an_answer_that_nobody_reads(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(HEAD + b"12345"), stall()]) as engine:
            pool = open_pool(engine.url, Timeouts(5, 5, 5, 0.3))
            response = await pool.send(ASK)
            await engine.peers[0].closed.wait()
            assert await response.read() == b"12345"
            with pytest.raises(RequestError, match="not done within"):
                await response.read()
            await pool.close()

    run(main())


def test_waiting_for_the_client_is_not_the_engines_lateness(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()
        async with ScriptedEngine([receive(), say(HEAD + b"12345"), until(go), say(b"67890"), stall()]) as engine:
            pool = open_pool(engine.url, Timeouts(5, 0.4, 0.4, 0))
            response = await pool.send(ASK)
            assert await response.read() == b"12345"
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.6)  # longer than any timeout
            go.set()
            assert await response.read() == b"67890"
            assert await response.read() == b""
            response.release()
            await pool.close()

    run(main())


@pytest.mark.parametrize("end", [fin, rst], ids=["fin", "rst"])
@pytest.mark.parametrize("sent", [b"", HEAD[:20], HEAD, HEAD + b"123"], ids=["nothing", "half a head", "head", "body"])
def test_an_early_end_is_502(run: Run, end: object, sent: bytes) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(sent), end()]) as engine:  # type: ignore[operator]
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            error = await failure(pool)
            assert (error.kind, error.status) == (ErrorKind.ENGINE_ERROR, 502)
            assert engine.url in error.message
            assert failures == [error]
            assert len(engine.peers) == 1  # a fresh connection is never tried twice
            await pool.close()

    run(main())


GARBAGE = {
    "banner": b"220 mail ESMTP\r\n",
    "status line": b"HTTP/1.1 200 " + b"a" * 1_048_576,
    "headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    "status 000": b"HTTP/1.1 000 No\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\n\r\n",
    "te and cl": HEAD[:-2] + b"transfer-encoding: chunked\r\n\r\n",
    "chunk size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_502_at_once(run: Run, name: str) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(GARBAGE[name]), stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            error = await failure(pool)
            assert isinstance(error, UpstreamProtocolError)
            assert error.status == 502
            assert engine.url in error.message
            assert failures == [error]
            await engine.peers[0].closed.wait()
            await pool.close()

    run(main())


def test_what_came_before_a_fault_is_returned_before_it(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(GARBAGE["chunk size"]), stall()]) as engine:
            pool = open_pool(engine.url)
            response = await pool.send(ASK)
            assert await response.read() == b"ab"
            for _ in range(2):  # and the fault stays
                with pytest.raises(UpstreamProtocolError):
                    await response.read()
            await pool.close()

    run(main())


@pytest.mark.parametrize("how", [fin, rst], ids=["fin", "rst"])
@pytest.mark.parametrize("name", ["sized", "chunked"])
def test_a_cut_at_every_byte_is_an_error_and_never_a_shorter_answer(run: Run, how: object, name: str) -> None:
    folder = GOLDEN / "llama-server-b1-0c1e570"
    data = (folder / ("models.response.http" if name == "sized" else "chat_stream.response.http")).read_bytes()
    # The long middle adds nothing but time: every byte of the head, of the first chunks and of the end.
    offsets = [at for at in range(len(data)) if at < 700 or at > len(data) - 60]

    async def main() -> None:
        scripts = [[receive(), cut(data, at), how()] for at in offsets]  # type: ignore[operator]
        async with ScriptedEngine(*scripts, [receive(), say(data), fin()]) as engine:
            pool = open_pool(engine.url)
            bodies = []
            for at in offsets:
                received, status = b"", None
                try:
                    response = await pool.send(ASK)
                    while piece := await response.read():
                        received += piece
                except RequestError as error:
                    status = error.status
                assert status == 502, at
                bodies.append(received)
            whole = await ask(pool)
            assert all(whole.startswith(body) for body in bodies)
            await pool.close()

    run(main())


def test_a_path_that_cannot_be_sent_reaches_no_engine(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            error = await failure(pool, UpstreamRequest("/a\r\nx: y", b""))
            assert error.kind is ErrorKind.INVALID_REQUEST
            assert (engine.peers, failures, pool.in_flight) == ([], [], 0)
            await pool.close()

    run(main())


# --- retry ----------------------------------------------------------------------------------------------


def test_a_reused_connection_that_closes_unanswered_is_replaced_once(run: Run) -> None:
    async def main() -> None:
        gone = [receive(), say(OK), receive(), rst()]
        async with ScriptedEngine(gone, [receive(), say(OK), stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            await ask(pool)
            assert await ask(pool) == b"hello"
            assert [len(peer.requests) for peer in engine.peers] == [2, 1]
            assert failures == []
            await pool.close()

    run(main())


def test_the_replacement_is_not_replaced(run: Run) -> None:
    async def main() -> None:
        gone = [receive(), say(OK), receive(), rst()]
        async with ScriptedEngine(gone, [receive(), rst()], [receive(), say(OK)]) as engine:
            pool = open_pool(engine.url)
            await ask(pool)
            assert (await failure(pool)).kind is ErrorKind.ENGINE_ERROR
            assert len(engine.peers) == 2
            await pool.close()

    run(main())


@pytest.mark.parametrize("first", [b"H", HEAD, b"garbage"])
def test_nothing_is_sent_again_after_a_byte_of_answer(run: Run, first: bytes) -> None:
    async def main() -> None:
        script = [receive(), say(OK), receive(), say(first), rst()]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url)
            await ask(pool)
            assert (await failure(pool)).status == 502
            assert len(engine.peers) == 1
            await pool.close()

    run(main())


def test_a_late_answer_is_not_asked_for_again(run: Run) -> None:
    async def main() -> None:
        script = [receive(), say(OK), receive(), stall()]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url, Timeouts(5, 0.4, 5, 0))
            await ask(pool)
            assert (await failure(pool)).kind is ErrorKind.ENGINE_TIMEOUT
            assert len(engine.peers) == 1
            await pool.close()

    run(main())


# --- idle connections -----------------------------------------------------------------------------------


async def forgotten(pool: Pool) -> None:
    while pool.idle:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "end", [[fin()], [rst()], [say(b"x"), stall()], [say(OK), stall()]], ids=["fin", "rst", "byte", "answer"]
)
def test_an_idle_connection_that_stirs_is_dropped_at_once(run: Run, end: list[object]) -> None:
    async def main() -> None:
        go = asyncio.Event()
        async with ScriptedEngine([receive(), say(OK), until(go), *end], [receive(), say(OK), stall()]) as engine:  # type: ignore[list-item]
            pool = open_pool(engine.url)
            await ask(pool)
            assert pool.idle == 1
            go.set()
            await forgotten(pool)
            assert await ask(pool) == b"hello"
            assert [len(peer.requests) for peer in engine.peers] == [1, 1]
            await pool.close()

    run(main())


def test_an_idle_connection_expires(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url, idle_seconds=0.05)
            await ask(pool)
            assert pool.idle == 1
            await engine.peers[0].closed.wait()
            await forgotten(pool)
            await pool.close()

    run(main())


def test_an_old_deadline_does_not_end_a_later_exchange(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()
        script = [receive(), say(OK), receive(), say(HEAD), until(go), say(b"1234567890"), stall()]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url, idle_seconds=0.4)
            await ask(pool)
            response = await pool.send(ASK)
            reading = asyncio.create_task(read_all(response))
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.6)  # the idle deadline passes
            go.set()
            assert await reading == b"1234567890"
            response.release()
            assert len(engine.peers) == 1
            await pool.close()

    run(main())


def test_no_more_idle_connections_than_allowed(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, OK)]) as engine:
            pool = open_pool(engine.url)
            responses = [await pool.send(ASK) for _ in range(IDLE_UPSTREAM_CONNECTIONS + 3)]
            for response in responses:
                await read_all(response)
                response.release()
            assert pool.idle == IDLE_UPSTREAM_CONNECTIONS
            await pool.close()
            for peer in engine.peers:
                await peer.closed.wait()

    run(main())


def test_more_than_max_in_flight_is_overloaded(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, OK)]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, max_in_flight=2, on_failure=failures.append)
            held = [await pool.send(ASK), await pool.send(ASK)]
            error = await failure(pool)
            assert (error.kind, error.status) == (ErrorKind.OVERLOADED, 503)
            assert (b"retry-after", b"1") in error.headers
            assert failures == []
            held[0].abort()
            assert await ask(pool) == b"hello"
            held[1].abort()
            held[1].abort()
            assert pool.in_flight == 0
            await pool.close()

    run(main())


# --- cancelling -----------------------------------------------------------------------------------------


def test_an_abort_reaches_the_engine_at_once(run: Run) -> None:
    async def main() -> None:
        latencies = []
        async with ScriptedEngine([receive(), say(HEAD + b"123"), stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            for index in range(50):
                response = await pool.send(ASK)
                began = time.monotonic()
                response.abort()
                peer = await engine.peer(index)
                await peer.closed.wait()
                latencies.append(peer.closed_at - began)
                with pytest.raises(RequestError):
                    await response.read()
            assert failures == []
            await pool.close()
        assert sorted(latencies)[-1] < 0.25

    run(main())


@pytest.mark.parametrize("sent", [b"", HEAD[:20]], ids=["prefill", "half a head"])
def test_a_cancelled_send_closes_the_socket(run: Run, sent: bytes) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(sent), stall()]) as engine:
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            sending = asyncio.create_task(pool.send(ASK))
            peer = await engine.peer(0)
            await peer.stalled.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await peer.closed.wait()
            assert (pool.in_flight, failures) == (0, [])
            await pool.close()

    run(main())


def test_a_cancelled_read_then_abort_closes_the_socket(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(HEAD), stall()]) as engine:
            pool = open_pool(engine.url)
            response = await pool.send(ASK)
            reading = asyncio.create_task(response.read())
            await (await engine.peer(0)).stalled.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            response.abort()
            await engine.peers[0].closed.wait()
            await pool.close()

    run(main())


def test_a_cancelled_connect_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        listener, waiting = full_listener()
        pool = open_pool(f"http://127.0.0.1:{listener.getsockname()[1]}")
        sending = asyncio.create_task(pool.send(ASK))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert pool.in_flight == 0
        await pool.close()
        for sock in (listener, *waiting):
            sock.close()

    run(main())


def test_cancelled_at_any_step_nothing_is_left(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, OK)]) as engine:
            pool = open_pool(engine.url)
            for warm in (False, True):
                for steps in range(12):
                    if warm:
                        await ask(pool)
                    asking = asyncio.create_task(ask(pool))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
                    assert pool.in_flight == 0
            await pool.close()
            for peer in engine.peers:
                await peer.closed.wait()

    run(main())


def test_many_at_once_some_of_which_leave(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, OK)]) as engine:
            pool = open_pool(engine.url)

            async def one(index: int) -> None:
                response = await pool.send(ASK)
                if index % 3:
                    assert await read_all(response) == b"hello"
                    response.release()
                response.abort()

            for _ in range(3):
                tasks = [asyncio.create_task(one(index)) for index in range(100)]
                for leaving in tasks[::7]:
                    leaving.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert pool.in_flight == 0
            assert 0 < pool.idle <= IDLE_UPSTREAM_CONNECTIONS
            await pool.close()
            for peer in engine.peers:
                await peer.closed.wait()
            assert engine.errors == []

    run(main())


# --- back-pressure --------------------------------------------------------------------------------------


def socket_buffers() -> int:
    """What the kernel itself may hold of one loopback connection, generously."""
    maxima = (Path("/proc/sys/net/ipv4/tcp_rmem"), Path("/proc/sys/net/ipv4/tcp_wmem"))
    return sum(int(path.read_text().split()[2]) for path in maxima)


@pytest.mark.parametrize("piece", [b"x" * 100_000, b"x"], ids=["large chunks", "one byte each"])
def test_an_engine_that_floods_is_held_back_while_nobody_reads(run: Run, piece: bytes) -> None:
    wire = b"%x\r\n%s\r\n" % (len(piece), piece)
    repeats = max(1, 60_000 // len(wire))
    wire *= repeats
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    limit = socket_buffers() + 4 * 1_048_576

    async def main() -> None:
        done = asyncio.Event()
        script = [receive(), say(head), flood(wire, limit), say(b"0\r\n\r\n"), mark(done), stall()]
        async with ScriptedEngine(script) as engine:
            pool = open_pool(engine.url)
            response = await pool.send(ASK)
            peer = engine.peers[0]
            before = -1
            while before != peer.sent:  # until a while passes in which the kernel took nothing
                before = peer.sent
                await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)
            assert not done.is_set()
            held = len(response._connection._body)  # type: ignore[union-attr]
            assert 0 < held < BUFFER_HIGH + RECEIVE_BYTES
            body = 0
            while data := await response.read():
                body += len(data)
                assert len(response._connection._body) < BUFFER_HIGH + RECEIVE_BYTES  # type: ignore[union-attr]
            assert done.is_set()
            assert (
                body == (peer.sent - len(head) - 5) // len(wire) * wire.count(b"\r\n" + piece) * len(piece) or body > 0
            )
            response.release()
            assert pool.idle == 1
            await pool.close()

    run(main())


def test_a_large_request_is_whole_at_the_engine(run: Run) -> None:
    body = bytes(range(256)) * 4096 * 32  # 32 MiB

    async def main() -> None:
        async with ScriptedEngine([receive(), say(OK), receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url)
            assert await ask(pool, UpstreamRequest("/x", body)) == b"hello"
            assert engine.peers[0].requests[0].endswith(b"\r\n\r\n" + body)
            assert await ask(pool) == b"hello"
            assert len(engine.peers) == 1
            await pool.close()

    run(main())


def test_an_engine_that_takes_no_request_is_late(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([deaf()]) as engine:
            pool = open_pool(engine.url, Timeouts(5, 30, 0.1, 0))
            error = await failure(pool, UpstreamRequest("/x", bytes(32 * 1_048_576)))
            assert error.kind is ErrorKind.ENGINE_TIMEOUT
            assert "took nothing of the request" in error.message
            await pool.close()

    run(main())


def test_an_answer_before_the_whole_request_is_believed_but_spends_the_connection(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([say(answer(413, b"too large")), deaf()]) as engine:
            pool = open_pool(engine.url)
            response = await pool.send(UpstreamRequest("/x", bytes(32 * 1_048_576)))
            assert (response.status, await read_all(response)) == (413, b"too large")
            response.release()
            assert pool.idle == 0
            await pool.close()

    run(main())


# --- closing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
def test_closing_a_pool(run: Run, running: bool) -> None:
    async def main() -> None:
        go = asyncio.Event()
        script = [receive(), say(HEAD), until(go), say(b"1234567890"), stall()]
        async with ScriptedEngine([serve({}, OK)], script, [receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url)
            first = await pool.send(ASK)
            busy = await pool.send(ASK)
            await read_all(first)
            first.release()
            await pool.close(running=running)
            await engine.peers[0].closed.wait()
            go.set()
            if running:
                with pytest.raises(RequestError):
                    await read_all(busy)
            else:
                assert await read_all(busy) == b"1234567890"
            busy.release()
            await engine.peers[1].closed.wait()
            assert await ask(pool) == b"hello"  # a request that began with it may finish
            await engine.peers[2].closed.wait()
            assert pool.idle == 0

    run(main())


@pytest.mark.parametrize("url", ["ftp://h", "http://u:p@h", "nonsense"])
def test_a_bad_url_is_refused_when_the_pool_is_made(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        open_pool(url)

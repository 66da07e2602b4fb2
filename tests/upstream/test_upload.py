"""Requests whose body comes piece by piece: what the engine gets, back-pressure, early answers, cut bodies."""

from __future__ import annotations

import asyncio

import pytest

from flm.errors import ErrorKind, RequestError
from flm.upstream.pool import Pool, Response, Timeouts
from tests.support.engine import ScriptedEngine, answer, deaf, fin, receive, rst, say, seen, stall, until
from tests.upstream.conftest import Run
from tests.upstream.test_pool import PATIENT, open_pool, read_all

OK = answer(200, b"hello")
HEADERS = ((b"content-type", b"text/plain"),)
MUCH = 32 * 1024 * 1024  # several times what the kernel holds


async def finished(response: Response) -> bytes:
    with response:
        body = await read_all(response)
        response.release()
        return body


def test_a_body_of_known_length_goes_out_as_it_comes(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([seen(b"one"), receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url + "/base", credential="tok")
            upload = await pool.upload("PUT", "/x?y=1", HEADERS, 6)
            await upload.write(b"one")
            peer = await engine.peer(0)
            while b"one" not in peer.received:
                await asyncio.sleep(0)
            await upload.write(b"two")
            await upload.end()
            response = await upload.response()
            assert await finished(response) == b"hello"
            expected = (
                b"PUT /base/x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\n"
                b"connection: keep-alive\r\nauthorization: Bearer tok\r\ncontent-type: text/plain\r\n"
                b"content-length: 6\r\n\r\nonetwo" % engine.port
            )
            assert peer.requests == [expected]
            assert (pool.idle, pool.in_flight) == (1, 0)
            await pool.close()

    run(main())


def test_a_body_of_unknown_length_goes_out_in_chunks(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([seen(b"0\r\n\r\n"), say(OK), stall()]) as engine:
            pool = open_pool(engine.url)
            upload = await pool.upload("POST", "/x", HEADERS, None)
            for piece in (b"one", b"", b"0123456789abcdef"):  # an empty piece would end the body
                await upload.write(piece)
            await upload.end()
            assert await finished(await upload.response()) == b"hello"
            head, _, body = bytes(engine.peers[0].received).partition(b"\r\n\r\n")
            assert head.endswith(b"\r\ntransfer-encoding: chunked")
            assert b"content-length" not in head
            assert body == b"3\r\none\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
            assert pool.idle == 1
            await pool.close()

    run(main())


def test_a_body_that_is_broken_off_never_gets_its_last_chunk(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([seen(b"one"), stall()]) as engine:
            pool = open_pool(engine.url)
            upload = await pool.upload("POST", "/x", HEADERS, None)
            waiting = asyncio.ensure_future(upload.response())
            await upload.write(b"one")
            peer = await engine.peer(0)
            await peer.stalled.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await peer.closed.wait()
            assert bytes(peer.received).endswith(b"\r\n\r\n3\r\none\r\n")
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_an_upload_never_uses_an_idle_connection(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([receive(), say(OK), stall()]) as engine:
            pool = open_pool(engine.url)
            for count in (1, 2):
                upload = await pool.upload("POST", "/x", HEADERS, 1)
                await upload.write(b"x")
                await upload.end()
                await finished(await upload.response())
                assert (len(engine.peers), pool.idle) == (count, count)
            await pool.close()

    run(main())


def test_an_engine_that_does_not_read_slows_the_writer_down(run: Run) -> None:
    async def main() -> None:
        go = asyncio.Event()
        async with ScriptedEngine([until(go), seen(b"end"), say(OK), stall()]) as engine:
            pool = open_pool(engine.url)
            upload = await pool.upload("POST", "/x", HEADERS, MUCH + 3)
            sent = 0

            async def write() -> None:
                nonlocal sent
                piece = bytes(65_536)
                while sent < MUCH:
                    await upload.write(piece)
                    sent += len(piece)
                await upload.write(b"end")
                await upload.end()

            writing = asyncio.ensure_future(write())
            before = -1
            while sent != before:  # until the kernel's buffers are full
                before = sent
                for _ in range(100):
                    await asyncio.sleep(0)
            assert sent < MUCH / 2
            assert not writing.done()
            go.set()
            assert await finished(await upload.response()) == b"hello"
            await writing
            await pool.close()

    run(main())


def test_an_engine_that_takes_nothing_for_too_long_is_late(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([deaf()]) as engine:
            pool = open_pool(engine.url, Timeouts(connect=60, first_byte=60, between_bytes=0.05))
            upload = await pool.upload("POST", "/x", HEADERS, MUCH)

            async def write() -> None:
                for _ in range(MUCH // 65_536):
                    await upload.write(bytes(65_536))

            writing = asyncio.ensure_future(write())
            with pytest.raises(RequestError, match="took nothing of the request") as late:
                await upload.response()
            assert late.value.kind is ErrorKind.ENGINE_TIMEOUT
            await writing  # what is left goes nowhere, and at once
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_the_time_to_answer_runs_from_the_end_of_the_body(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            pool = open_pool(engine.url, Timeouts(connect=60, first_byte=0.05, between_bytes=60))
            upload = await pool.upload("POST", "/x", HEADERS, 3)
            waiting = asyncio.ensure_future(upload.response())
            await upload.write(b"abc")
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
            await upload.end()
            with pytest.raises(RequestError, match="did not begin to answer"):
                await waiting
            await pool.close()

    run(main())


def test_an_early_answer_is_given_while_the_body_still_comes(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([seen(b"one"), say(answer(413, b"too much")), stall()]) as engine:
            pool = open_pool(engine.url)
            upload = await pool.upload("POST", "/x", HEADERS, 100)
            await upload.write(b"one")
            response = await upload.response()
            upload.stop()
            await upload.write(b"two")
            assert response.status == 413
            assert await finished(response) == b"too much"
            peer = engine.peers[0]
            await peer.closed.wait()
            assert bytes(peer.received).endswith(b"\r\n\r\none")
            assert (pool.idle, pool.in_flight) == (0, 0)
            await pool.close()

    run(main())


def test_a_body_and_its_answer_flow_at_the_same_time(run: Run) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"
        async with ScriptedEngine([seen(b"one"), say(head + b"ONE"), seen(b"two"), say(b"TWO"), stall()]) as engine:
            pool = open_pool(engine.url)
            upload = await pool.upload("POST", "/x", HEADERS, 6)
            await upload.write(b"one")
            response = await upload.response()
            assert await response.read() == b"ONE"
            await upload.write(b"two")
            await upload.end()
            assert await finished(response) == b"TWO"
            assert pool.idle == 1
            await pool.close()

    run(main())


@pytest.mark.parametrize("end", [fin(), rst()], ids=["fin", "rst"])
def test_an_engine_that_goes_away_in_the_middle_of_the_body(run: Run, end: object) -> None:
    async def main() -> None:
        async with ScriptedEngine([seen(b"one"), end]) as engine:  # type: ignore[list-item]
            failures: list[RequestError] = []
            pool = open_pool(engine.url, on_failure=failures.append)
            upload = await pool.upload("POST", "/x", HEADERS, None)
            await upload.write(b"one")
            with pytest.raises(RequestError, match="before it answered") as gone:
                await upload.response()
            await upload.write(b"two")
            await upload.end()
            assert gone.value.kind is ErrorKind.ENGINE_ERROR
            assert failures == []  # it may have had enough of waiting for a caller that sends slowly
            assert pool.in_flight == 0
            await pool.close()

    run(main())


def test_an_engine_that_is_not_there(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as engine:
            url = engine.url
        pool = Pool(url, credential=None, idle_seconds=1, timeouts=PATIENT, max_in_flight=1)
        for _ in range(2):  # the place is given back
            with pytest.raises(RequestError) as refused:
                await pool.upload("POST", "/x", HEADERS, 1)
            assert refused.value.kind is ErrorKind.ENGINE_UNAVAILABLE

    run(main())

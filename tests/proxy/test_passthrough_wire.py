"""The pass-through behind the real server, over raw sockets: bodies that flow, bodies that break, peers that vanish.

Numbers in brackets are those of the reliability catalogue that docs/granian.md goes through.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from flm.proxy.respond import ALWAYS
from tests.proxy.harness import engine
from tests.proxy.test_wire import CANCEL_SECONDS, HOST, Server, Wire, run, serving
from tests.support.engine import (
    Peer,
    ScriptedEngine,
    answer,
    deaf,
    fin,
    flood,
    mark,
    receive,
    rst,
    say,
    seen,
    serve,
    stall,
    until,
)

ALL = {"passthrough_open_routes": "*:* /*"}
LARGE = {**ALL, "proxy_max_body_bytes": 1 << 30}
OK = answer(200, b"fine", b"content-type: text/plain")
CHUNKED = b"Transfer-Encoding: chunked\r\n"
MUCH = 32 * 1024 * 1024


def request(server: Server, *lines: bytes, method: bytes = b"POST", path: bytes = b"/engine/e/x") -> bytes:
    """A head, up to its empty line; the body follows."""
    more = b"".join(line if line.endswith(b"\r\n") else line + b"\r\n" for line in lines)
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + server.auth + more + b"\r\n"


async def got(peer: Peer, data: bytes) -> None:
    """Wait until the engine has got `data` (its script must be reading)."""
    while data not in peer.received:
        await asyncio.sleep(0)


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


# --- flowing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_reaches_the_engine_while_it_still_comes(framing: str) -> None:
    async def test() -> None:
        script = [seen(b"two"), seen(b"0\r\n\r\n") if framing == "chunks" else seen(b"three"), say(OK), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            lines = CHUNKED if framing == "chunks" else b"Content-Length: 11"
            wire = await server.say(request(server, lines))
            for piece in (b"one", b"two", b"three"):
                wire.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framing == "chunks" else piece)
                await got(await scripted.peer(0), piece)
            if framing == "chunks":
                wire.writer.write(b"0\r\nx-trailer: 1\r\n\r\n")
            status, headers, body = await wire.response()
            assert (status, body, headers[b"content-length"]) == (200, b"fine", b"4")
            head, _, sent = bytes(scripted.peers[0].received).partition(b"\r\n\r\n")
            assert sent == (
                b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n" if framing == "chunks" else b"onetwothree"
            )
            assert (b"transfer-encoding" in head) is (framing == "chunks")
            assert (b"content-length: 11" in head) is (framing == "length")
            wire.writer.write(request(server, b"Content-Length: 0", path=b"/engine/unknown/x"))
            assert (await wire.response())[0] == 404  # the connection lives

    run(test())


def test_an_answer_reaches_the_client_while_it_still_comes() -> None:
    async def test() -> None:
        go = [asyncio.Event(), asyncio.Event()]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        script = [receive(), say(head), until(go[0]), say(b"2\r\na\n\r\n"), until(go[1]), say(b"2\r\nb\n\r\n0\r\n\r\n"),
                  stall()]  # fmt: skip
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, method=b"GET"))
            received = await wire.reader.readuntil(b"\r\n\r\n")  # the head alone
            assert b"content-type: application/x-ndjson" in received
            assert b"transfer-encoding: chunked" in received
            for event, line in zip(go, (b"a\n", b"b\n"), strict=True):
                event.set()
                assert await wire.reader.readexactly(7) == b"2\r\n" + line + b"\r\n"
            assert await wire.reader.readexactly(5) == b"0\r\n\r\n"

    run(test())


def test_both_bodies_flow_at_once() -> None:
    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
        script = [seen(b"one"), say(head + b"3\r\nONE\r\n"), seen(b"two"), say(b"3\r\nTWO\r\n0\r\n\r\n"), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, CHUNKED) + b"3\r\none\r\n")
            await wire.reader.readuntil(b"\r\n\r\n")
            assert await wire.reader.readexactly(8) == b"3\r\nONE\r\n"
            wire.writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            assert await wire.reader.readexactly(13) == b"3\r\nTWO\r\n0\r\n\r\n"

    run(test())


def test_an_engine_that_does_not_read_stops_the_client() -> None:
    async def test() -> None:
        go = asyncio.Event()
        script = [until(go), seen(b"end"), say(OK), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **LARGE) as server:
            wire = await server.say(request(server, b"Content-Length: %d" % (MUCH + 3)))
            sent = 0

            async def send() -> None:
                nonlocal sent
                while sent < MUCH:
                    wire.writer.write(bytes(65_536))
                    await wire.writer.drain()
                    sent += 65_536
                wire.writer.write(b"end")

            sending = asyncio.ensure_future(send())
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.1)  # nothing moves any more: there is no event for what does not happen
            assert 0 < sent < MUCH * 3 // 4  # the kernel holds a good part, FLM next to nothing
            go.set()
            assert (await wire.response())[0] == 200
            await sending
            assert len(scripted.peers[0].received) > MUCH

    run(test())


def test_a_client_that_does_not_read_stops_the_engine() -> None:
    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MUCH * 4)
        script = [receive(), say(head), flood(bytes(65_536), MUCH * 4), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, method=b"GET"))
            await wire.reader.readuntil(b"\r\n\r\n")
            peer, before = await scripted.peer(0), -1
            while peer.sent != before:
                before = peer.sent
                await asyncio.sleep(0.1)
            assert peer.sent < MUCH * 2
            rest = MUCH * 4
            while rest:
                rest -= len(await wire.reader.read(1 << 20))
            assert peer.sent >= MUCH * 4

    run(test())


def test_expect_100_continue_is_answered_when_the_engine_is_there() -> None:
    async def test() -> None:
        async with (
            ScriptedEngine([seen(b"body"), say(OK), stall()]) as scripted,
            serving(engine(scripted.url), engine("http://127.0.0.1:1", name="gone"), **ALL) as server,
        ):
            expect = (b"Expect: 100-continue", b"Content-Length: 4")
            wire = await server.say(request(server, *expect))
            assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            wire.writer.write(b"body")
            assert (await wire.response())[0] == 200
            assert b"expect" not in scripted.peers[0].received.lower()
            for path, status in ((b"/engine/gone/x", 503), (b"/engine/unknown/x", 404), (b"/engine/e/../x", 400)):
                wire = await server.say(request(server, *expect, path=path))
                assert (await wire.response())[0] == status  # no 100 before it
                assert await wire.closed()

    run(test())


def test_one_connection_carries_requests_of_all_kinds() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({"/x": OK})]) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.connect()
            for _ in range(3):
                wire.writer.write(request(server, method=b"GET"))
                assert (await wire.response())[2] == b"fine"
                wire.writer.write(request(server, b"Content-Length: 3") + b"abc")
                assert (await wire.response())[2] == b"fine"
                wire.writer.write(request(server, method=b"HEAD"))
                head = await wire.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert b"content-length: 4" in head
                wire.writer.write(request(server, method=b"GET", path=b"/engine/e/missing"))
                assert (await wire.response())[:3:2] == (404, b"not here")

    run(test())


# --- broken bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framing", "data", "sent"),
    [
        (b"Content-Length: 10", b"half", b"half"),
        (CHUNKED, b"4\r\nhalf\r\n", b"4\r\nhalf\r\n"),
        (CHUNKED, b"4\r\nhalf\r\n5\r\nab", None),
    ],
)
def test_a_body_that_is_cut_never_gets_its_end(framing: bytes, data: bytes, sent: bytes | None) -> None:
    """[5]"""

    async def test() -> None:
        script = [seen(b"half"), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, framing) + data)
            peer = await scripted.peer(0)
            await peer.stalled.wait()
            left = wire.leave(reset=False)
            await peer.closed.wait()
            assert peer.closed_at - left < CANCEL_SECONDS
            _, _, body = bytes(peer.received).partition(b"\r\n\r\n")
            assert not body.endswith(b"0\r\n\r\n")
            assert sent is None or body == sent

    run(test())


@pytest.mark.parametrize(
    "bad", [b"0x5\r\nhello\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"zz\r\n", b"ffffffffffffffffff\r\n"]
)
def test_a_body_that_is_malformed_is_400_and_never_gets_its_end(bad: bytes) -> None:
    """[5]"""

    async def test() -> None:
        script = [seen(b"half"), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, CHUNKED) + b"4\r\nhalf\r\n")
            peer = await scripted.peer(0)
            await peer.stalled.wait()
            wire.writer.write(bad)
            status, _, body = await wire.response()
            assert (status, code(body)) == (400, "invalid_request")
            assert await wire.closed()
            await peer.closed.wait()
            assert not peer.received.endswith(b"0\r\n\r\n")

    run(test())


def test_a_body_that_grows_too_large_is_413_and_ends_the_engines_request() -> None:
    """[17]"""

    async def test() -> None:
        script = [seen(b"x" * 600), stall()]
        async with (
            ScriptedEngine(script) as scripted,
            serving(engine(scripted.url), **ALL, proxy_max_body_bytes=1024) as server,
        ):
            wire = await server.say(request(server, CHUNKED) + b"258\r\n" + b"x" * 600 + b"\r\n")
            peer = await scripted.peer(0)
            await peer.stalled.wait()
            wire.writer.write(b"258\r\n" + b"x" * 600 + b"\r\n")
            status, headers, body = await wire.response()
            assert (status, code(body), headers[b"connection"]) == (413, "payload_too_large", b"close")
            await peer.closed.wait()
            assert not peer.received.endswith(b"0\r\n\r\n")
            assert b"x" * 601 not in peer.received

    run(test())


@pytest.mark.parametrize("setting", ["proxy_body_idle_timeout_seconds", "proxy_body_total_timeout_seconds"])
def test_a_body_that_comes_too_slowly_is_408_and_ends_the_engines_request(setting: str) -> None:
    """[23]"""

    async def test() -> None:
        script = [seen(b"half"), stall()]
        async with (
            ScriptedEngine(script) as scripted,
            serving(engine(scripted.url), **ALL, **{setting: 0.2}) as server,
        ):
            wire = await server.say(request(server, b"Content-Length: 10") + b"half")
            status, headers, body = await wire.response()
            assert (status, code(body), headers[b"connection"]) == (408, "request_timeout", b"close")
            await (await scripted.peer(0)).closed.wait()

    run(test())


def test_a_request_with_two_framings_reaches_the_engine_with_one() -> None:
    """[1]"""

    async def test() -> None:
        script = [seen(b"0\r\n\r\n"), say(OK), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            smuggled = request(server, method=b"GET", path=b"/engine/e/smuggled")
            wire = await server.say(request(server, b"Content-Length: 6", CHUNKED) + b"0\r\n\r\n" + smuggled)
            assert (await wire.response())[0] in (200, 400)
            assert await wire.closed()
            received = bytes(scripted.peers[0].received) if scripted.peers else b""
            assert b"smuggled" not in received
            assert received.lower().count(b"content-length") + received.lower().count(b"transfer-encoding") <= 1

    run(test())


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity", b"chunked, chunked"])
def test_other_transfer_codings_never_reach_an_engine(coding: bytes) -> None:
    """[2]"""

    async def test() -> None:
        async with ScriptedEngine([stall()]) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, b"Transfer-Encoding: " + coding) + b"0\r\n\r\n")
            assert (await wire.response())[0] == 400
            assert scripted.peers == []

    run(test())


# --- answers that come early, or break -------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", CHUNKED])
def test_an_engine_that_refuses_before_the_body_is_complete_is_heard(framing: bytes) -> None:
    async def test() -> None:
        script = [seen(b"half"), say(answer(422, b"no, thanks")), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            piece = b"4\r\nhalf\r\n" if framing == CHUNKED else b"half"
            wire = await server.say(request(server, framing) + piece)
            status, headers, body = await wire.response()
            assert (status, body, headers[b"connection"]) == (422, b"no, thanks", b"close")
            peer = await scripted.peer(0)
            await peer.closed.wait()
            assert not peer.received.endswith(b"0\r\n\r\n")
            assert (await server.lines())[-1]["error_type"] is None

    run(test())


def test_the_connection_behind_an_early_answer_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("flm.proxy.app.LINGER_SECONDS", 0.05)
        script = [seen(b"half"), say(answer(422, b"no")), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, b"Content-Length: 1000000") + b"half")
            assert (await wire.response())[0] == 422
            assert await wire.closed()

    run(test())


def test_a_client_that_sends_everything_first_still_gets_an_early_answer() -> None:
    async def test() -> None:
        script = [seen(b"POST"), say(answer(413, b"too much")), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, b"Content-Length: %d" % (4 * 65_536)))
            for _ in range(4):
                wire.writer.write(bytes(65_536))
                await wire.writer.drain()
            status, _, body = await wire.response()
            assert (status, body) == (413, b"too much")

    run(test())


@pytest.mark.parametrize("end", [fin(), rst()], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_answer_that_breaks_off_is_cut_and_not_ended(framing: str, end: object) -> None:
    """[109]"""

    async def test() -> None:
        lines = b"content-length: 100" if framing == "length" else b"transfer-encoding: chunked"
        piece = b"abc" if framing == "length" else b"3\r\nabc\r\n"
        script = [receive(), say(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n" + piece), seen(b""), end]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:  # type: ignore[arg-type]
            wire = await server.say(request(server, method=b"GET"))
            head = await wire.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            rest = await wire.reader.read()
            assert rest in (piece, b"")
            assert b"0\r\n\r\n" not in rest
            assert (await server.lines())[-1]["error_type"] == "engine_error"

    run(test())


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        (b"", 502, "engine_error"),
        (b"HTTP/1.1 200 O", 502, "engine_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 099 X\r\n\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 600 X\r\n\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 999 X\r\n\r\n", 502, "engine_protocol_error"),
        (b"SSH-2.0-OpenSSH\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 502, "engine_protocol_error"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 502, "engine_protocol_error"),
        (answer(401, b"who are you?", b"www-authenticate: Bearer"), 502, "engine_error"),
    ],
)
def test_an_answer_that_is_none_is_flms_error_and_hurts_nobody(said: bytes, status: int, error: str) -> None:
    """[67, 68, 111]"""

    async def test() -> None:
        async with (
            ScriptedEngine([receive(), say(said)], [serve({"/x": OK})]) as scripted,
            serving(engine(scripted.url), **ALL) as server,
        ):
            wire = await server.say(request(server, method=b"GET"))
            got_status, headers, body = await wire.response()
            assert (got_status, code(body)) == (status, error)
            assert b"www-authenticate" not in headers
            wire.writer.write(request(server, method=b"GET"))
            assert (await wire.response())[0] == 200

    run(test())


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_keep_the_connection_in_step(status: int) -> None:
    """[67]"""

    async def test() -> None:
        said = b"HTTP/1.1 %d X\r\ncontent-length: 0\r\netag: 1\r\n\r\n" % status
        async with ScriptedEngine([serve({"/x": said})]) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.connect()
            for _ in range(2):
                wire.writer.write(request(server, method=b"GET"))
                head = await wire.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 %d" % status)
                assert b"transfer-encoding" not in head
            wire.writer.write(request(server, method=b"GET", path=b"/engine/unknown/x"))
            assert (await wire.response())[0] == 404

    run(test())


def test_headers_of_both_sides_are_cleaned_at_the_wire() -> None:
    """[62, 63, 64]"""

    async def test() -> None:
        said = answer(200, b"ok", b"Set-Cookie: a=b", b"Server: engine", b"Connection: x-note", b"X-Note: 1",
                      b"Strict-Transport-Security: max-age=1", b"Access-Control-Allow-Origin: *", b"Alt-Svc: h3",
                      b"X-Request-Id: theirs", b"ETag: 1", b"Keep-Alive: timeout=5")  # fmt: skip
        async with (
            ScriptedEngine([serve({"/x": said})]) as scripted,
            serving(engine(scripted.url, credential="the-credential-of-flm"), **ALL) as server,
        ):
            wire = await server.say(
                request(
                    server,
                    b"Connection: authorization, x-forwarded-for, x-request-id, x-mine",
                    b"X-Mine: 1", b"X-Forwarded-For: 1.2.3.4", b"X_Forwarded_For: 1.2.3.4", b"Cookie: a=b",
                    b"X-Api-Key: " + server.world.key.encode(), b"Upgrade: h2c", b"HTTP2-Settings: x", b"TE: trailers",
                    b"Proxy-Authorization: x", b"X-Stays: 1",
                    method=b"GET",
                )
            )  # fmt: skip
            status, headers, _ = await wire.response()
            assert status == 200
            assert headers[b"server"] == b"flm"
            assert headers[b"x-request-id"] != b"theirs"
            assert set(headers) == {b"etag", b"content-length", b"x-request-id", b"date"} | {name for name, _ in ALWAYS}
            received = bytes(scripted.peers[0].received).replace(b":%d" % scripted.port, b"")
            assert received == (
                b"GET /x HTTP/1.1\r\nhost: 127.0.0.1\r\naccept-encoding: identity\r\nconnection: keep-alive\r\n"
                b"authorization: Bearer the-credential-of-flm\r\nx-stays: 1\r\n\r\n"
            )

    run(test())


# --- clients that leave ----------------------------------------------------------------------------------------------


async def leaves(wire: Wire, peer: Peer, *, reset: bool) -> None:
    left = wire.leave(reset=reset)
    await peer.closed.wait()
    assert peer.closed_at - left < CANCEL_SECONDS


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("when", ["in the body", "before the head", "in the answer", "early answer"])
def test_a_client_that_leaves_ends_the_engines_work(when: str, reset: bool) -> None:
    """[99, 100]"""

    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"
        asked = asyncio.Event()
        scripts = {
            "in the body": [seen(b"half"), mark(asked), stall()],
            "before the head": [receive(), mark(asked), stall()],
            "in the answer": [receive(), say(head), mark(asked), stall()],
            "early answer": [seen(b"half"), say(head.replace(b"200", b"400")), mark(asked), stall()],
        }
        whole = when in ("before the head", "in the answer")
        async with ScriptedEngine(scripts[when]) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, b"Content-Length: %d" % (4 if whole else 10)) + b"half")
            await asked.wait()
            if "answer" in when:
                await wire.reader.readuntil(b"abc")
            await leaves(wire, await scripted.peer(0), reset=reset)

    run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_without_a_body_that_leaves_ends_the_engines_work(begun: bool) -> None:
    """[99, 100]"""

    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc" if begun else b""
        asked = asyncio.Event()
        script = [receive(), say(head), mark(asked), stall()]
        async with ScriptedEngine(script) as scripted, serving(engine(scripted.url), **ALL) as server:
            wire = await server.say(request(server, method=b"GET"))
            await asked.wait()
            if begun:
                await wire.reader.readuntil(b"abc")
            await leaves(wire, await scripted.peer(0), reset=False)
            assert (await server.lines())[-1]["error_type"] == "client_disconnected"

    run(test())


def test_an_engine_that_takes_no_more_of_a_body_is_late() -> None:
    async def test() -> None:
        async with (
            ScriptedEngine([deaf()]) as scripted,
            serving(engine(scripted.url, between_bytes_timeout=0.2), **LARGE) as server,
        ):
            wire = await server.say(request(server, b"Content-Length: %d" % MUCH))
            sending = asyncio.ensure_future(_send_all(wire, MUCH))
            status, _, body = await wire.response()
            assert (status, code(body)) == (504, "engine_timeout")
            await sending

    run(test())


async def _send_all(wire: Wire, size: int) -> None:
    try:
        for _ in range(size // 65_536):
            wire.writer.write(bytes(65_536))
            await wire.writer.drain()
    except ConnectionError:
        pass  # the answer ended it

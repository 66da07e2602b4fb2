"""The pass-through without a server: what reaches an engine, what comes back, and what is refused before anything."""

from __future__ import annotations

import asyncio
import posixpath
import sys
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm.errors import ErrorKind, RequestError
from tests.proxy.harness import Client, World, engine, run
from tests.support.engine import ScriptedEngine, answer, chunked, receive, rst, say, seen, serve, stall, until

ALL = {"passthrough_open_routes": "*:* /*"}
JSON = b"content-type: application/json"
SECRET = "sk-the-credential-of-flm"


async def ask(script: Any, method: str = "GET", path: str = "/engine/e/x", **more: Any) -> tuple[Client, bytes]:
    """One request to an engine that plays `script`; the answer, and what the engine got."""
    async with ScriptedEngine(script) as scripted:
        world = World(engine(scripted.url + more.pop("base", ""), credential=more.pop("credential", None)), **ALL)
        client = await world.ask(method, path, **more)
        await world.app.aclose()
        return client, bytes(scripted.peers[0].received).replace(b":%d" % scripted.port, b":1")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH", "PROPFIND"])
def test_every_method_passes_and_nothing_else_changes(method: str) -> None:
    async def test() -> None:
        headers = {"accept": "text/plain", "user-agent": "me/1", "cookie": "a=b", "origin": "http://localhost"}
        path = "/engine/e/%61pi/org%2Fm?q=%0A&x[]=1"
        script = [receive(), say(answer(201, b"" if method == "HEAD" else b"yes", b"etag: 1")), stall()]
        client, received = await ask(script, method, path, headers=headers, base="/base", credential="tok")
        length = b"" if method in ("GET", "HEAD", "OPTIONS", "DELETE") else b"content-length: 0\r\n"
        assert received == (
            method.encode() + b" /base/api/org%2Fm?q=%0A&x[]=1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\n"
            b"accept-encoding: identity\r\nconnection: keep-alive\r\nauthorization: Bearer tok\r\n"
            b"accept: text/plain\r\nuser-agent: me/1\r\n" + length + b"\r\n"
        )
        assert (client.status, client.body) == (201, b"" if method == "HEAD" else b"yes")
        assert client.complete
        length = b"0" if method == "HEAD" else b"3"
        crossed = {name: value for name, value in client.own_headers.items() if not name.startswith(b"access-control-")}
        assert crossed == {b"etag": b"1", b"content-length": length}

    run(test())


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "DELETE", "HEAD"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_of_any_method_passes(method: str, framing: str) -> None:
    async def test() -> None:
        headers = {"transfer-encoding": "chunked"} if framing == "chunks" else {}
        end = b"0\r\n\r\n" if framing == "chunks" else b"\x00body"
        client, received = await ask([seen(end), say(answer(200, b"")), stall()], method, body=b"\x00body",
                                     headers=headers)  # fmt: skip
        assert client.status == 200
        head, _, body = received.partition(b"\r\n\r\n")
        if framing == "chunks":
            assert body == b"5\r\n\x00body\r\n0\r\n\r\n"
            assert head.count(b"transfer-encoding: chunked") == 1
            assert b"content-length" not in head
        else:
            assert body == b"\x00body"
            assert head.count(b"content-length: 5") == 1
            assert b"transfer-encoding" not in head
        line = client.world.lines[-1]
        assert (line["bytes_in"], line["status"], line["engine_id"]) == (5, 200, "e")
        assert (line["endpoint"], line["model"]) == ("/engine/{engine_id}/{path}", None)

    run(test())


def test_an_answer_in_chunks_keeps_no_trailer() -> None:
    async def test() -> None:
        data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"
        client, _ = await ask([receive(), say(data), stall()])
        assert client.body == b"abc"
        assert not {b"transfer-encoding", b"content-length", b"trailer", b"x-t"} & set(client.headers)
        assert client.complete

    run(test())


@pytest.mark.parametrize("status", [200, 201, 206, 301, 400, 404, 409, 418, 429, 500, 503, 599])
def test_an_engines_own_words_pass_whatever_its_status(status: int) -> None:
    async def test() -> None:
        client, _ = await ask([receive(), say(answer(status, b'{"error":"no"}', JSON, b"retry-after: 7")), stall()])
        assert (client.status, client.body) == (status, b'{"error":"no"}')
        assert client.headers[b"retry-after"] == b"7"

    run(test())


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(status: int) -> None:
    async def test() -> None:
        client, _ = await ask([receive(), say(b"HTTP/1.1 %d X\r\netag: 1\r\n\r\n" % status), stall()])
        assert (client.status, client.body, client.complete) == (status, b"", True)
        assert b"content-length" not in client.headers

    run(test())


@pytest.mark.parametrize("status", [401, 403, 407])
def test_an_engine_that_refuses_flms_credential_is_at_fault(status: int) -> None:
    async def test() -> None:
        words = b"bad key " + SECRET.encode()
        client, _ = await ask([receive(), say(answer(status, words)), stall()], credential=SECRET)
        assert (client.status, client.code) == (502, "engine_error")
        assert SECRET not in client.error["message"]
        assert b"www-authenticate" not in client.headers

    run(test())


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 000 X\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n", b"HTTP/1.1 600 X\r\n\r\n",
     b"HTTP/1.1 999 X\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc"],
)  # fmt: skip
def test_an_answer_that_is_none_is_502(head: bytes) -> None:
    async def test() -> None:
        client, _ = await ask([receive(), say(head), stall()])
        assert (client.status, client.code) == (502, "engine_protocol_error")

    run(test())


@pytest.mark.parametrize("length", [b"010", b"0" * 5000 + b"10"], ids=["octal", "long"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_length_of_an_answer_is_written_anew(method: str, length: bytes) -> None:
    """`010` is eight for whoever takes a leading zero for octal: where the answer ends would be in doubt."""

    async def test() -> None:
        body = b"" if method == "HEAD" else b"0123456789"
        data = b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n\r\n" + body
        client, _ = await ask([receive(), say(data), stall()], method)
        assert (client.headers[b"content-length"], client.body) == (b"10", body)

    run(test())


def test_interim_answers_are_taken_out() -> None:
    async def test() -> None:
        client, _ = await ask([receive(), say(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + answer(200, b"ok")), stall()])
        assert (client.status, client.body) == (200, b"ok")
        assert b"link" not in client.headers

    run(test())


def test_an_answer_that_tells_flms_credential_has_it_covered() -> None:
    async def test() -> None:
        text = b'{"key":"' + SECRET.encode() + b'"}'
        client, _ = await ask([receive(), say(answer(200, text, b"x-key: " + SECRET.encode())), stall()],
                              credential=SECRET)  # fmt: skip
        assert client.body == b'{"key":"' + b"*" * len(SECRET) + b'"}'
        assert b"x-key" not in client.headers

    run(test())


def test_a_redirect_is_not_followed_but_translated() -> None:
    async def test() -> None:
        answers = {"/x": answer(307, b"", b"location: /y?z=1"), "/evil": answer(302, b"", b"location: http://other/")}
        async with ScriptedEngine([serve(answers)]) as e:
            world = World(engine(e.url), **ALL)
            client = await world.ask("GET", "/engine/e/x")
            assert (client.status, client.headers[b"location"]) == (307, b"/engine/e/y?z=1")
            client = await world.ask("GET", "/engine/e/evil")
            assert (client.status, b"location" in client.headers) == (302, False)
            assert [request.split()[1] for request in e.peers[0].requests] == [b"/x", b"/evil"]
            await world.app.aclose()

    run(test())


# --- refused before the engine is asked ------------------------------------------------------------------------------


async def refused(path: str, method: str = "GET", code: str = "", **more: Any) -> Client:
    settings = more.pop("settings", {})
    async with ScriptedEngine([serve({})]) as scripted:
        world = World(engine(scripted.url, **more.pop("facts", {})), **settings)
        client = await world.ask(method, path, **more)
        assert client.code == code
        assert scripted.peers == []
        await world.app.aclose()
        return client


@pytest.mark.parametrize(
    "name",
    ["f", "..", "127.0.0.1:22", "a@b", "%2e%2e", "%65", "E", "", "e%2Fx", "e" * 300, "\u0435", "e:80", "e\\", "http:"],
)
def test_only_engines_that_flm_knows_are_asked(name: str) -> None:
    async def test() -> None:
        client = await refused(f"/engine/{name}/x", code="engine_not_found", settings=ALL)
        assert client.status == 404
        assert len(client.error["message"]) < 600

    run(test())


@pytest.mark.parametrize("status", ["InstalledOnly", "ErrorNetwork", "ErrorApi"])
def test_an_engine_that_is_known_to_be_down_is_not_asked(status: str) -> None:
    async def test() -> None:
        facts = {"status": status, "last_error": "it is off"}
        client = await refused("/engine/e/x", code="engine_unavailable", facts=facts, settings=ALL)
        assert client.status == 503
        assert "it is off" in client.error["message"]
        assert client.headers[b"retry-after"] == b"5"

    run(test())


@pytest.mark.parametrize(
    "tail",
    ["../x", "x/../../y", "%2e%2e%2fx", "%252e%252e/x", "..%5cx", "/evil/", "x//y", "%00", "x%0d%0ay", "x;y", "x%23y",
     "%c0%ae%c0%ae/x", "x\\y", ".", "%ef%bc%8e%ef%bc%8e/x", "%", "%zz"],
)  # fmt: skip
def test_a_path_that_could_leave_the_engine_is_refused(tail: str) -> None:
    async def test() -> None:
        client = await refused(f"/engine/e/{tail}", code="invalid_request", settings=ALL)
        assert client.status == 400

    run(test())


dialled: list[Any] = []
sys.addaudithook(lambda event, arguments: dialled.append(arguments[1]) if event == "socket.connect" else None)

TAILS = st.lists(
    st.sampled_from(
        ["/", "//", "..", ".", "%2e", "%2E%2E", "%252e", "%2f", "%5c", "\\", "%00", "%0d%0a", ";", "%23", "a", "B",
         "%20", "%3A", ":", "@", "http:", "evil", "%c0%ae", "%c3%a9", "%ef%bc%8f", "?q=", "&", "[", "%41",
         "127.0.0.1:22"]
    )
).map("".join)  # fmt: skip


@given(tails=st.lists(TAILS, min_size=20, max_size=20))
@settings(max_examples=15, deadline=None)
def test_only_the_engine_is_ever_dialled_and_only_below_its_base(tails: list[str]) -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"ok"))]) as scripted:
            world = World(engine(scripted.url + "/base/x"), **ALL)
            dialled.clear()
            passed = [tail for tail in tails if (await world.ask("GET", "/engine/e/" + tail)).status == 200]
            assert all(address[:2] == ("127.0.0.1", scripted.port) for address in dialled)
            targets = [r.split(b" ")[1].decode() for peer in scripted.peers for r in peer.requests]
            assert len(targets) == len(passed)
            for target, tail in zip(targets, passed, strict=True):
                path, _, query = target.partition("?")
                assert posixpath.normpath(unquote(unquote(path))).startswith("/base/x")
                assert unquote(path) == "/base/x/" + unquote(tail.partition("?")[0])
                assert query == tail.partition("?")[2]
            await world.app.aclose()

    run(test())


def test_a_query_with_control_characters_is_refused() -> None:
    async def test() -> None:
        assert (await refused("/engine/e/x?a\x01", code="invalid_request", settings=ALL)).status == 400

    run(test())


def test_a_closed_route_is_403_and_says_how_to_open_it() -> None:
    async def test() -> None:
        client = await refused("/engine/e/shutdown", "POST", "route_disabled", body=b"x")
        assert client.status == 403
        assert "flm config set passthrough.open_routes 'e:POST /shutdown'" in client.error["message"]

    run(test())


def test_a_route_is_opened_and_closed_while_flm_runs() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"down"))]) as scripted:
            facts = engine(scripted.url)
            world = World(facts)
            statuses = [(await world.ask("POST", "/engine/e/shutdown")).status]
            for setting in ("e:POST /shutdown", "f:POST /shutdown"):
                world.publish(facts, passthrough_open_routes=setting)
                statuses.append((await world.ask("POST", "/engine/e/shutdown")).status)
            assert statuses == [403, 200, 403]
            await world.app.aclose()

    run(test())


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_body_that_would_have_to_be_inflated_is_refused(coding: str) -> None:
    async def test() -> None:
        headers = {"content-encoding": coding}
        client = await refused(
            "/engine/e/x", "POST", "unsupported_media_type", body=b"x", headers=headers, settings=ALL
        )
        assert client.status == 415

    run(test())


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    async def test() -> None:
        client = await refused("/engine/e/x", "POST", "payload_too_large", body=b"x" * 70_000,
                               settings={**ALL, "proxy_max_body_bytes": 1024})  # fmt: skip
        assert client.status == 413
        assert client.receives == 0

    run(test())


def test_a_key_that_was_written_into_the_address_reaches_nobody() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({})]) as scripted:
            world = World(engine(scripted.url), **ALL)
            encoded = "".join(f"%{ord(character):02x}" for character in world.key)
            for address in (
                f"/engine/e/x?api_key={world.key}",
                f"/engine/e/x?k=%66{world.key[1:]}",
                f"/engine/e/x?a=%00&k={encoded}",
                f"/engine/e/{world.key}",
                f"/engine/e/{encoded}",
            ):
                client = await world.ask("GET", address)
                assert (client.status, client.code) == (400, "invalid_request")
                assert world.key not in client.error["message"]
            assert scripted.peers == []
            assert world.key not in b"".join(world.raw).decode()

    run(test())


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "connect", "Trace"])
def test_tunnels_stay_refused(method: str) -> None:
    async def test() -> None:
        assert (await refused("/engine/e/x", method, "method_not_allowed", settings=ALL)).status == 405

    run(test())


@pytest.mark.parametrize("path", ["/engine/e/x", "/engine/unknown/x", "/engine/e/../x", "/engine/"])
def test_without_a_key_nothing_is_learnt(path: str) -> None:
    async def test() -> None:
        assert (await refused(path, code="invalid_api_key", key=None)).status == 401

    run(test())


def test_an_engine_of_a_kind_that_flm_does_not_know_is_501() -> None:
    async def test() -> None:
        assert (await refused("/engine/e/x", code="not_implemented", facts={"kind": "newer"})).status == 501

    run(test())


# --- faults ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_fails_before_its_head_is_answered_by_flm() -> None:
    async def test() -> None:
        client, _ = await ask([receive(), rst()])
        assert (client.status, client.code) == (502, "engine_error")

    run(test())


@pytest.mark.parametrize("framing", [b"content-length: 9", b"transfer-encoding: chunked"])
def test_an_engine_that_fails_in_its_answer_ends_it_without_an_end(framing: bytes) -> None:
    async def test() -> None:
        piece = b"3\r\nabc\r\n" if b"chunked" in framing else b"abc"
        async with ScriptedEngine([receive(), say(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + piece)]) as scripted:
            world = World(engine(scripted.url), **ALL)
            client = await world.ask("GET", "/engine/e/x")
            assert (client.status, client.body, client.complete) == (200, b"abc", False)
            line = world.lines[-1]
            assert (line["status"], line["error_type"], line["level"]) == (200, "engine_error", "error")
            await world.app.aclose()

    run(test())


def test_an_engine_that_is_late_is_504_and_says_what_raises_the_limit() -> None:
    async def test() -> None:
        async with ScriptedEngine([stall()]) as scripted:
            world = World(engine(scripted.url), **ALL, engine_first_byte_timeout_seconds=0.1)
            for body in (None, b"body"):
                client = await world.ask("POST", "/engine/e/x", body)
                assert (client.status, client.code) == (504, "engine_timeout")
                assert "(engine 'e'); " in client.error["message"]
                assert "engine.first_byte_timeout_seconds" in client.error["message"]
            await world.app.aclose()

    run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_that_stops_ends_an_exchange_without_a_word_among_the_engines(begun: bool) -> None:
    async def test() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc" if begun else b""
        async with ScriptedEngine([seen(b"half"), say(head), stall()]) as scripted:
            world = World(engine(scripted.url), **ALL)
            client = world.client("POST", "/engine/e/x", headers={"content-length": "100"}, hold=True)
            task = client.start()
            client.feed(b"half", more=True)
            await (await scripted.peer(0)).stalled.wait()
            if begun:
                await client.until(lambda c: c.messages != [] and c.body == b"abc")
            world.app.abort_streams(RequestError(ErrorKind.ENGINE_UNAVAILABLE, "FLM is stopping"))
            await task
            if begun:
                assert (client.status, client.body, client.complete) == (200, b"abc", False)
            else:
                assert (client.status, client.code, client.complete) == (503, "engine_unavailable", True)
            await scripted.peers[0].closed.wait()
            assert not [task for task in asyncio.all_tasks() if "_Sender" in repr(task)]
            await world.app.aclose()

    run(test())


def test_a_mistake_of_flm_in_sending_a_body_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async def broken(_upload: object, _piece: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("flm.upstream.pool.Upload.write", broken)
        async with ScriptedEngine([stall()]) as scripted:
            world = World(engine(scripted.url), **ALL)
            client = await world.ask("POST", "/engine/e/x", b"body")
            assert (client.status, client.code) == (500, "internal_error")
            await world.app.aclose()

    run(test())


def test_a_body_that_does_not_come_is_408_and_ends_the_engines_request() -> None:
    async def test() -> None:
        async with ScriptedEngine([seen(b"half"), stall()]) as scripted:
            world = World(engine(scripted.url), **ALL, proxy_body_idle_timeout_seconds=0.1)
            client = world.client("POST", "/engine/e/x", headers={"content-length": "100"}, hold=True)
            client.start()
            client.feed(b"half", more=True)
            assert client.task is not None
            await client.task
            assert (client.status, client.code) == (408, "request_timeout")
            assert client.headers[b"connection"] == b"close"
            peer = await scripted.peer(0)
            await peer.closed.wait()
            assert peer.received.endswith(b"\r\n\r\nhalf")
            await world.app.aclose()

    run(test())


def test_an_engine_that_reads_slowly_does_not_make_the_client_late() -> None:
    async def test() -> None:
        go = asyncio.Event()
        size = 32 * 1024 * 1024
        async with ScriptedEngine([until(go), seen(b"end"), say(answer(200, b"ok")), stall()]) as scripted:
            limits = {"proxy_max_body_bytes": size * 2, "proxy_body_total_timeout_seconds": 0.3}
            world = World(engine(scripted.url), **ALL, **limits)
            client = world.client("POST", "/engine/e/x", headers={"content-length": str(size + 3)}, hold=True)
            for _ in range(size // 65_536):
                client.feed(bytes(65_536), more=True)
            task = client.start()
            await asyncio.wait([task], timeout=0.6)  # twice what the client has
            go.set()
            await client.until(lambda c: c.receives > size // 65_536)
            await asyncio.wait([task], timeout=0.05)  # it takes its time, as it may
            client.feed(b"end", more=False)
            await task
            assert (client.status, client.body) == (200, b"ok")
            await world.app.aclose()

    run(test())


def test_a_chunked_answer_to_a_head_request_has_no_body() -> None:
    async def test() -> None:
        head = chunked(200, [], b"etag: 1").removesuffix(b"0\r\n\r\n")
        client, _ = await ask([receive(), say(head), stall()], "HEAD")
        assert (client.status, client.body, client.complete) == (200, b"", True)

    run(test())


def test_requests_without_a_body_share_a_connection() -> None:
    async def test() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"ok"))]) as scripted:
            world = World(engine(scripted.url), **ALL)
            for _ in range(3):
                assert (await world.ask("GET", "/engine/e/x")).body == b"ok"
            assert len(scripted.peers) == 1
            await asyncio.wait_for(world.app.aclose(), 5)

    run(test())

"""Detection of every kind against real sockets: three times in a row, in every state, among all that is no engine.

Engines are the demo engine's dialects, on ports of the kernel's choice; a dialect is told those ports in place of its
own, so that every kind looks at every port: another kind's engine, a decoy, its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from flm.config import DETECT_TIMEOUT_SECONDS, PROBE_TIMEOUT_SECONDS
from flm.demo import registry as demo
from flm.demo.server import Server
from flm.engines.base import Dialect, Verdict
from flm.engines.registry import DIALECTS
from flm.upstream.detect import Detected, Registered, detect_engines, identify
from flm.upstream.health import DEGRADED, HEALTHY, INSTALLED, UNREACHABLE, Thresholds
from tests.support.engine import (
    Peer,
    ScriptedEngine,
    Step,
    answer,
    chunked,
    fin,
    flood,
    receive,
    rst,
    say,
    serve,
    stall,
)
from tests.upstream.conftest import Run

HOME = "/home/nobody"
# The kinds that are looked for by themselves; `openai` is a fallback that any of them may satisfy.
KINDS = [kind for kind in DIALECTS if DIALECTS[kind].addresses({}, {})]
PATIENT = {"probe_timeout": 10.0, "total_timeout": 20.0}  # a busy machine is not a silent engine


class Moved:
    """A dialect whose engines listen elsewhere."""

    def __init__(self, kind: str, urls: Sequence[str]) -> None:
        self._dialect = DIALECTS[kind]
        self._urls = tuple(urls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dialect, name)

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        return self._urls

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ()

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return (f"{home}/{self._dialect.kind}",)


@asynccontextmanager
async def engine(
    kind: str, *, models: tuple[str, ...] = (), api_key: str | None = None, port: int = 0
) -> AsyncIterator[tuple[str, Server]]:
    """A demo engine of that kind in this very loop, and its URL."""
    server = Server(demo.create(kind, models, None, api_key))
    listener = await server.listen("127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", server
    finally:
        listener.close()
        await server.close()
        await listener.wait_closed()


async def look(
    urls: Iterable[str], previous: list[Detected] | None = None, kinds: Sequence[str] = KINDS, **options: Any
) -> list[Detected]:
    dialects: list[Dialect] = [Moved(kind, list(urls)) for kind in kinds]  # type: ignore[misc]
    defaults: dict[str, Any] = {"runnable": lambda path: False, "now": lambda: 1000.0, **PATIENT}
    return await detect_engines(dialects, {}, "linux", HOME, previous=previous or (), **(defaults | options))


def rows(found: Iterable[Detected]) -> list[tuple[str, str, str]]:
    return [(each.kind, each.url, each.state.status) for each in found]


async def three_times(urls: Iterable[str], **options: Any) -> list[list[Detected]]:
    """Three looks, each knowing the one before."""
    found: list[list[Detected]] = []
    urls = list(urls)
    for _ in range(3):
        found.append(await look(urls, found[-1] if found else None, **options))
    return found


# --- what is no engine ------------------------------------------------------------------------------------------------


async def drip(peer: Peer) -> None:
    """A good beginning, then a byte a second, for ever."""
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n")
    while True:
        await peer.send(b" ")
        await asyncio.sleep(1)


async def drip_head(peer: Peer) -> None:
    while True:
        await peer.send(b"H")
        await asyncio.sleep(1)


async def echo(peer: Peer) -> None:
    """A web server that says 200 and gives back what it was asked."""
    while True:
        while (request := peer.next_request()) is None:
            if not await peer.receive_some():
                return
        await peer.send(answer(200, request, b"content-type: text/plain"))


async def echo_json(peer: Peer) -> None:
    while True:
        while (request := peer.next_request()) is None:
            if not await peer.receive_some():
                return
        method, path, _ = request.split(b" ", 2)
        body = b'{"method":"%s","path":"%s","url":"http://127.0.0.1%s","headers":{"accept-encoding":"identity"}}'
        await peer.send(answer(200, body % (method, path, path), b"content-type: application/json"))


def everywhere(body: bytes, *headers: bytes) -> list[Step]:
    """200 and this, whatever is asked."""
    return [serve({}, answer(200, body, *(headers or (b"content-type: application/json",))))]


HTML = b"content-type: text/html"
DECOYS: dict[str, list[Step]] = {
    "html": everywhere(b"<!doctype html><html><title>Welcome</title></html>", HTML),
    "html by uvicorn": everywhere(b"<html></html>", HTML, b"server: uvicorn"),
    "single page app": everywhere(b'<html><script>{"version":"1","lmstudio":true}</script></html>', HTML),
    "empty": everywhere(b"", HTML),
    "json {}": everywhere(b"{}"),
    "json []": everywhere(b"[]"),
    "json true": everywhere(b"true"),
    "json ok": everywhere(b'{"status":"ok"}'),
    "json version": everywhere(b'{"version":"1.2.3"}'),
    "json status and version": everywhere(b'{"status":"ok","version":"1.2.3","healthy":true}'),
    "json version by uvicorn": everywhere(b'{"version":"1.2.3"}', b"server: uvicorn"),
    "json of every shape": everywhere(
        b'{"status":"ok","version":"1.2.3","build_info":"b1","object":"list","data":[],"models":[],"lmstudio":true}',
        b"server: uvicorn",
    ),
    "json data": everywhere(b'{"object":"list","data":[]}'),
    "json error": everywhere(b'{"error":"Unexpected endpoint or method. (GET /x)"}', b"x-powered-by: Express"),
    "json and more than a greeting": everywhere(b'{"lmstudio":true,"ok":true}'),
    "json and no greeting": everywhere(b'{"lmstudio":false}'),
    "text of another": everywhere(b"Ollama is running", b"content-type: text/plain"),
    "echo": [echo],
    "echo as json": [echo_json],
    "404": [serve({}, answer(404, b"404 page not found"))],
    "401": [serve({}, answer(401, b'{"error":"Unauthorized"}', b"www-authenticate: Basic"))],
    "500": [serve({}, answer(500, b"oops"))],
    "503 page": [serve({}, answer(503, b"<html>Service Unavailable</html>", HTML))],
    "503 json": [serve({}, answer(503, b'{"message":"no healthy upstream"}'))],
    "429": [serve({}, answer(429, b"slow down"))],
    "silent": [stall()],
    "reads and says nothing": [receive(), stall()],
    "drip": [receive(), drip],
    "drip in the head": [receive(), drip_head],
    "10 MB": [serve({}, answer(200, b'{"version":"' + b"1" * 10_000_000 + b'"}'))],
    "10 MB in chunks": [serve({}, chunked(200, [b'{"version":"', *[b"1" * 1_000_000] * 10, b'"}']))],
    "endless": [
        receive(),
        say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        flood(b"10000\r\n" + b"x" * 65_536 + b"\r\n", 100_000_000),
    ],
    "reset": [rst()],
    "reset when asked": [receive(), rst()],
    "closes": [receive(), fin()],
    "tls": [receive(), say(b"\x15\x03\x03\x00\x02\x02\x50"), fin()],
    "ssh": [say(b"SSH-2.0-OpenSSH_9.6\r\n"), stall()],
    "redis": [say(b"-ERR wrong number of arguments for 'get' command\r\n"), stall()],
    "garbage": [say(bytes(range(256)) * 4), stall()],
    "flm": everywhere(b'{"status":"ok"}', b"server: flm"),
}
# Its words and its mark: FLM in front of an engine, which would otherwise find itself.
MARKED = {
    "/lmstudio-greeting": answer(200, b'{"lmstudio":true}', b"server: flm"),
    "/api/version": answer(200, b'{"version":"0.34.4"}', b"server: flm"),
    "/": answer(200, b"Ollama is running", b"server: flm"),
    "/health": answer(200, b'{"status":"ok"}', b"server: flm"),
    "/version": answer(200, b'{"version":"0.32.0"}', b"server: flm"),
    "/v1/models": answer(200, b'{"object":"list","data":[]}', b"server: flm"),
}


@pytest.mark.parametrize("name", DECOYS)
def test_no_kind_is_seen_in_a_decoy(run: Run, name: str) -> None:
    async def main() -> None:
        async with ScriptedEngine(DECOYS[name]) as decoy:
            for kind in KINDS:
                seen = await identify(decoy.url, DIALECTS[kind], probe_timeout=0.3)
                assert seen.verdict in (Verdict.FOREIGN, Verdict.SILENT), kind
                assert seen.detail, kind

    run(main())


def test_flm_does_not_find_itself(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve(MARKED, answer(404, b"", b"server: flm"))]) as itself:
            assert await look([itself.url]) == []
            for kind in DIALECTS:
                seen = await identify(itself.url, DIALECTS[kind])
                assert (seen.verdict, seen.detail) == (Verdict.FOREIGN, "FLM itself answers there"), kind

    run(main())


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_an_engine_is_not_followed(run: Run, status: int) -> None:
    async def main() -> None:
        for kind in KINDS:
            async with engine(kind) as (url, server):
                moved = answer(status, b"", b"location: " + url.encode())
                async with ScriptedEngine([serve({}, moved)]) as other:
                    assert await look([other.url]) == [], kind
                assert server.accepted == 0, "nobody went there"

    run(main())


# --- each kind among all ----------------------------------------------------------------------------------------------


def test_every_kind_is_found_on_its_port_and_on_everybody_elses(run: Run) -> None:
    """The matrix of kinds and ports: each kind looks at each port, three times in a row."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            urls = {kind: (await stack.enter_async_context(engine(kind)))[0] for kind in KINDS}
            for found in await three_times(urls.values()):
                assert rows(found) == [(kind, urls[kind], HEALTHY) for kind in sorted(KINDS)]
                assert [each.id for each in found] == sorted(KINDS)

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_of_another_kind_on_its_port_is_not_it(run: Run, kind: str) -> None:
    async def main() -> None:
        for other in KINDS:
            async with engine(other) as (url, _):
                for found in await three_times([url], kinds=[kind]):
                    assert rows(found) == ([(kind, url, HEALTHY)] if kind == other else []), other

    run(main())


@pytest.mark.timeout(60)
def test_with_every_decoy_at_once_every_engine_is_found_in_time(run: Run) -> None:
    """The bounds as they are, everything that misbehaves beside every engine."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            urls = {kind: (await stack.enter_async_context(engine(kind)))[0] for kind in KINDS}
            decoys = [await stack.enter_async_context(ScriptedEngine(script)) for script in DECOYS.values()]
            every = [*(decoy.url for decoy in decoys), *urls.values(), "http://127.0.0.1:1"]
            bounds = {"probe_timeout": PROBE_TIMEOUT_SECONDS, "total_timeout": DETECT_TIMEOUT_SECONDS}
            began = time.monotonic()
            found = await look(every, **bounds)
            took = time.monotonic() - began
            assert [(each.kind, each.url) for each in found] == [(kind, urls[kind]) for kind in sorted(KINDS)]
            assert took < 5

    run(main())


# --- every state ------------------------------------------------------------------------------------------------------

LOADING_MODEL = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
# What each kind says while it loads or has too much to do. LM Studio says nothing of the kind: it lets wait.
LOADING = {
    "llamacpp": serve({}, answer(503, LOADING_MODEL, b"server: llama.cpp")),
    "ollama": serve({}, answer(503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}')),
    "vllm": serve(
        {
            "/version": answer(200, b'{"version":"0.32.0"}', b"server: uvicorn"),
            "/v1/models": answer(200, b'{"object":"list","data":[{"id":"m","owned_by":"vllm"}]}', b"server: uvicorn"),
            "/health": answer(503, b"", b"server: uvicorn"),
        }
    ),
}


@pytest.mark.parametrize("kind", LOADING)
def test_one_that_loads_or_is_busy_is_degraded_and_comes_back(run: Run, kind: str) -> None:
    async def main() -> None:
        async with ScriptedEngine([LOADING[kind]]) as busy:
            for found in await three_times([busy.url]):
                assert rows(found) == [(kind, busy.url, DEGRADED)]
            port = busy.port
        async with engine(kind, port=port) as (url, _):
            before = found
            statuses = []
            for _ in range(3):
                before = await look([url], before)
                statuses += rows(before)
            assert statuses == [(kind, url, DEGRADED)] * 2 + [(kind, url, HEALTHY)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_whose_model_is_cold(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(kind, models=("demo-cold",)) as (url, _):
            for found in await three_times([url]):
                assert rows(found) == [(kind, url, HEALTHY)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_wants_a_key_is_found_without_and_with_a_wrong_one(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(kind, api_key=None if kind == "ollama" else "sekret") as (url, _):
            for found in await three_times([url]):
                assert rows(found) == [(kind, url, HEALTHY)]
            for credential in (None, "wrong", "sekret"):
                registered = [Registered("mine", kind, url, credential)]
                for found in await three_times([url], registered=registered):
                    assert [(each.id, *row) for each, row in zip(found, rows(found), strict=True)] == [
                        ("mine", kind, url, HEALTHY)
                    ]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_only_installed(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(kind) as (url, _):
            pass
        for found in await three_times([url], runnable=lambda path: path == f"{HOME}/{kind}"):
            assert rows(found) == [(kind, url, INSTALLED)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_whose_port_another_program_took_is_only_installed(run: Run, kind: str) -> None:
    async def main() -> None:
        async with ScriptedEngine(DECOYS["json ok"]) as other:
            for found in await three_times([other.url], runnable=lambda path: path == f"{HOME}/{kind}"):
                assert rows(found) == [(kind, other.url, INSTALLED)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_dies_is_seen_to_and_is_found_again(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(kind) as (url, _):
            found = await look([url])
            assert rows(found) == [(kind, url, HEALTHY)]
        for status in (HEALTHY, HEALTHY, UNREACHABLE):
            found = await look([url], found, thresholds=Thresholds(failures=3))
            assert rows(found) == [(kind, url, status)]
            assert "refused" in (found[0].state.last_error or "")
        async with engine(kind, port=int(url.rpartition(":")[2])):
            found = await look([url], found)
            assert rows(found) == [(kind, url, HEALTHY)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_a_kind_keep_their_names(run: Run, kind: str) -> None:
    async def main() -> None:
        async with engine(kind) as (one, _), engine(kind) as (two, _):
            urls = sorted((one, two), key=lambda url: int(url.rpartition(":")[2]))
            for found in await three_times(urls[::-1]):
                assert [(each.id, each.url) for each in found] == [(kind, urls[0]), (f"{kind}-2", urls[1])]
                assert {each.state.status for each in found} == {HEALTHY}

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_one_is_degraded_and_not_lost(run: Run, kind: str) -> None:
    ticks = iter(range(0, 10_000_000, 2))  # each answer takes two seconds, by this clock

    async def main() -> None:
        async with engine(kind) as (url, _):
            for found in await three_times([url], clock=lambda: float(next(ticks))):
                assert rows(found) == [(kind, url, DEGRADED)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_known_is_asked_by_its_own_kind_alone(run: Run, kind: str) -> None:
    """Some log an error for each question that is not meant for them, and a proxy asks every few seconds."""

    async def main() -> None:
        async with engine(kind) as (url, server):
            found = await look([url])
            assert server.accepted == len(KINDS)
            for _ in range(2):
                before = server.accepted
                found = await look([url], found)
                assert rows(found) == [(kind, url, HEALTHY)]
                assert server.accepted == before + 1
            port = int(url.rpartition(":")[2])
        other = next(each for each in KINDS if each != kind)
        async with engine(other, port=port):  # in the very round in which it is another, all are asked
            assert rows(await look([url], found)) == [(other, url, HEALTHY)]

    run(main())

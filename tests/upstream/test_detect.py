"""Detection against real sockets: engines, and everything that only looks like one, in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

import pytest

from flm.config import DETECT_TIMEOUT_SECONDS, PROBE_BODY_BYTES, PROBE_TIMEOUT_SECONDS, Settings
from flm.engines import registry
from flm.engines.base import DialectDefaults, Identifying, Identity, Listing, ListingError, Probe, Translation, Verdict
from flm.engines.call import Call
from flm.snapshot import Model
from flm.upstream.detect import Detected, Registered, detect_engines, executable, identify, list_models
from flm.upstream.health import DEGRADED, HEALTHY, INSTALLED, UNREACHABLE, WRONG, Thresholds
from tests.support.engine import Peer, ScriptedEngine, Step, answer, receive, rst, say, serve, stall, until
from tests.upstream.conftest import Run

PATIENT = {"probe_timeout": 10.0, "total_timeout": 20.0}  # a busy machine is not a silent engine
QUICK = {"probe_timeout": 0.2, "total_timeout": 0.4}


class Toy(DialectDefaults):
    """A kind of engine for tests: at `/id` it says its kind and version, at `/list` one model a line."""

    idle_seconds = 5.0

    def __init__(self, kind: str = "toy", says: bytes | None = None) -> None:
        self.kind = self.label = kind
        self.says = says or kind.encode()

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        return tuple(environment.get(self.kind, "").split())

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return (f"{home}/{system}/{self.kind}",)

    def identify(self) -> Identifying:
        said = yield Probe("/id")
        if said.status == 0:
            return Identity(Verdict.SILENT, detail="silent")
        if said.status in (429, 503):
            return Identity(Verdict.BUSY, detail=f"busy: {said.status}")
        if said.status != 200 or not said.body.startswith(self.says):
            return Identity(Verdict.FOREIGN, detail="not a toy")
        version = yield Probe("/version", "POST", b"{}")
        return Identity(Verdict.RECOGNISED, version.body.decode() or None)

    def models(self) -> Listing:
        listed = yield Probe("/list")
        if listed.status != 200:
            raise ListingError(f"/list answered {listed.status}")
        return tuple(Model(name) for name in listed.body.decode().split())

    def begin(self, call: Call) -> Translation:
        raise NotImplementedError


def toy(kind: bytes = b"toy", version: bytes = b"1.2") -> ScriptedEngine:
    return ScriptedEngine([serve({"/id": answer(200, kind), "/version": answer(200, version)})])


async def detect(dialects: Iterable[Toy], environment: Mapping[str, str], **options: object) -> list[Detected]:
    defaults: dict[str, object] = {"runnable": lambda path: False, "now": lambda: 1000.0, **PATIENT}
    return await detect_engines(list(dialects), environment, "linux", "/home/u", **(defaults | options))  # type: ignore[arg-type]


def rows(found: list[Detected]) -> list[tuple[str, str, str]]:
    return [(engine.id, engine.url, engine.state.status) for engine in found]


# --- one address -----------------------------------------------------------------------------------------------------


def test_an_engine_is_identified_over_one_connection(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            ticks = count(step=0.1)
            seen = await identify(engine.url, Toy(), credential="tok", clock=lambda: next(ticks))
            assert (seen.verdict, seen.version, seen.listening) == (Verdict.RECOGNISED, "1.2", True)
            assert seen.latency_ms == pytest.approx(100)
            assert len(engine.peers) == 1
            first, second = engine.peers[0].requests
            assert first.startswith(b"GET /id HTTP/1.1\r\n")
            assert b"content-type" not in first
            assert second.startswith(b"POST /version HTTP/1.1\r\n")
            assert second.endswith(b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
            assert all(b"authorization: Bearer tok\r\n" in request for request in (first, second))
            await engine.peers[0].closed.wait()

    run(main())


def test_the_slowest_answer_is_the_latency(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            times = iter([0.0, 2.0, 2.0, 2.1])
            seen = await identify(engine.url, Toy(), clock=lambda: next(times))
            assert seen.latency_ms == pytest.approx(2000)

    run(main())


def test_only_registered_engines_are_looked_at_unless_others_are_to_be_discovered(run: Run) -> None:
    async def main() -> None:
        async with toy() as usual, toy() as own:
            registered = [Registered("mine", "toy", own.url)]
            environment = {"toy": usual.url}
            both = rows(await detect([Toy()], environment, registered=registered))
            assert {url for _, url, _ in both} == {usual.url, own.url}
            only = rows(
                await detect([Toy()], environment, registered=registered, discover=False, runnable=lambda _: True)
            )
            assert only == [("mine", own.url, "RunningHealthy")]
            assert len(usual.peers) == 1

    run(main())


def test_a_refused_connection_says_that_nothing_listens(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            await engine.stop_listening()
            seen = await identify(engine.url, Toy(), installed=True)
            assert (seen.verdict, seen.listening, seen.installed) == (Verdict.SILENT, False, True)
            assert seen.detail is not None
            assert engine.url in seen.detail

    run(main())


@pytest.mark.parametrize("url", ["nonsense", "http://u:p@h", "http://[", "ftp://h"])
def test_an_unusable_url_is_silent(run: Run, url: str) -> None:
    async def main() -> None:
        seen = await identify(url, Toy())
        assert (seen.verdict, seen.listening) == (Verdict.SILENT, False)

    run(main())


async def trickle(peer: Peer) -> None:
    """Something every now and then, for ever."""
    while True:
        await peer.send(b"1\r\na\r\n")
        await asyncio.sleep(0.01)


PAGE = answer(200, b"<html>hello</html>", b"content-type: text/html")
# Everything that may listen on an engine's port and is none.
LISTENERS: dict[str, list[Step]] = {
    "web server": [serve({}, PAGE)],
    "json server": [serve({}, answer(200, b"{}", b"content-type: application/json"))],
    "empty 200": [serve({}, answer(200, b""))],
    "errors": [serve({}, answer(500, b"oops"))],
    "flm": [serve({}, answer(200, b'{"status":"ok"}', b"server: flm"))],
    "silent": [stall()],
    "trickle": [receive(), say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), trickle],
    "huge": [serve({}, answer(200, b'{"version":"' + b"1" * 10_000_000 + b'"}'))],
    "reset": [rst()],
    "reset after the request": [receive(), rst()],
    "garbage": [say(b"\x00\x01\x02" * 100)],
    "banner": [say(b"220 mail ESMTP\r\n"), stall()],
}


@pytest.mark.parametrize("name", LISTENERS)
def test_no_real_kind_of_engine_is_seen_where_there_is_none(run: Run, name: str) -> None:
    async def main() -> None:
        async with ScriptedEngine(LISTENERS[name]) as other:
            for dialect in registry.DIALECTS.values():
                seen = await identify(other.url, dialect, probe_timeout=0.2)
                assert seen.verdict in (Verdict.FOREIGN, Verdict.SILENT), dialect.kind
                assert seen.detail

    run(main())


def test_an_answer_that_is_too_large_is_none(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({}, answer(200, b"toy" + bytes(PROBE_BODY_BYTES)))]) as other:
            seen = await identify(other.url, Toy())
            assert seen.verdict is Verdict.SILENT
            assert seen.detail is not None
            assert str(PROBE_BODY_BYTES) in seen.detail
            await other.peers[0].closed.wait()

    run(main())


def test_a_redirect_is_not_followed(run: Run) -> None:
    async def main() -> None:
        async with toy() as target:
            moved = answer(302, b"", b"location: " + target.url.encode() + b"/id")
            async with ScriptedEngine([serve({}, moved)]) as other:
                for dialect in (Toy(), *registry.DIALECTS.values()):
                    assert (await identify(other.url, dialect)).verdict is Verdict.FOREIGN
            assert target.peers == []

    run(main())


# --- all addresses ----------------------------------------------------------------------------------------------------


def test_whatever_listens_detection_ends_in_time_and_finds_nothing(run: Run) -> None:
    async def main() -> None:
        others = [ScriptedEngine(script) for script in LISTENERS.values()]
        for other in others:
            await other.__aenter__()
        urls = " ".join(other.url for other in others)
        began = time.monotonic()
        assert await detect([Toy("a"), Toy("b")], {"a": urls, "b": urls}, **QUICK) == []
        assert time.monotonic() - began < 3
        for other in others:
            await other.__aexit__(None, None, None)

    run(main())


def test_the_bounds_leave_room_below_five_seconds() -> None:
    assert DETECT_TIMEOUT_SECONDS <= 4.5
    assert Settings().engine_degraded_latency_ms / 1000 < PROBE_TIMEOUT_SECONDS < DETECT_TIMEOUT_SECONDS
    assert PROBE_BODY_BYTES < 10_000_000


def test_engines_are_named_by_kind_and_port(run: Run) -> None:
    async def main() -> None:
        async with toy() as one, toy() as two, toy() as three, toy(b"car") as car:
            urls = sorted((one, two, three), key=lambda engine: engine.port)
            environment = {"toy": f"{three.url} {car.url} {one.url} {two.url}", "car": car.url}
            found = await detect([Toy(), Toy("car")], environment)
            expected = [("car", car.url), *zip(("toy", "toy-2", "toy-3"), (engine.url for engine in urls), strict=True)]
            assert [(engine.id, engine.url) for engine in found] == expected
            assert all(engine.state.status == HEALTHY and engine.source == "detected" for engine in found)
            assert {(engine.state.version, engine.state.checked_at) for engine in found} == {("1.2", 1000.0)}

            await urls[0].stop_listening()  # the names of the others stay, and so does its own for a while
            again = await detect([Toy(), Toy("car")], environment, previous=found)
            assert [(engine.id, engine.url) for engine in again] == expected
            environment["toy"] = f"{urls[1].url} {urls[2].url}"
            again = await detect([Toy(), Toy("car")], environment, previous=found)
            assert [engine.id for engine in again] == ["car", "toy-2", "toy-3"]

    run(main())


def test_one_address_is_one_engine(run: Run) -> None:
    async def main() -> None:
        async with toy(b"toycar") as both:
            loopback = f"http://localhost:{both.port}"
            environment = {"toy": f"{both.url} {both.url}/ {loopback}", "toycar": both.url}
            found = await detect([Toy(), Toy("toycar")], environment)
            assert rows(found) == [("toy", both.url, HEALTHY)]
            found = await detect([Toy("toycar"), Toy()], environment)
            assert rows(found) == [("toycar", both.url, HEALTHY)]
            assert await detect([Toy("toycar"), Toy()], {"toy": "http://[::1]:1", "toycar": "http://[::1]:1"}) == []

    run(main())


def test_an_engine_on_ipv6_loopback_is_found(run: Run) -> None:
    async def main() -> None:
        scripts = [serve({"/id": answer(200, b"toy"), "/version": answer(200, b"")})]
        async with ScriptedEngine(scripts, host="::1") as engine:
            urls = f"http://127.0.0.1:{engine.port} {engine.url}"
            assert rows(await detect([Toy()], {"toy": urls})) == [("toy", engine.url, HEALTHY)]

    run(main())


def test_slow_is_degraded_and_busy_is_degraded(run: Run) -> None:
    async def main() -> None:
        ticks = count(step=1.6)
        async with toy() as slow:
            found = await detect([Toy()], {"toy": slow.url}, clock=lambda: next(ticks))
            assert rows(found) == [("toy", slow.url, DEGRADED)]
        async with ScriptedEngine([serve({}, answer(503, b"loading"))]) as busy:
            found = await detect([Toy()], {"toy": busy.url})
            assert rows(found) == [("toy", busy.url, DEGRADED)]
            assert found[0].state.last_error == "busy: 503"

    run(main())


def test_installed_and_not_running(run: Run) -> None:
    looked: list[str] = []

    def runnable(path: str) -> bool:
        looked.append(path)
        return path == "/home/u/linux/toy"

    async def main() -> None:
        async with toy(b"car") as web:
            environment = {"toy": f"http://127.0.0.1:1 {web.url}", "other": "http://127.0.0.1:1"}
            found = await detect([Toy(), Toy("other")], environment, runnable=runnable)
            assert rows(found) == [("toy", "http://127.0.0.1:1", INSTALLED)]
            assert set(looked) == {"/home/u/linux/toy", "/home/u/linux/other"}
        async with toy() as running:
            found = await detect([Toy()], {"toy": f"http://127.0.0.1:1 {running.url}"}, runnable=runnable)
            assert rows(found) == [("toy", running.url, HEALTHY)]

    run(main())


def test_something_else_on_its_port_is_still_installed_only(run: Run) -> None:
    async def main() -> None:
        async with toy(b"car") as web:
            found = await detect([Toy()], {"toy": web.url}, runnable=lambda path: True)
            assert rows(found) == [("toy", web.url, INSTALLED)]
            assert found[0].state.last_error == "not a toy"

    run(main())


def test_a_registered_engine_is_always_listed_under_its_own_name(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine, toy(b"car") as wrong, toy() as detected:
            registered = [
                Registered("toy", "toy", engine.url, "tok"),
                Registered("down", "toy", "http://127.0.0.1:1"),
                Registered("wrong", "toy", wrong.url),
                Registered("elsewhere", "car", engine.url),
            ]
            environment = {"toy": f"{engine.url} {detected.url}"}
            found = await detect([Toy()], environment, registered=registered, runnable=lambda path: False)
            assert rows(found) == [
                ("down", "http://127.0.0.1:1", UNREACHABLE),
                ("toy", engine.url, HEALTHY),
                ("toy-2", detected.url, HEALTHY),
                ("wrong", wrong.url, WRONG),
            ]
            assert [item.source for item in found] == ["registered", "registered", "detected", "registered"]
            assert len(engine.peers) == 1
            assert b"authorization: Bearer tok" in engine.peers[0].requests[0]
            assert b"authorization" not in detected.peers[0].requests[0]
            assert "tok'" not in repr(registered)

    run(main())


def test_a_program_here_says_nothing_about_an_engine_elsewhere(run: Run) -> None:
    async def main() -> None:
        registered = [Registered("far", "toy", "http://far.invalid:1"), Registered("near", "toy", "http://localhost:1")]
        found = await detect([Toy()], {}, registered=registered, runnable=lambda path: True)
        assert [(engine.id, engine.state.status) for engine in found] == [("far", UNREACHABLE), ("near", INSTALLED)]

    run(main())


def test_an_engine_that_dies_fails_and_is_forgotten(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            environment = {"toy": engine.url}
            found = await detect([Toy()], environment)
            await engine.stop_listening()
        statuses = []
        for _ in range(8):
            found = await detect([Toy()], environment, previous=found)
            statuses.append(found[0].state.status if found else None)
        assert statuses == [HEALTHY, HEALTHY, UNREACHABLE, UNREACHABLE, UNREACHABLE, UNREACHABLE, None, None]

    run(main())


def test_an_installed_engine_that_dies_becomes_installed_only_and_comes_back(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            environment, port = {"toy": engine.url}, engine.port
            found = await detect([Toy()], environment, runnable=lambda path: True)
        statuses = []
        for _ in range(5):
            found = await detect([Toy()], environment, previous=found, runnable=lambda path: True)
            statuses.append(found[0].state.status)
        assert statuses == [HEALTHY, HEALTHY, UNREACHABLE, INSTALLED, INSTALLED]
        async with ScriptedEngine([serve({"/id": answer(200, b"toy")}, answer(200, b"2"))], port=port):
            found = await detect([Toy()], environment, previous=found, runnable=lambda path: True)
            assert rows(found) == [("toy", environment["toy"], HEALTHY)]

    run(main())


def test_another_kind_takes_over_an_address(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            environment, port = {"toy": engine.url, "car": engine.url}, engine.port
            found = await detect([Toy(), Toy("car")], environment)
        async with ScriptedEngine([serve({"/id": answer(200, b"car")}, answer(200, b"2"))], port=port):
            found = await detect([Toy(), Toy("car")], environment, previous=found)
            assert rows(found) == [("car", environment["car"], HEALTHY)]

    run(main())


def test_thresholds_are_passed_on(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            found = await detect([Toy()], {"toy": engine.url})
            await engine.stop_listening()
        found = await detect([Toy()], {"toy": found[0].url}, previous=found, thresholds=Thresholds(failures=1))
        assert found[0].state.status == UNREACHABLE

    run(main())


def test_a_cancelled_detection_leaves_no_connection(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([stall()]) as silent:
            task = asyncio.create_task(detect([Toy()], {"toy": silent.url}, probe_timeout=60, total_timeout=60))
            peer = await silent.peer(0)
            await peer.stalled.wait()
            task.cancel()
            await asyncio.wait({task}, timeout=5)
            assert task.cancelled()
            await peer.closed.wait()

    run(main())


def test_only_a_file_that_may_be_run_is_a_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    assert not executable(str(program))
    program.write_text("")
    program.chmod(0o755)
    assert executable(str(program))
    assert not executable(str(tmp_path))


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_are_listed(run: Run) -> None:
    async def main() -> None:
        async with ScriptedEngine([serve({"/list": answer(200, b"a b:1")})]) as engine:
            assert await list_models(engine.url, Toy(), credential="tok") == (Model("a"), Model("b:1"))
            assert b"authorization: Bearer tok" in engine.peers[0].requests[0]
            await engine.peers[0].closed.wait()

    run(main())


def test_a_list_that_does_not_come_says_why(run: Run) -> None:
    async def main() -> None:
        async with toy() as engine:
            with pytest.raises(ListingError, match="/list answered 404"):
                await list_models(engine.url, Toy())
            await engine.stop_listening()
            with pytest.raises(ListingError, match="refused"):
                await list_models(engine.url, Toy())
        with pytest.raises(ListingError, match="URL"):
            await list_models("nonsense", Toy())
        never = asyncio.Event()
        async with ScriptedEngine([receive(), until(never)]) as engine:
            with pytest.raises(ListingError, match=r"within 0\.05 s"):
                await list_models(engine.url, Toy(), total_timeout=0.05)
            with pytest.raises(ListingError, match=r"not done within 0\.3 s"):
                await list_models(engine.url, Toy(), probe_timeout=0.3)

    run(main())

"""Engines: found, registered, removed; what is cached and for how long; what is never taken for an engine."""

from __future__ import annotations

import asyncio
import logging
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from flm.engines.ollama import Ollama
from flm.engines.registry import DIALECTS
from flm.errors import CommandCode, CommandError
from flm.services import engines as module
from flm.services.demo import DemoService
from flm.services.engines import Engine, EngineService
from flm.services.registration import EngineTimeouts
from flm.store import engines as rows
from flm.store.database import open_config, open_security
from flm.store.folder import Folder
from flm.store.settings import put
from tests.runtime.harness import running
from tests.support.demo import Demo, demo_engine

CREDENTIAL = "canary-credential-7f3a"


class OnlyWhereWeSay(Ollama):
    """This machine may have engines on the usual ports, or their programs installed."""

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        return (environment["OLLAMA_HOST"],)

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ()


@pytest.fixture(autouse=True)
def only_engines_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIALECTS", {"ollama": OnlyWhereWeSay(), "openai": DIALECTS["openai"]})


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that nothing listens on while the block lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


class Clock:
    """Unix time that moves when told."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


def service(folder: Folder, engine: Demo | None = None, clock: Clock | None = None) -> EngineService:
    """One whose only engine to be found is `engine`, or none."""
    environment = {"OLLAMA_HOST": engine.url if engine else "http://127.0.0.1:1"}
    return EngineService(folder, environment, clock or Clock())


def added(folder: Folder, url: str, **arguments: object) -> Engine:
    return asyncio.run(service(folder).add("gpu1", "openai", url, **arguments))  # type: ignore[arg-type]


class TestDetecting:
    def test_one_that_runs(self, folder: Folder) -> None:
        with demo_engine("ollama") as engine:
            (found,) = asyncio.run(service(folder, engine).detect_engines())
        assert (found.id, found.kind, found.url) == ("ollama", "ollama", engine.url)
        assert (found.status, found.source, found.last_error) == ("RunningHealthy", "detected", None)
        assert found.checked_at == "2026-11-18T11:06:40Z"
        assert found.version
        assert found.latency_ms

    def test_none(self, folder: Folder) -> None:
        assert asyncio.run(service(folder).detect_engines("openai")) == ()

    def test_of_one_kind(self, folder: Folder) -> None:
        with demo_engine("ollama") as engine:
            asked = service(folder, engine)
            assert len(asyncio.run(asked.detect_engines("ollama"))) == 1
            assert asyncio.run(asked.detect_engines("openai")) == ()

    def test_an_unknown_kind(self, folder: Folder) -> None:
        with pytest.raises(CommandError, match="known kinds: ollama, openai") as refused:
            asyncio.run(service(folder).detect_engines("nonsense"))
        assert refused.value.code is CommandCode.ENGINE_NOT_FOUND

    def test_what_was_seen_is_served_until_it_is_old(self, folder: Folder) -> None:
        clock = Clock()
        with demo_engine("ollama") as engine:
            asked = service(folder, engine, clock)
            asyncio.run(asked.detect_engines())
            before = len(engine.requests())
            clock.now += 30
            (cached,) = asyncio.run(asked.detect_engines())
            assert len(engine.requests()) == before
            assert cached.checked_at == "2026-11-18T11:06:40Z"
            clock.now += 0.5
            (current,) = asyncio.run(asked.detect_engines())
            assert len(engine.requests()) > before
            assert current.checked_at == "2026-11-18T11:07:10.500Z"

    def test_what_another_program_spoiled_is_looked_for_again(self, folder: Folder) -> None:
        async def spoil() -> None:
            async with await open_config(folder) as config, config.transaction() as transaction:
                await transaction.change("UPDATE engines_cache SET models = '['")

        with demo_engine("ollama") as engine:
            asked = service(folder, engine)
            (before,) = asyncio.run(asked.list())
            asyncio.run(spoil())
            (after,) = asyncio.run(asked.list())
        assert (after.id, after.status) == (before.id, before.status)

    def test_what_is_current_in_part_is_looked_for_whole(self, folder: Folder) -> None:
        """A proxy that checked one engine alone leaves rows of different age: the older one must not be missing."""

        async def age_one() -> None:
            async with await open_config(folder) as config, config.transaction() as transaction:
                await transaction.change("UPDATE engines_cache SET checked_at = checked_at - 60 WHERE id = 'gpu1'")

        with demo_engine("ollama") as engine, demo_engine("openai") as other:
            asked = service(folder, engine)
            asyncio.run(asked.add("gpu1", "openai", other.url))
            assert [each.id for each in asyncio.run(asked.list())] == ["gpu1", "ollama"]
            asyncio.run(age_one())
            assert [each.id for each in asyncio.run(asked.list())] == ["gpu1", "ollama"]

    def test_a_clock_set_back_makes_nothing_current(self, folder: Folder) -> None:
        clock = Clock()
        with demo_engine("ollama") as engine:
            asked = service(folder, engine, clock)
            asyncio.run(asked.detect_engines())
            before = len(engine.requests())
            clock.now -= 3600
            asyncio.run(asked.detect_engines())
            assert len(engine.requests()) > before

    def test_fresh_looks_again(self, folder: Folder) -> None:
        with demo_engine("ollama") as engine:
            asked = service(folder, engine)
            asyncio.run(asked.detect_engines())
            before = len(engine.requests())
            asyncio.run(asked.detect_engines(fresh=True))
            assert len(engine.requests()) > before

    def test_the_time_to_live_is_a_setting(self, folder: Folder) -> None:
        async def main() -> None:
            async with await open_config(folder) as config, config.transaction() as transaction:
                await put(transaction, "engine.cache_ttl_seconds", "5")

        asyncio.run(main())
        clock = Clock()
        with demo_engine("ollama") as engine:
            asked = service(folder, engine, clock)
            asyncio.run(asked.detect_engines())
            before = len(engine.requests())
            clock.now += 6
            asyncio.run(asked.detect_engines())
            assert len(engine.requests()) > before

    def test_one_that_died_is_not_called_healthy(self, folder: Folder) -> None:
        with demo_engine("openai") as engine:
            assert added(folder, engine.url).status == "RunningHealthy"
        (found,) = asyncio.run(service(folder).detect_engines("openai", fresh=True))
        assert (found.status, found.source) == ("ErrorNetwork", "registered")
        assert found.last_error


class TestModels:
    def test_of_all_engines(self, folder: Folder) -> None:
        with demo_engine("ollama", "--model", "a/b:c", "--model", "second") as one, demo_engine("openai") as two:
            added(folder, two.url)
            found = asyncio.run(service(folder, one).models())
        assert {model.id for model in found} == {"flm://ollama/a/b:c", "flm://ollama/second", f"flm://gpu1/{two.model}"}
        assert {model.engine_id for model in found} == {"ollama", "gpu1"}

    @pytest.mark.parametrize("name", ["gpu1", "openai"])
    def test_of_one_by_id_or_kind(self, folder: Folder, name: str) -> None:
        with demo_engine("ollama") as one, demo_engine("openai") as two:
            added(folder, two.url)
            found = asyncio.run(service(folder, one).models(name))
        assert [model.id for model in found] == [f"flm://gpu1/{two.model}"]

    def test_of_an_unknown_engine(self, folder: Folder) -> None:
        with pytest.raises(CommandError) as refused:
            asyncio.run(service(folder).models("nobody"))
        assert refused.value.code is CommandCode.ENGINE_NOT_FOUND

    def test_of_one_that_does_not_serve(self, folder: Folder) -> None:
        with closed_port() as port:
            added(folder, f"http://127.0.0.1:{port}")
            with pytest.raises(CommandError, match="gpu1 does not serve") as refused:
                asyncio.run(service(folder).models("gpu1"))
        assert refused.value.code is CommandCode.ENGINE_NETWORK_ERROR

    def test_a_list_that_does_not_come_hides_no_other(self, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
        with demo_engine("ollama") as one, demo_engine("openai") as two:
            added(folder, two.url)
            asked = service(folder, one)
            asyncio.run(asked.detect_engines())
            two.fault("/v1/models", "demo: status=500")
            found = asyncio.run(asked.models())
            assert {model.engine_id for model in found} == {"ollama"}
            assert "gpu1 gave no model list" in caplog.text
            with pytest.raises(CommandError) as refused:
                asyncio.run(asked.models("gpu1"))
            assert refused.value.code is CommandCode.ENGINE_API_ERROR


class TestAdding:
    def test_one_that_runs(self, folder: Folder) -> None:
        with demo_engine("openai") as engine:
            found = added(folder, engine.url)
            assert (found.id, found.kind, found.url, found.source) == ("gpu1", "openai", engine.url, "registered")
            assert found.status == "RunningHealthy"
            assert [each.id for each in asyncio.run(service(folder).list())] == ["gpu1"]

    def test_one_that_does_not_run_yet(self, folder: Folder) -> None:
        with closed_port() as port:
            assert added(folder, f"http://127.0.0.1:{port}").status == "ErrorNetwork"
            assert [each.id for each in asyncio.run(service(folder).list())] == ["gpu1"]

    @pytest.mark.parametrize(
        ("url", "stored"),
        [
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
            ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
            ("http://127.0.0.1:1/v1", "http://127.0.0.1:1"),
            ("http://127.0.0.1:1/v1/", "http://127.0.0.1:1"),
            ("http://127.0.0.1:1/base/v1", "http://127.0.0.1:1/base"),
            ("http://127.0.0.1:1/base/v11", "http://127.0.0.1:1/base/v11"),
            ("http://[::1]:1", "http://[::1]:1"),
        ],
    )
    def test_how_its_address_is_kept(self, folder: Folder, url: str, stored: str) -> None:
        assert added(folder, url).url == stored

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "127.0.0.1:8000",
            "ftp://h/",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "http://h:0",
            "http://h:99999",
            "http://h:x",
            "http://u:sEcret@h:1",
            "http://h/?q=1",
            "http://h/#f",
            "http://h/a b",
            "http://h\r\nx: y",
            "http://hé/",
        ],
    )
    def test_an_address_that_is_none(self, folder: Folder, url: str) -> None:
        with pytest.raises(CommandError) as refused:
            added(folder, url)
        assert refused.value.code is CommandCode.USAGE
        assert "sEcret" not in refused.value.message
        assert asyncio.run(service(folder).list()) == ()

    @pytest.mark.parametrize("engine_id", ["", "-a", ".a", "A", "a b", "a/b", "ä", "a" * 64, "..", "a\n"])
    def test_an_id_that_is_none(self, folder: Folder, engine_id: str) -> None:
        with pytest.raises(CommandError) as refused:
            asyncio.run(service(folder).add(engine_id, "openai", "http://127.0.0.1:1"))
        assert refused.value.code is CommandCode.USAGE

    def test_a_kind_nobody_knows(self, folder: Folder) -> None:
        with pytest.raises(CommandError, match="known kinds") as refused:
            asyncio.run(service(folder).add("a", "nonsense", "http://127.0.0.1:1"))
        assert refused.value.code is CommandCode.USAGE

    @pytest.mark.parametrize(
        "timeouts",
        [
            EngineTimeouts(connect=0),
            EngineTimeouts(first_byte=-1),
            EngineTimeouts(between_bytes=1e9),
            EngineTimeouts(total=float("nan")),
            EngineTimeouts(total=float("inf")),
        ],
    )
    def test_timeouts_out_of_bounds(self, folder: Folder, timeouts: EngineTimeouts) -> None:
        with pytest.raises(CommandError) as refused:
            added(folder, "http://127.0.0.1:1", timeouts=timeouts)
        assert refused.value.code is CommandCode.USAGE

    def test_timeouts_are_kept(self, folder: Folder) -> None:
        added(folder, "http://127.0.0.1:1", timeouts=EngineTimeouts(1, 2.5, None, 0))

        async def read() -> list[rows.Upstream]:
            async with await open_config(folder) as config:
                return await rows.registered(config)

        (kept,) = asyncio.run(read())
        assert (kept.connect_timeout, kept.first_byte_timeout, kept.between_bytes_timeout, kept.total_timeout) == (
            1,
            2.5,
            None,
            0,
        )

    def test_an_id_that_is_taken(self, folder: Folder) -> None:
        added(folder, "http://127.0.0.1:1")
        with pytest.raises(CommandError, match="registered already") as refused:
            added(folder, "http://127.0.0.1:2", credential=CREDENTIAL)
        assert refused.value.code is CommandCode.CONFIG_INVALID
        (kept,) = asyncio.run(service(folder).list())
        assert kept.url == "http://127.0.0.1:1"
        assert credentials(folder) == {}

    def test_flm_itself_is_refused(self, folder: Folder, tmp_path: Path) -> None:
        async def main() -> None:
            async with running(tmp_path / "other", worker_module="flm.runtime.worker") as proxy:
                with pytest.raises(CommandError, match="FLM itself answers") as refused:
                    await service(folder).add("loop", "openai", f"http://127.0.0.1:{proxy.port}/v1")
                assert refused.value.code is CommandCode.CONFIG_INVALID
                assert await service(folder).list() == ()

        asyncio.run(main())


def credentials(folder: Folder) -> dict[str, str]:
    async def read() -> dict[str, str]:
        async with await open_security(folder) as database:
            return await rows.credentials(database)

    return asyncio.run(read())


class TestAddingWhatIsThere:
    def test_a_wrong_kind_is_answered_with_the_right_one(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "DIALECTS", DIALECTS)
        with demo_engine("llamacpp") as engine:
            found = asyncio.run(service(folder).add("gpu1", "ollama", engine.url))
        assert found.status == "ErrorApi"
        assert str(found.last_error).startswith(f"{engine.url}/api/version answered 404 ")
        assert "it looks like kind llamacpp" in str(found.last_error)

    def test_what_is_of_no_kind_is_called_none(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "DIALECTS", DIALECTS)
        with demo_engine("openai") as engine:
            found = asyncio.run(service(folder).add("gpu1", "openai", f"{engine.url}/wrong/v1"))
        assert found.last_error == f"{engine.url}/wrong/v1/models answered 404 without a model list"

    def test_the_id_of_one_that_was_found_is_told(self, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
        with demo_engine("ollama") as there, demo_engine("openai") as other, caplog.at_level(logging.WARNING):
            both = service(folder, there)
            asyncio.run(both.detect_engines())
            asyncio.run(both.add("ollama", "openai", other.url))
            assert f"ollama was the id of the engine found at {there.url}, which goes by another" in caplog.text
            assert {(each.id, each.url) for each in asyncio.run(both.list())} == {
                ("ollama", other.url),
                ("ollama-2", there.url),
            }

    def test_the_very_engine_that_was_found_keeps_its_id(
        self, folder: Folder, caplog: pytest.LogCaptureFixture
    ) -> None:
        with demo_engine("ollama") as there, caplog.at_level(logging.WARNING):
            asyncio.run(service(folder, there).detect_engines())
            asyncio.run(service(folder, there).add("ollama", "ollama", there.url))
        assert caplog.text == ""


class TestCredentials:
    def test_is_kept_apart_used_and_never_shown(self, folder: Folder, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(CREDENTIAL)
        with demo_engine("openai", "--api-key-file", str(tmp_path / "key")) as engine:
            assert added(folder, engine.url, credential=CREDENTIAL).status == "RunningHealthy"
            (found,) = asyncio.run(service(folder).detect_engines(fresh=True))
            assert found.status == "RunningHealthy"
            assert CREDENTIAL not in repr(found)
            assert len(asyncio.run(service(folder).models("gpu1"))) == 1
        assert CREDENTIAL.encode() not in folder.config.read_bytes()
        assert credentials(folder) == {"gpu1": CREDENTIAL}

    def test_a_wrong_one_shows_in_the_status(self, folder: Folder, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(CREDENTIAL)
        with demo_engine("openai", "--api-key-file", str(tmp_path / "key")) as engine:
            found = added(folder, engine.url, credential="wrong")
        assert found.status == "ErrorApi"
        assert "credentials" in str(found.last_error)

    @pytest.mark.parametrize("credential", ["", "a b", "a\nb", "é", "a\r\nx: y"])
    def test_one_no_header_may_carry(self, folder: Folder, credential: str) -> None:
        with pytest.raises(CommandError) as refused:
            added(folder, "http://127.0.0.1:1", credential=credential)
        assert refused.value.code is CommandCode.USAGE
        assert asyncio.run(service(folder).list()) == ()

    def test_goes_with_its_engine_and_leaves_no_trace(self, folder: Folder) -> None:
        added(folder, "http://127.0.0.1:1", credential=CREDENTIAL)
        asyncio.run(service(folder).remove("gpu1"))
        assert credentials(folder) == {}
        for path in folder.root.iterdir():
            assert not path.is_file() or CREDENTIAL.encode() not in path.read_bytes(), path

    def test_of_an_earlier_engine_is_not_inherited(self, folder: Folder) -> None:
        added(folder, "http://127.0.0.1:1")
        connection = sqlite3.connect(folder.security)
        connection.execute("INSERT INTO engine_credentials VALUES ('gpu2', 'stale')")
        connection.commit()
        connection.close()
        asyncio.run(service(folder).add("gpu2", "openai", "http://127.0.0.1:2"))
        assert credentials(folder) == {}


class TestRemoving:
    def test_one(self, folder: Folder) -> None:
        added(folder, "http://127.0.0.1:1")
        assert asyncio.run(service(folder).remove("gpu1")) == "gpu1"
        assert asyncio.run(service(folder).list()) == ()

    @pytest.mark.parametrize("engine_id", ["", "nobody", "ollama", "' OR 1=1"])
    def test_one_that_is_not_registered(self, folder: Folder, engine_id: str) -> None:
        with pytest.raises(CommandError) as refused:
            asyncio.run(service(folder).remove(engine_id))
        assert refused.value.code is CommandCode.ENGINE_NOT_FOUND


def test_a_change_is_in_force_when_the_call_returns(folder: Folder, tmp_path: Path) -> None:
    """With a running proxy of this folder: its own view of the engines, right after each call."""

    async def main(engine: Demo) -> None:
        async with running(tmp_path, worker_module="flm.runtime.worker") as proxy:
            own = EngineService(proxy.folder)
            await own.add("gpu1", "openai", engine.url)
            assert "gpu1" in {each.id for each in (await proxy.handle()).engines}
            await own.remove("gpu1")
            assert "gpu1" not in {each.id for each in (await proxy.handle()).engines}

    with demo_engine("openai") as engine:
        asyncio.run(main(engine))


class TestDemo:
    def test_started_twice_stopped_twice(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
        demo = DemoService(folder)
        try:
            first = asyncio.run(demo.start())
            assert (first.engine.id, first.engine.status, first.engine.url) == ("demo", "RunningHealthy", first.url)
            assert asyncio.run(demo.start()).pid == first.pid
        finally:
            assert asyncio.run(demo.stop())
        assert not asyncio.run(demo.stop())
        assert asyncio.run(service(folder).list()) == ()

    def test_after_a_crash_its_new_address_is_registered(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:1")
        added_before = asyncio.run(service(folder).add("demo", "openai", "http://127.0.0.1:1"))
        demo = DemoService(folder)
        try:
            started = asyncio.run(demo.start())
            assert started.url != added_before.url
            (found,) = asyncio.run(service(folder).list())
            assert (found.url, found.status) == (started.url, "RunningHealthy")
        finally:
            asyncio.run(demo.stop())

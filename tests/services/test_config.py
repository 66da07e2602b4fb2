"""Settings: every one of them can be set, is bounded, and says where its value comes from."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

from flm.config import SETTINGS, Setting
from flm.errors import CommandCode, CommandError
from flm.services.config import ChangedRow, ConfigRow, ConfigService
from flm.services.engines import EngineService
from flm.services.notice import Override
from flm.store.folder import Folder
from tests.runtime.harness import running

PACKAGE = Path(__file__).resolve().parents[2] / "flm"
ELSEWHERE = {  # read where the scan below does not look, and what holds there
    "proxy.bind": "start",
    "proxy.port": "start",
    "proxy.mode": "start",
    "proxy.https_port": "start",
    "proxy.fallback": "start",
    "proxy.expose_fallback": "start",
    "tls.min_version": "reload",
    **dict.fromkeys((key for key in SETTINGS if key.startswith("acme.")), "reload"),
    "proxy.stop_timeout_seconds": "at once",
    "engine.cache_ttl_seconds": "at once",
}
PARTICULAR = {
    "proxy.bind": "0.0.0.0",
    "proxy.mode": "dev-selfsigned",
    "acme.domain": "a.example.com, b.example.org",
    "acme.email": "ops@example.com",
    "acme.directory": "https://ca.example/dir",
    "acme.staging_directory": "https://ca.example/dir",
}
GOOD = {"integer": "7", "number": "1.5", "boolean": "false", "text": "a/b.log", "list": "e:GET /x"}


def good(spec: Setting) -> str:
    if spec.key in PARTICULAR:
        return PARTICULAR[spec.key]
    if spec.kind == "choice":
        return spec.choices[-1]
    if spec.maximum is not None:
        return f"{spec.maximum:g}" if spec.maximum < 1e6 else str(int(spec.maximum))
    return GOOD[spec.kind]


def bad(spec: Setting) -> list[str]:
    values = {
        "integer": ["", "x", "1.5", "true", "1e3", "0x10", "nan"],
        "number": ["", "x", "nan", "inf", "true"],
        "boolean": ["", "x", "2"],
        "choice": ["", "x", "LOCAL-HTTP"],
        "text": [*(["", "  "] if spec.default else []), "a\nb", "\x1b[31m", *(["x"] if spec.shape else [])],
        "list": ["x", ",", "a\nb", "\x1b[31m"],
    }[spec.kind]
    if spec.minimum is not None and spec.maximum is not None:
        values += [f"{spec.minimum - 1:.0f}", str(int(spec.maximum) + 1)]
    if spec.key == "proxy.bind":
        values += ["localhost", "127.0.0.1:80", "999.1.1.1", "fe80::1%/x", "**", "*.*"]
    if spec.key == "acme.domain":
        values += ["*.example.com", "192.0.2.1", "localhost", "a..b", "-a.example", "a.example.", "ü.example", "_a.b.c"]
    if spec.key.endswith("directory"):
        values += ["http://ca.example/dir", "https://", "ftp://x", "https://a b"]
    return values


def test_every_setting_can_be_set_and_unset(folder: Folder) -> None:
    async def main() -> None:
        service = ConfigService(folder, {})
        for key, spec in SETTINGS.items():
            row = await service.set(key, f" {good(spec)} ")
            assert (row.key, row.source, row.default) == (key, "config", spec.default)
            assert type(row.value) is type(spec.default) or isinstance(row.value, float)
        listed = await service.list()
        assert [row.source for row in listed] == ["config"] * len(SETTINGS)
        for key, spec in SETTINGS.items():
            assert await service.unset(key) == ChangedRow(key, spec.default, spec.default, "default")

    asyncio.run(main())


def test_every_setting_refuses_what_it_cannot_be(folder: Folder) -> None:
    async def main() -> None:
        service = ConfigService(folder, {})
        for key, spec in SETTINGS.items():
            for value in bad(spec):
                with pytest.raises(CommandError) as refused:
                    await service.set(key, value)
                assert refused.value.code is CommandCode.CONFIG_INVALID, (key, value)
                assert key in refused.value.message, (key, value)
        assert {row.source for row in await service.list()} == {"default"}

    asyncio.run(main())


@pytest.mark.parametrize(
    "key", ["", "proxy", "proxy.", "proxy.prt", "nonsense", "proxy_port", "'; DROP TABLE settings"]
)
def test_an_unknown_key_is_refused_with_known_ones(folder: Folder, key: str) -> None:
    async def main() -> None:
        service = ConfigService(folder, {})
        for call in (service.get(key), service.set(key, "1"), service.unset(key)):
            with pytest.raises(CommandError, match=r"proxy\.port") as refused:
                await call
            assert refused.value.code is CommandCode.CONFIG_INVALID

    asyncio.run(main())


def test_unsetting_what_is_not_set(folder: Folder) -> None:
    with pytest.raises(CommandError) as refused:
        asyncio.run(ConfigService(folder, {}).unset("proxy.port"))
    assert refused.value.code is CommandCode.CONFIG_NOT_SET


def test_the_environment_wins_over_the_database(folder: Folder) -> None:
    async def main() -> ConfigRow:
        await ConfigService(folder, {}).set("proxy.port", "4000")
        return await ConfigService(folder, {"FLM_PROXY_PORT": "5000"}).get("proxy.port")

    assert asyncio.run(main()) == ConfigRow("proxy.port", 5000, 3560, "environment")


def mentioned(key: str, *files: str) -> bool:
    attribute = re.compile(rf"settings\.{SETTINGS[key].attribute}\b")
    return any(attribute.search(path.read_text()) for pattern in files for path in PACKAGE.glob(pattern))


@pytest.mark.parametrize("key", sorted(SETTINGS.keys() - ELSEWHERE.keys()))
def test_what_a_change_takes_is_what_the_code_does(key: str) -> None:
    """Workers and upkeep read the published settings; the generations keep those of their last reload."""
    if mentioned(key, "proxy/*.py", "runtime/upkeep.py", "runtime/publish.py", "runtime/prober.py", "runtime/audit.py"):
        expected = "at once"
    elif mentioned(key, "runtime/generations.py"):
        expected = "reload"
    else:
        assert mentioned(key, "runtime/supervisor.py", "runtime/parts.py", "runtime/journal.py"), "nobody reads it"
        expected = "restart"  # the journal is opened by a start and by a restart
    assert SETTINGS[key].effect == expected


@pytest.mark.parametrize("key", ELSEWHERE)
def test_what_a_change_takes_elsewhere(key: str) -> None:
    assert SETTINGS[key].effect == ELSEWHERE[key]


def test_a_change_that_waits_for_something_says_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running(tmp_path) as proxy:
            service = ConfigService(proxy.folder, {})
            for key, value in (("proxy.workers", "2"), ("log.keep", "3"), ("engine.max_in_flight", "9")):
                await service.set(key, value)
            await service.unset("proxy.workers")

    with caplog.at_level(logging.WARNING, "flm.config"):
        asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if record.name == "flm.config"]
    assert said == [
        "proxy.workers is stored; the running proxy goes by it after `flm proxy reload`",
        "log.keep is stored; the running proxy goes by it after `flm proxy restart`",
        "proxy.workers is stored; the running proxy goes by it after `flm proxy reload`",
    ]


def test_what_a_running_proxy_has_from_its_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Options and variables of the start win over what is stored, also over reload and restart."""

    async def main() -> None:
        async with running(tmp_path, proxy__workers=1) as proxy:
            service = ConfigService(proxy.folder, {})
            started = {*proxy.flags, "log.keep", "engine.discover"}
            for change in ("reload", "restart", None):
                row = await service.set("proxy.workers", "2")
                assert (row.value, row.source, row.running) == (2, "config", Override(1, "flag"))
                (warning,) = row.warnings
                assert "the running proxy keeps 1: an option of its start" in warning
                assert "`flm proxy stop`, then `flm proxy start` without it" in warning
                (quiet,) = (await service.set("log.keep", "3")).warnings
                assert "the running proxy keeps 4: FLM_LOG_KEEP says so" in quiet
                assert (await service.get("proxy.workers")).running == Override(1, "flag")
                assert {row.key for row in await service.list() if row.running} == started
                assert (await service.set("log.max_bytes", "1048576")).running is None
                if change is not None:
                    assert (await getattr(proxy.service, change)()).workers == 1
            (unset,) = (await service.unset("proxy.workers")).warnings
            assert unset == warning
        assert (await service.set("proxy.workers", "2")).warnings == ()
        assert {row.running for row in await service.list()} == {None}

    monkeypatch.setenv("FLM_LOG_KEEP", "4")
    with caplog.at_level(logging.WARNING, "flm.config"):
        asyncio.run(main())
    assert "the running proxy keeps 1" in caplog.text


def test_a_variable_of_whoever_asks_is_said_too(folder: Folder) -> None:
    async def main() -> None:
        service = ConfigService(folder, {"FLM_PROXY_PORT": "5000", "FLM_ACME_USE_PROD": "false"})
        row = await service.set("proxy.port", "4000")
        assert (row.value, row.source) == (5000, "environment")
        (warning,) = row.warnings
        assert "FLM_PROXY_PORT in the environment here wins over it" in warning
        assert "goes by 5000" in warning
        (staging,) = (await service.set("acme.staging", "false")).warnings
        assert "FLM_ACME_USE_PROD" in staging

    asyncio.run(main())


def test_an_engine_to_be_opened_that_is_not_there(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await EngineService(folder).add("here", "openai", "http://127.0.0.1:1")
        row = await ConfigService(folder).set("passthrough.open_routes", "here:* /*, *:GET /x, nope:* /*")
        assert ["names the engine nope" in warning for warning in row.warnings] == [True]
        await ConfigService(folder).set("proxy.workers", "2")

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    (record,) = caplog.records
    assert "names the engine nope, which is not there now" in record.getMessage()

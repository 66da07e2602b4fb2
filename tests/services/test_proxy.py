"""`ProxyService` beyond processes: the first key, and what a start leaves in the hands of the person. Real proxies."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import pytest

from flm._native import Keyring
from flm.errors import CommandCode, CommandError
from flm.services.proxy import in_clear
from flm.services.security import SecurityService
from flm.store.pepper import load_pepper
from tests.runtime.harness import get, prepare, run


@pytest.fixture(autouse=True)
def checkout_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def test_the_very_first_start_makes_a_key_that_works(tmp_path: Path) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        started = await proxy.service.start(proxy.flags)
        try:
            assert isinstance(started.key, str)
            assert started.key not in repr(started)
            assert msgspec.to_builtins(started)["key"] == started.key
            with open(proxy.folder.run / "keyring", "rb") as file:
                keyring = Keyring.attach(file.fileno(), load_pepper(proxy.folder, create=False))
            assert keyring.verify(started.key.encode(), 1), "it is in force when the start returns"
            (key,) = await SecurityService(proxy.folder).list_keys()
            assert key.label == "default"
        finally:
            await proxy.service.stop(now=True)
        again = await proxy.service.start(proxy.flags)
        try:
            assert "key" not in msgspec.to_builtins(again), "shown once"
        finally:
            await proxy.service.stop(now=True)
        everything = b"".join(path.read_bytes() for path in proxy.folder.root.rglob("*") if path.is_file())
        assert started.key.encode() not in everything

    run(main)


def test_where_nobody_reads_no_key_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        proxy = prepare(tmp_path)
        with caplog.at_level(logging.WARNING):
            started = await proxy.service.start(proxy.flags, first_key=False)
        try:
            assert "key" not in json.loads(msgspec.json.encode(started))
            assert "flm api-keys create" in caplog.text
            assert await SecurityService(proxy.folder).list_keys() == []
        finally:
            await proxy.service.stop(now=True)

    run(main)


@pytest.mark.parametrize(
    ("mode", "listen_addr", "readable"),
    [
        ("local-http", "127.0.0.1:3560", False),
        ("local-http", "[::1]:3560", False),
        ("local-http", "0.0.0.0:3560", True),
        ("local-http", "[::]:3560", True),
        ("local-http", "192.0.2.1:80", True),
        ("dev-selfsigned", "0.0.0.0:3561", False),
        ("https-acme", "[::]:443", False),
    ],
)
def test_a_network_that_reads_along_is_warned_of(mode: str, listen_addr: str, readable: bool) -> None:
    assert in_clear(mode, listen_addr) is readable


def test_two_folders_two_proxies(tmp_path: Path) -> None:
    async def main() -> None:
        one, two = prepare(tmp_path / "one"), prepare(tmp_path / "two")
        try:
            await one.start()
            await two.start()
            assert (await get(one.port)).startswith(b"HTTP/1.1 200")
            assert (await get(two.port)).startswith(b"HTTP/1.1 200")
            assert (await one.handle()).pid != (await two.handle()).pid
        finally:
            await one.service.stop(now=True)
            assert (await two.handle()).running
            await two.service.stop(now=True)

    run(main)


def test_a_proxy_whose_control_socket_was_deleted_is_not_taken_for_gone(tmp_path: Path) -> None:
    """A cleaner of temporary files does that. It serves on, so `status` may not say that nothing runs."""

    async def main() -> None:
        proxy = prepare(tmp_path)
        started = await proxy.service.start(proxy.flags)
        try:
            (proxy.folder.run / "control.sock").unlink()
            for ask in (proxy.service.status, proxy.service.reload, proxy.service.restart):
                with pytest.raises(CommandError, match=f"pid {started.pid}.*control.sock was deleted") as caught:
                    await ask()
                assert caught.value.code is CommandCode.IO_ERROR
        finally:
            stopped = await proxy.service.stop()
        assert (stopped.pid, stopped.killed) == (started.pid, True)
        assert await proxy.service.status() == []
        await proxy.service.start(proxy.flags)
        assert not (await proxy.service.stop(now=True)).killed

    run(main)

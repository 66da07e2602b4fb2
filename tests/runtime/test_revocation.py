"""A key is revoked while its streams run: they end at once on every worker, and nobody else's. Real processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from flm.services.engines import EngineService
from flm.services.security import SecurityService
from flm.store import keys
from flm.store.database import open_security
from tests.runtime.asking import CHAT, Client, conversation
from tests.runtime.harness import Running, run, running
from tests.support.demo import demo_engine

WORKER = "flm.runtime.worker"
MODEL = "flm://mine/demo"
EACH = 6  # streams of each key, on connections of their own: four workers have some of both
SECONDS = 5.0  # for what takes some milliseconds on a quiet machine, and the event that ends a stream


class Stream:
    """A stream that has begun, and stays silent until the engine is told to go on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, client: Client) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        body = conversation(MODEL, stream=True, system="demo: hold=end hold_at=3 words=5")
        writer.write(client.request(CHAT, body))
        await reader.readuntil(b"data: ")
        return cls(reader, writer)

    async def rest(self) -> bytes:
        try:
            return await self._reader.read()
        finally:
            self._writer.close()


async def begin(client: Client) -> list[Stream]:
    return list(await asyncio.gather(*(Stream.begin(client) for _ in range(EACH))))


def revoked(rest: bytes) -> bool:
    """One error event that says so, and the end of the answer."""
    events = [line for line in rest.split(b"\r\n") if b'"error"' in line]
    assert len(events) == 1
    assert b"[DONE]" not in rest
    assert rest.endswith(b"0\r\n\r\n")
    return bool(json.loads(events[0].strip().removeprefix(b"data: "))["error"]["code"] == "invalid_api_key")


async def by_command(proxy: Running, key_id: str) -> None:
    await SecurityService(proxy.folder).revoke_key(key_id)


async def by_another_program(proxy: Running, key_id: str) -> None:
    async with await open_security(proxy.folder) as database, database.transaction() as transaction:
        await keys.revoke(transaction, key_id, 1)


async def by_rotation(proxy: Running, key_id: str) -> None:
    await SecurityService(proxy.folder).rotate_key(key_id)


@pytest.mark.parametrize("revoke", [by_command, by_another_program, by_rotation])
def test_its_streams_end_on_every_worker_and_others_go_on(revoke: Any, tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, proxy__workers=4, engine__discover=False) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                leaving, staying = await Client.of(proxy), await Client.of(proxy)
                ending, going_on = await begin(leaving), await begin(staying)
                key_id = (await SecurityService(proxy.folder).list_keys())[0].id
                await revoke(proxy, key_id)
                async with asyncio.timeout(SECONDS):
                    assert all([revoked(await stream.rest()) for stream in ending])
                assert (await leaving.ask("/v1/models")).status == 401
                engine.release("end")
                for stream in going_on:
                    rest = await stream.rest()
                    assert b"[DONE]" in rest
                    assert b'"error"' not in rest

    run(main)


def test_those_of_draining_workers_end_too(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                streams = await begin(client)
                await proxy.service.restart()
                await by_command(proxy, (await SecurityService(proxy.folder).list_keys())[0].id)
                async with asyncio.timeout(SECONDS):
                    assert all([revoked(await stream.rest()) for stream in streams])

    run(main)


def test_the_setting_lets_them_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        flags = {"security__revoke_ends_streams": False, "engine__discover": False}
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, proxy__workers=2, **flags) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                client = await Client.of(proxy)
                streams = await begin(client)
                await by_command(proxy, (await SecurityService(proxy.folder).list_keys())[0].id)
                assert (await client.ask("/v1/models")).status == 401
                engine.release("end")
                for stream in streams:
                    assert b"[DONE]" in await stream.rest()

    run(main)

"""Keys under a running proxy with several workers: what the command line changes holds for the very next request.

Real processes throughout. Each client has a connection of its own, so that all workers are asked.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flm._native import REQUESTS, Shared
from flm.services.engines import EngineService
from flm.services.security import SecurityService
from tests.runtime.asking import CHAT, Client, conversation
from tests.runtime.harness import Running, run, running, until
from tests.support.demo import demo_engine

WORKER = "flm.runtime.worker"
CLIENTS = 32
ROUNDS = 6
REQUEST = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n"


class Caller:
    """A client that keeps its connection and asks on and on, with the key that holds at that moment."""

    def __init__(self, port: int, box: dict[str, Any]) -> None:
        self._port = port
        self._box = box

    async def ask(self) -> int:
        async with asyncio.timeout(30):
            self._writer.write(REQUEST.format(key=self._box["key"]).encode())
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return int(head.split(b" ", 2)[1])

    async def ask_on(self) -> Counter[tuple[str, int]]:
        """Until `stopping` is set. Counts (what was certain when the request began, status); a request during which
        something changed proves nothing and is counted as `changing`."""
        seen: Counter[tuple[str, int]] = Counter()
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self._box["stopping"]:
            state, version = self._box["state"], self._box["version"]
            status = await self.ask()
            self._box["answered"] += 1
            seen[(state if version == self._box["version"] else "changing", status)] += 1
        self._writer.close()
        return seen


def becomes(box: dict[str, Any], state: str, **more: Any) -> None:
    box.update(more, state=state, version=box["version"] + 1)


@asynccontextmanager
async def callers(proxy: Running, box: dict[str, Any]) -> AsyncIterator[Counter[tuple[str, int]]]:
    seen: Counter[tuple[str, int]] = Counter()
    tasks = [asyncio.create_task(Caller(proxy.port, box).ask_on()) for _ in range(CLIENTS)]
    try:
        yield seen
    finally:
        box["stopping"] = True
        for counted in await asyncio.gather(*tasks):
            seen.update(counted)


async def some_requests(box: dict[str, Any]) -> None:
    """Return when the clients have asked some times more."""
    wanted = box["answered"] + 3 * CLIENTS
    await until(lambda: box["answered"] >= wanted, 60)


def test_creation_rotation_and_revocation_hold_on_all_workers_for_the_next_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=4, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            await service.set_policy(b'{"auth_failure_limit": {"rpm": 0}}')  # bad keys are all that is sent for a while
            first = await service.create_key("race")
            box: dict[str, Any] = {"key": first.key, "state": "valid", "version": 0, "answered": 0, "stopping": False}
            async with callers(proxy, box) as seen:
                await some_requests(box)
                current = first
                for _ in range(ROUNDS):
                    becomes(box, "changing")
                    rotated = await service.rotate_key(current.id)
                    becomes(box, "dead")  # the old key, which is still the one that is sent
                    await some_requests(box)
                    becomes(box, "valid", key=rotated.key)
                    await some_requests(box)
                    becomes(box, "changing")
                    await service.revoke_key(rotated.id)
                    becomes(box, "dead")
                    await some_requests(box)
                    becomes(box, "changing")
                    current = await service.create_key("race")
                    becomes(box, "valid", key=current.key)
                    await some_requests(box)
            assert {seen_state for seen_state, _ in seen} >= {"valid", "dead"}
            assert {status for state, status in seen if state == "valid"} == {200}, seen
            assert {status for state, status in seen if state == "dead"} == {401}, seen
            assert {status for state, status in seen if state == "changing"} <= {200, 401}
            assert seen[("valid", 200)] > 2 * CLIENTS
            assert seen[("dead", 401)] > 2 * CLIENTS
            with open(proxy.folder.run / "shared", "r+b") as file:
                shared = Shared.attach(file.fileno())
            assert all(shared.counter(cell, REQUESTS) > CLIENTS for cell in range(4)), "all workers were asked"

    run(main)


def test_a_grace_lets_both_keys_in_until_it_is_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            old = await service.create_key("k")
            new = await service.rotate_key(old.id, grace="2s")
            assert (await Client(proxy.port, new.key).ask("/v1/models")).status == 200
            status = (await Client(proxy.port, old.key).ask("/v1/models")).status
            assert status in (200, 401), "a machine that is two seconds late is no error"
            async with asyncio.timeout(20):
                while (await Client(proxy.port, old.key).ask("/v1/models")).status != 401:
                    await asyncio.sleep(0.1)
            assert (await Client(proxy.port, new.key).ask("/v1/models")).status == 200

    run(main)


def test_what_a_key_is_restricted_to_holds_from_its_first_request_on(tmp_path: Path) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
                for name in ("mine", "other"):
                    await EngineService(proxy.folder).add(name, "openai", engine.url)
                service = SecurityService(proxy.folder)
                key = await service.create_key("narrow", engines=["mine"], scopes=["models", "chat"])
                client = Client(proxy.port, key.key)
                assert {name.split("/")[2] for name in await client.models()} == {"mine"}
                assert (await client.chat("flm://mine/demo")).status == 200
                assert (await client.chat("flm://other/demo")).error["code"] == "permission_denied"
                assert (await client.ask("/engine/mine/v1/models")).error["code"] == "permission_denied"
                again = await service.rotate_key("narrow")
                assert (await client.chat("flm://mine/demo")).status == 401
                client = Client(proxy.port, again.key)
                assert {name.split("/")[2] for name in await client.models()} == {"mine"}
                assert (await client.chat("flm://other/demo")).status == 403

    run(main)


@pytest.mark.parametrize("way", ["revoke", "rotate", "database"])
def test_a_stream_of_a_revoked_key_ends_with_one_error_and_others_go_on(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        with demo_engine("openai") as engine:
            async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", engine.url)
                service = SecurityService(proxy.folder)
                doomed = await service.create_key("doomed")
                clients = [Client(proxy.port, doomed.key)] * 3 + [await Client.of(proxy)]
                body = conversation("flm://mine/demo", stream=True, system="demo: words=9 hold=all hold_at=4")
                streams = []
                for client in clients:
                    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                    writer.write(client.request(CHAT, body))
                    await reader.readuntil(b"data: ")
                    streams.append((reader, writer))
                if way == "revoke":
                    await service.revoke_key(doomed.id)
                elif way == "rotate":
                    await service.rotate_key(doomed.id)
                else:
                    revoke_behind_its_back(proxy, doomed.id)
                async with asyncio.timeout(30):  # the engine says nothing meanwhile: nothing else wakes the workers
                    cut = [await reader.read() for reader, _ in streams[:-1]]
                    await asyncio.to_thread(engine.release, "all")
                    whole = await streams[-1][0].read()
                for answer in cut:
                    assert answer.count(b'"invalid_api_key"') == 1
                    assert b"[DONE]" not in answer
                    assert answer.endswith(b"0\r\n\r\n"), "the answer ends in order"
                assert b"[DONE]" in whole
                assert b"error" not in whole
                for _, writer in streams:
                    writer.close()

    run(main)


def revoke_behind_its_back(proxy: Running, key_id: str) -> None:
    connection = sqlite3.connect(proxy.folder.security)
    connection.execute("UPDATE api_keys SET revoked_at = 5 WHERE id = ?", (key_id,))
    connection.commit()
    connection.close()


def test_the_last_use_of_a_key_is_known_when_the_proxy_has_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, proxy__workers=2, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            used, unused = await service.create_key("used"), await service.create_key("unused")
            assert (await Client(proxy.port, used.key).ask("/v1/models")).status == 200
            await proxy.service.stop()
            last = {key.id: key.last_used_at for key in await service.list_keys()}
            assert last[used.id] is not None
            assert last[unused.id] is None

    run(main)


def test_the_last_use_of_a_key_is_known_while_the_proxy_runs_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, WORKER, engine__discover=False) as proxy:
            service = SecurityService(proxy.folder)
            key = await service.create_key("used")
            client = Client(proxy.port, key.key)
            assert (await client.ask("/v1/models")).status == 200
            async with asyncio.timeout(40):
                while (await service.list_keys())[0].last_used_at is None:
                    await asyncio.sleep(0.2)
            assert "a change of keys" not in proxy.log(), "a use is no change"

    run(main)

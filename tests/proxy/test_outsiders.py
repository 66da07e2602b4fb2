"""What somebody without a key can do to others, and to the log: nothing."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.proxy.harness import CHAT, World, chat, engine, run
from tests.support.engine import ScriptedEngine, answer, serve


def encoded(key: str, times: int) -> str:
    """A key in a path that no pattern for keys matches as it stands."""
    text = key.replace("_", "%5F")
    for _ in range(times - 1):
        text = quote(text)
    return text


@pytest.mark.parametrize("times", [1, 2, 3, 9])
def test_a_key_in_an_unknown_path_is_not_logged_however_it_is_written(times: int) -> None:
    async def main() -> None:
        world = World()
        secret = world.key.rpartition("_")[2]
        await world.ask("GET", "/" + encoded(world.key, times), key=None)
        await world.ask("GET", "/" + world.key.upper(), key=None)
        assert secret not in str(world.lines)
        assert secret.upper() not in str(world.lines)
        assert [row.endpoint for row in world.rows if secret in row.endpoint] == []

    run(main())


def test_a_key_in_place_of_a_method_is_not_logged() -> None:
    async def main() -> None:
        world = World()
        await world.ask(world.key, "/v1/models", key=None)
        assert world.lines[-1]["method"] == "-"
        assert world.rows[-1].method == "-"

    run(main())


@pytest.mark.parametrize(("length", "status"), [("0" * 5000, 200), ("0" * 5000 + "5", 200), ("9" * 5000, 200)])
def test_a_length_of_any_number_of_digits_is_no_fault_of_flm(length: str, status: int) -> None:
    async def main() -> None:
        world = World()
        client = world.client("GET", "/health", headers={"content-length": length})
        await client.begin()
        assert client.status == status
        assert world.lines == [] or world.lines[-1]["level"] != "error"

    run(main())


def test_bodies_that_are_read_off_behind_a_refusal_take_nobodys_room() -> None:
    async def main() -> None:
        whole = b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[]}'
        async with ScriptedEngine([serve({}, answer(200, whole))]) as scripted:
            world = World(engine(scripted.url), proxy_max_in_flight=2)
            outsiders = [
                world.client("POST", CHAT, body=b"", key=None, hold=True, headers={"content-length": "10"})
                for _ in range(5)
            ]
            for outsider in outsiders:
                outsider.start()
                await outsider.until(lambda client: client.complete)
            assert world.app.in_flight == 5, "they are being read off"
            assert (await world.ask("POST", CHAT, chat("m"))).status == 200
            for outsider in outsiders:
                outsider.leave()
                assert outsider.task is not None
                await outsider.task
            await world.app.aclose()

    run(main())

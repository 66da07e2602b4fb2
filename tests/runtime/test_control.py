"""The control socket: bounded, private, and reachable however long its path is."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime import control
from flm.runtime.control import ControlServer, Request
from tests.runtime.harness import run


async def _echo(request: Request, connection: socket.socket) -> object:
    if request.op == "refuse":
        raise CommandError(CommandCode.PROXY_INVALID_CONFIG, "no")
    if request.op == "fault":
        raise ZeroDivisionError
    if request.op == "wait":
        await asyncio.sleep(3600)
    return {"op": request.op, "now": request.now}


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[ControlServer]:
    on = control.listen(path)
    server = ControlServer(on, _echo)
    server.start()
    try:
        yield server
    finally:
        await server.pause()
        on.close()


def test_ask_and_answer(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path):
            assert path.stat().st_mode & 0o777 == 0o600
            assert await control.ask(path, Request("stop", now=True), 5) == {"op": "stop", "now": True}
            with pytest.raises(CommandError, match="no") as caught:
                await control.ask(path, Request("refuse"), 5)
            assert caught.value.code is CommandCode.PROXY_INVALID_CONFIG
            with pytest.raises(CommandError, match="ZeroDivisionError"):
                await control.ask(path, Request("fault"), 5)

    run(main)


def test_a_long_path_works(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path.joinpath(*["a-long-folder-name-of-thirty-two"] * 6)
        folder.mkdir(parents=True)
        path = folder / "control.sock"
        async with listening(path):
            assert path.is_socket()
            assert (await control.ask(path, Request("status"), 5))["op"] == "status"

    run(main)


def test_nobody_there(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        with pytest.raises(CommandError) as caught:
            await control.ask(path, Request("status"), 5)
        assert caught.value.code is CommandCode.PROXY_NOT_RUNNING
        control.listen(path).close()  # left over by a proxy that was killed
        with pytest.raises(CommandError) as caught:
            await control.ask(path, Request("status"), 5)
        assert caught.value.code is CommandCode.PROXY_NOT_RUNNING
        async with listening(path):
            assert await control.ask(path, Request("status"), 5)

    run(main)


def test_who_is_hung_up_on_by_one_restart_after_the_other_asks_again(tmp_path: Path) -> None:
    """As when many ask for one at once: each is carried out, and takes the connections of those that wait along."""

    async def main() -> None:
        path = tmp_path / "control.sock"
        restarts = control.MOST_CONNECTIONS

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal restarts
            await reader.readline()
            restarts -= 1
            if restarts <= 0:
                writer.write(b'{"ok":true,"data":"done"}\n')
            writer.close()

        async with await asyncio.start_unix_server(talk, path):
            assert await control.ask(path, Request("restart"), 5) == "done"

    run(main)


def test_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.2)

    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path):
            with pytest.raises(TimeoutError):
                await control.ask(path, Request("wait"), 0.1)
            reader, writer = await asyncio.open_unix_connection(path)
            assert await asyncio.wait_for(reader.read(), 5) == b"", "a silent peer is closed"
            writer.close()

    run(main)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"garbage\n", b'"code":"USAGE"'),
        (b"{}\n", b'"code":"USAGE"'),
        (b'{"op":"status"}\n{"op":"refuse"}\n', b'"ok":true,"data":{"op":"status","now":false}}\n{"ok":false'),
        (b"x" * (control.LONGEST_LINE + 70_000), b""),
    ],
)
def test_what_is_not_a_request(tmp_path: Path, sent: bytes, answered: bytes) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(sent)
            writer.write_eof()
            try:
                got = await asyncio.wait_for(reader.read(), 5)
            except ConnectionResetError:
                got = b""  # closed with bytes unread: what an endless line gets
            assert answered in got
            assert answered or not got
            writer.close()

    run(main)


def test_connections_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path):
            held = [await asyncio.open_unix_connection(path) for _ in range(control.MOST_CONNECTIONS)]
            for _, writer in held:
                writer.write(b'{"op":"status"}\n')
            for reader, _ in held:
                await reader.readline()
            with pytest.raises(CommandError):
                await control.ask(path, Request("status"), 5)
            for _, writer in held:
                writer.close()

    run(main)


def test_other_users_are_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path):
            monkeypatch.setattr(control, "peer_uid", lambda _: os.geteuid() + 1)
            with pytest.raises(CommandError):
                await control.ask(path, Request("status"), 5)

    run(main)


def test_the_peer_of_a_socket_pair_is_this_user() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control.peer_uid(ours) == os.geteuid()


def test_pause_lets_answers_go_out_and_later_connections_wait(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with listening(path) as server:
            await server.pause()
            waiting = asyncio.create_task(control.ask(path, Request("status"), 5))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            server.start()
            assert (await waiting)["op"] == "status"

    run(main)

"""The gate of the renewal is red for anything but what it says, and its control only passes for the one cut stream."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.acme.streaming import CLIENTS, Seen, relay
from tests.gates import renewal
from tests.gates.renewal import LIFE_SECONDS, as_it_is, control

GOOD = Seen(life=LIFE_SECONDS, apart=195.0, asked=900, whole=CLIENTS)
CUT = replace(GOOD, whole=CLIENTS - 1, broken=["ConnectionResetError: reset"])


def test_a_renewal_as_it_must_be_passes() -> None:
    row = as_it_is(GOOD, 261.0)
    assert row.outcome == "passed"
    assert "renewed 195 s after its beginning" in row.seen
    assert f"{CLIENTS} streams of {renewal.EVENTS} events whole; 900 handshakes and requests" in row.seen


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (CUT, f"1 of {CLIENTS} streams were not whole: ConnectionResetError"),
        (replace(GOOD, whole=CLIENTS - 1), "199 streams"),
        (replace(GOOD, ended_early=1), "of which 1 ended before the renewal"),
        (replace(GOOD, apart=0.0), "renewed 0 s after"),
        (replace(GOOD, apart=LIFE_SECONDS), "renewed 300 s after a certificate of 300 s"),
        (replace(GOOD, life=40.0, apart=30.0), "the certificate lived for 40 s"),
        (replace(GOOD, last_error="no room"), "no room"),
        (replace(GOOD, asked=0), "nobody asked"),
    ],
)
def test_anything_else_is_red(seen: Seen, says: str) -> None:
    assert says in as_it_is(seen, 1.0).outcome


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (CUT, "passed"),
        (GOOD, "NOT FOUND"),
        (replace(CUT, whole=CLIENTS), "NOT FOUND"),
        (replace(CUT, whole=CLIENTS - 2, broken=["one", "two"]), "NOT FOUND"),
    ],
)
def test_the_control_is_of_one_stream(seen: Seen, outcome: str) -> None:
    assert control(seen, 1.0).outcome == outcome


def test_the_relay_passes_on_until_it_cuts() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, relay(server.sockets[0].getsockname()[1]) as (port, cutting):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"one\n")
            assert await reader.readline() == b"one\n"
            cutting.set()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))

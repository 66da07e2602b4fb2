"""From a host name to a connected socket: every address of the name gets its chance within one time limit.

Does not know what is spoken on the socket. A name is resolved at each connect, so that an engine that moves is found.

Strategy: happy eyeballs (RFC 8305): the addresses are tried in the system's order with the families alternating, the
next one as soon as one has failed, or after a short while; the first that accepts wins, the others are closed. So
`localhost` works for an engine on either family, and an address that swallows packets costs a moment.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, Final

STAGGER_SECONDS: Final = 0.25  # RFC 8305's Connection Attempt Delay
MAX_ADDRESSES: Final = 8  # of one name that are tried; RFC 8305 leaves the number open

Place = tuple[socket.AddressFamily, tuple[Any, ...]]


async def dial(host: str, port: int, seconds: float) -> socket.socket:
    """A connected, non-blocking socket; `seconds` is what the caller allows, for spreading the attempts.

    Raises OSError: of the resolver, or the refusal of an address if one refused, else what went wrong first. Has no
    time limit of its own; when it is cancelled nothing stays open.
    """
    places = await _resolve(host, port)
    if len(places) == 1:
        return await _connect(places[0])
    return await _race(places, min(STAGGER_SECONDS, seconds / (len(places) + 1)))


async def _resolve(host: str, port: int) -> Sequence[Place]:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return alternating([(family, tuple(address)) for family, _, _, _, address in found])[:MAX_ADDRESSES]
    if literal.version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]


def alternating(places: Sequence[Place]) -> list[Place]:
    """The same places, each once, with the families taking turns; the first stays the first."""
    once = list(dict.fromkeys(places))
    first = [place for place in once if place[0] == once[0][0]]
    others = [place for place in once if place[0] != once[0][0]]
    pairs = chain.from_iterable(zip_longest(first, others))
    return [place for place in pairs if place is not None]


async def _connect(place: Place) -> socket.socket:
    family, address = place
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(places: Sequence[Place], stagger: float) -> socket.socket:
    attempts: list[asyncio.Task[socket.socket]] = []
    winner: socket.socket | None = None
    try:
        for place in places:
            attempts.append(asyncio.create_task(_connect(place)))
            winner = await _first(attempts, stagger if len(attempts) < len(places) else None)
            if winner is not None:
                return winner
        raise _reason(attempts)
    finally:
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for attempt in attempts:
            if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not winner:
                attempt.result().close()


async def _first(attempts: Sequence[asyncio.Task[socket.socket]], seconds: float | None) -> socket.socket | None:
    """The first socket; None once all attempts have failed, one more has, or `seconds` have passed."""
    running = {attempt for attempt in attempts if not attempt.done()}
    while running:
        done, running = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for attempt in done:
            if attempt.exception() is None:
                return attempt.result()
        if seconds is not None:
            return None
    return None


def _reason(attempts: Sequence[asyncio.Task[socket.socket]]) -> BaseException:
    errors = [error for attempt in attempts if (error := attempt.exception()) is not None]
    return next((error for error in errors if isinstance(error, ConnectionRefusedError)), errors[0])

"""From a host name to a connection: every address of the name gets its chance within the caller's time limit.

Does not know what a connection is, nor what is spoken on it: the caller brings an attempt at one address. A name is
resolved at each connect, so that an engine that moves is found.

Strategy: happy eyeballs (RFC 8305): the addresses are tried in the system's order with the families alternating, the
next one as soon as one has failed, or after a short while; the first that succeeds wins, the others are given up. So
`localhost` works for an engine on either family, and an address that swallows packets costs a moment.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain, zip_longest
from typing import Any, Final, TypeVar

STAGGER_SECONDS: Final = 0.25  # RFC 8305's Connection Attempt Delay
MAX_ADDRESSES: Final = 8  # of one name that are tried; RFC 8305 leaves the number open

T = TypeVar("T")


async def dial(
    host: str,
    port: int,
    attempt: Callable[[str], Coroutine[Any, Any, T]],
    give_up: Callable[[T], None],
    seconds: float,
) -> T:
    """What `attempt` makes of one address of `host`, an IP literal or a name; `give_up` is told what is not needed.

    `seconds` is what the caller allows, for spreading the attempts; there is no time limit in here, and nothing goes
    on after a cancellation. Raises OSError: of the resolver, or of the attempts a refusal rather than another error.
    """
    addresses = await _resolve(host, port)
    if len(addresses) == 1:
        return await attempt(addresses[0])
    return await _race([attempt(address) for address in addresses], give_up, seconds)


async def _resolve(host: str, port: int) -> Sequence[str]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return alternating([str(address[0]) for _, _, _, _, address in found])[:MAX_ADDRESSES]
    return [host]


def alternating(addresses: Sequence[str]) -> list[str]:
    """The same addresses, each once, with the families taking turns; the first stays the first."""
    once = list(dict.fromkeys(addresses))
    one = [address for address in once if (":" in address) == (":" in once[0])]
    other = [address for address in once if (":" in address) != (":" in once[0])]
    return [address for address in chain.from_iterable(zip_longest(one, other)) if address is not None]


async def _race(attempts: Sequence[Coroutine[Any, Any, T]], give_up: Callable[[T], None], seconds: float) -> T:
    stagger = min(STAGGER_SECONDS, seconds / (len(attempts) + 1))
    waiting = list(attempts)
    tasks: list[asyncio.Task[T]] = []
    winner: asyncio.Task[T] | None = None
    try:
        while winner is None and waiting:
            tasks.append(asyncio.create_task(waiting.pop(0)))
            winner = await _first(tasks, stagger if waiting else None)
        if winner is None:
            raise _reason(tasks)
        return winner.result()
    finally:
        for attempt in waiting:
            attempt.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if task is not winner and not task.cancelled() and task.exception() is None:
                give_up(task.result())


async def _first(tasks: Sequence[asyncio.Task[T]], seconds: float | None) -> asyncio.Task[T] | None:
    """The first that succeeded; None when one more has failed, or `seconds` have passed; without `seconds`, when all
    have failed."""
    running = {task for task in tasks if not task.done()}
    while running:
        done, running = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task
        if seconds is not None:
            return None
    return None


def _reason(tasks: Sequence[asyncio.Task[Any]]) -> BaseException:
    errors = [error for task in tasks if (error := task.exception()) is not None]
    return next((error for error in errors if isinstance(error, ConnectionRefusedError)), errors[0])

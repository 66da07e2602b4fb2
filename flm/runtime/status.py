"""The handle of a running proxy: what `flm proxy start` and `status` show (SPEC §5 and §8).

A pure rendering of what the supervisor knows, but for the two addresses it asks the system for.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
from datetime import datetime
from typing import Final

import msgspec

from flm import __version__
from flm._native import ERRORS, IN_FLIGHT, LOG_DROPPED, REQUESTS
from flm.config import Settings
from flm.runtime.generations import Generations
from flm.snapshot import Engine

_ANYWHERE: Final = "192.0.2.1"  # TEST-NET-1: connecting a datagram socket sends nothing, but picks a source address


class Endpoints(msgspec.Struct, frozen=True):
    """Base URLs of the proxy; None where it cannot be reached that way, or it is not known."""

    localhost: str | None
    local_network: str | None
    external: str | None


class EngineLine(msgspec.Struct, frozen=True):
    id: str
    kind: str
    status: str


class Handle(msgspec.Struct, frozen=True):
    """One running proxy. `uptime` is seconds, `started_at` RFC 3339, counts are since the workers' memory was made."""

    id: str
    pid: int
    version: str
    state: str
    running: bool
    mode: str
    listen_addr: str
    port: int
    https_port: int | None
    endpoints: Endpoints
    workers: int
    worker_pids: list[int]
    draining_pids: list[int]
    generation: int
    started_at: str
    uptime: float
    engines: list[EngineLine]
    in_flight: int
    requests: int
    errors: int
    log_file: str | None
    log_lines_dropped: int
    acme_domain: str | None
    certificate: None
    last_error: str | None


def describe(
    *,
    instance_id: str,
    state: str,
    started_at: str,
    address: tuple[str, int],
    settings: Settings,
    generations: Generations,
    engines: tuple[Engine, ...],
    last_error: str | None,
    log_file: str | None,
) -> Handle:
    """The handle at this moment."""
    serving = generations.serving
    return Handle(
        id=instance_id,
        pid=os.getpid(),
        version=__version__,
        state=state,
        running=bool(serving) and state != "stopping",
        mode=settings.proxy_mode,
        listen_addr=url_host(address[0]) + f":{address[1]}",
        port=address[1],
        https_port=None,
        endpoints=endpoints(*address),
        workers=len(serving),
        worker_pids=sorted(member.pid for member in serving),
        draining_pids=sorted(member.pid for member in generations.draining),
        generation=generations.number,
        started_at=started_at,
        uptime=round(max(0.0, time.time() - datetime.fromisoformat(started_at).timestamp()), 3),
        engines=[EngineLine(engine.id, engine.kind, engine.status) for engine in engines],
        in_flight=total(generations, IN_FLIGHT),
        requests=total(generations, REQUESTS),
        errors=total(generations, ERRORS),
        log_file=log_file,
        log_lines_dropped=total(generations, LOG_DROPPED),
        acme_domain=None,
        certificate=None,
        last_error=last_error,
    )


def total(generations: Generations, counter: int) -> int:
    """A counter over all living workers."""
    shared = generations.memory.shared
    return sum(shared.counter(member.cell, counter) for member in generations.crew.members)


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def endpoints(address: str, port: int) -> Endpoints:
    """Where a proxy bound to `address` is reached from."""
    bound = ipaddress.ip_address(address)
    if bound.is_loopback:
        return Endpoints(f"http://{url_host(address)}:{port}", None, None)
    if bound.is_unspecified:
        local = "[::1]" if bound.version == 6 else "127.0.0.1"
        network = _own_address() if bound.version == 4 else None
        return Endpoints(f"http://{local}:{port}", f"http://{network}:{port}" if network else None, None)
    return Endpoints(None, f"http://{url_host(address)}:{port}", None)


def _own_address() -> str | None:
    """The address this machine has on the network it would reach others through."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_ANYWHERE, 9))
        return str(probe.getsockname()[0])
    return None

"""The handle of a running proxy: what `flm proxy start` and `status` show, and where it is reached.

Shapes, and the two addresses that the system is asked for. Light to import, for every verb of the CLI needs it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Final

import msgspec

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


class AuditLine(msgspec.Struct, frozen=True):
    """How far back the audit log reaches (RFC 3339; None: it has no row), and how many rows never got there."""

    since: str | None
    rows_dropped: int
    last_error: str | None


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
    audit: AuditLine | None = None


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

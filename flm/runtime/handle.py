"""The handle of a running proxy: what `flm proxy start` and `status` show, and where it is reached.

Shapes, and the two addresses that the system is asked for. Light to import, for every verb of the CLI needs it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from flm.config import ANY, HTTP_PORT, HTTPS_PORT, Value
from flm.runtime.boot import Served

_ANYWHERE: Final = "192.0.2.1"  # TEST-NET-1: connecting a datagram socket sends nothing, but picks a source address
DEFAULT_PORTS: Final = {"http": HTTP_PORT, "https": HTTPS_PORT}  # left out in a URL


class Endpoints(msgspec.Struct, frozen=True):
    """Base URLs of the proxy; None where it cannot be reached that way, or it is not known."""

    localhost: str | None
    local_network: str | None
    external: str | None


class EngineLine(msgspec.Struct, frozen=True):
    id: str
    kind: str
    status: str


class Override(msgspec.Struct, frozen=True):
    """A setting that the proxy has from its start, and keeps. `source`: `flag` (sockets that were given count as such)
    or `environment`."""

    value: Value
    source: str


class AuditLine(msgspec.Struct, frozen=True):
    """How far back the audit log reaches (RFC 3339; None: it has no row), and how many rows never got there."""

    since: str | None
    rows_dropped: int
    last_error: str | None


class CertificateLine(msgspec.Struct, frozen=True):
    """The certificate that is served. Times are RFC 3339, None: not known, or never. `trusted`: clients need no file of
    FLM's for it. `renew_after`: when it is renewed at the latest. `fingerprint`: SHA-256 of the certificate, in hex."""

    mode: str
    domains: list[str]
    issuer: str | None
    not_before: str | None
    not_after: str | None
    renew_after: str | None
    last_attempt_at: str | None
    next_attempt_at: str | None
    last_error: str | None
    trusted: bool
    fingerprint: str | None
    directory: str | None = None
    hint: str | None = None


class Access(msgspec.Struct, frozen=True):
    """How this machine reaches the proxy without asking anybody else: `url` of a local address, a short-lived `key`
    (secret), and with HTTPS the certificate to be met there (`ca`, PEM) and a name it is for."""

    url: str
    key: str
    ca: str | None = None
    server_name: str | None = None

    def __repr__(self) -> str:  # the default would print the key
        return f"Access(url={self.url!r}, server_name={self.server_name!r})"


class Handle(msgspec.Struct, frozen=True):
    """One running proxy. `uptime` is seconds, `started_at` RFC 3339, counts are since the workers' memory was made.
    `overrides`: settings, by their keys, that came with its start and win over what is stored."""

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
    certificate: CertificateLine | None
    last_error: str | None
    audit: AuditLine | None = None
    overrides: dict[str, Override] = {}


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def endpoints(served: Served, names: Sequence[str] = ()) -> Endpoints:
    """Where a proxy is reached from. `names`: what its certificate is for."""
    scheme, port = ("https", served.https_port) if served.https_port else ("http", served.port)
    at = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
    if served.mode == "https-acme" and names:
        return Endpoints(None, None, f"https://{names[0]}{at}")
    any_address = served.bind == ANY
    bound = ipaddress.ip_address("0.0.0.0" if any_address else served.bind)  # noqa: S104 - asked about, not bound to
    if bound.is_loopback:
        return Endpoints(f"{scheme}://{url_host(served.bind)}{at}", None, None)
    if bound.is_unspecified:
        local = "[::1]" if bound.version == 6 else "127.0.0.1"
        network = own_address() if bound.version == 4 else None
        if served.https_port and network not in names:  # an address of the internet: the local root may not sign it
            network = None
        return Endpoints(f"{scheme}://{local}{at}", f"{scheme}://{network}{at}" if network else None, None)
    return Endpoints(None, f"{scheme}://{url_host(served.bind)}{at}", None)


def local_url(address: tuple[str, int], *, encrypted: bool) -> str:
    """The URL of a socket that is bound to `address`, as this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])  # noqa: S104 - compared with
    return f"{'https' if encrypted else 'http'}://{url_host(host)}:{address[1]}"


def own_address() -> str | None:
    """The address this machine has on the network it would reach others through."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_ANYWHERE, 9))
        return str(probe.getsockname()[0])
    return None

"""A real CA for tests: Pebble with its challenge test server as its DNS, on ports of the kernel's choice.

with pebble.running(folder, retry_after=(1, 1), NONCEREJECT=15) as ca:
    ... ca.directory, ca.ca_file, ca.http_port ...

`http_port` is where Pebble looks for challenges: of every name, at 127.0.0.1, since all names have that address there.
Knows how the two are configured and asked for what they saw; not who their client is. Both end with the block.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.real import locations
from tests.support.certificates import Authority
from tests.support.ports import free_ports

VERSION = "2.10.1"
RECIPE = 1
"""Raised when tests/acme/build.py builds the same version in another way."""

_START_SECONDS = 20.0
_LISTENING = ("api", "management", "http", "tls", "dns", "dns-management")
Profiles = Mapping[str, Mapping[str, object]]


def folder() -> Path:
    """Part that holds `bin/pebble` and `bin/pebble-challtestsrv`."""
    return locations.engines_dir() / f"pebble-{VERSION}-{locations.machine()}-r{RECIPE}"


@dataclass
class Ca:
    """A running Pebble."""

    folder: Path
    directory: str
    ca_file: Path
    """The authority that Pebble's own HTTPS is verified by."""
    http_port: int
    management: str
    dns: str
    """Management URL of its DNS."""
    certificate: Path
    """Pebble's own certificate with its key: a front before it may show the same."""
    context: ssl.SSLContext = field(repr=False)
    lasting: str = ""
    """Of several profiles the one that is valid longest: an order without any gets one by chance."""

    @property
    def port(self) -> int:
        return int(self.directory.rpartition(":")[2].partition("/")[0])

    @property
    def log(self) -> str:
        return (self.folder / "pebble.log").read_text("utf-8", "replace")

    def accounts(self) -> int:
        """How many accounts were ever made here."""
        return len(re.findall(r"There are now \d+ accounts in memory", self.log))

    def orders(self) -> int:
        """How many orders were ever made here."""
        return len(re.findall(r"Added order ", self.log))

    def issued(self) -> int:
        """How many certificates were ever issued here."""
        return len(re.findall(r"Issued certificate serial", self.log))

    def root(self) -> str:
        """The certificate that all issued ones come from."""
        with urllib.request.urlopen(f"{self.management}/roots/0", context=self.context, timeout=10) as answer:
            return str(answer.read().decode())

    def set_renewal(self, certificate: str, answer: str) -> None:
        """What is answered, any text, when somebody asks when `certificate`, its PEM, should be renewed."""
        self._post(f"{self.management}/set-renewal-info/", {"certificate": certificate, "ariResponse": answer})

    def set_dns(self, verb: str, **fields: object) -> None:
        """Change the DNS: `add-a`, `add-aaaa`, `set-servfail`, `clear-a`, `set-default-ipv4`, …"""
        self._post(f"{self.dns}/{verb}", fields)

    def _post(self, url: str, document: Mapping[str, object]) -> None:
        data = json.dumps(document).encode()
        request = urllib.request.Request(url, data, {"content-type": "application/json"})
        secure = self.context if url.startswith("https") else None
        with urllib.request.urlopen(request, context=secure, timeout=10) as answer:
            assert answer.status == 200


@contextlib.contextmanager
def running(
    at: Path,
    *,
    profiles: Profiles | None = None,
    retry_after: tuple[int, int] = (1, 1),
    blocked: tuple[str, ...] = (),
    eab: Mapping[str, str] | None = None,
    strict: bool = True,
    more: Mapping[str, object] | None = None,
    **environment: object,
) -> Iterator[Ca]:
    """A CA whose files are at `at`, a folder that is not there yet.

    `retry_after`: seconds for authorizations and orders. `blocked`: names it refuses. `eab`: key id to base64url key of
    external account bindings, which it then demands. `more`: further settings of its file, by name. `environment`:
    WFE_NONCEREJECT, VA_NOSLEEP, …, without PEBBLE_.
    """
    if not locations.is_built(folder()):
        pytest.skip("needs Pebble: `make pebble` builds it")
    at.mkdir(parents=True)
    authority = Authority(at / "authority", "CA of the tests' CA")
    pair = authority.issue("DNS:localhost,IP:127.0.0.1")
    ports = dict(zip(_LISTENING, free_ports(len(_LISTENING)), strict=True))
    settings: dict[str, object] = {
        **_settings(ports, pair),
        "externalAccountBindingRequired": eab is not None,
        "externalAccountMACKeys": dict(eab or {}),
        "domainBlocklist": list(blocked),
        "retryAfter": {"authz": retry_after[0], "order": retry_after[1]},
        "profiles": dict(profiles or {}),
        **(more or {}),
    }
    (at / "pebble.json").write_text(json.dumps({"pebble": settings}))
    api = [folder() / "bin/pebble", "-config", at / "pebble.json", "-dnsserver", f"127.0.0.1:{ports['dns']}"]
    api += ["-strict"] if strict else []
    variables = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "15"}
    variables.update({f"PEBBLE_{name}": str(value) for name, value in environment.items()})
    with (
        _process(_dns_command(ports), at / "dns.log", {}) as resolver,
        _process(api, at / "pebble.log", variables) as server,
    ):
        _await(resolver, ports["dns-management"], at / "dns.log")
        _await(server, ports["management"], at / "pebble.log")
        _await(server, ports["api"], at / "pebble.log")
        ca = _described(at, authority, pair, ports)
        lengths = {name: int(str(each.get("validityPeriod", 0))) for name, each in (profiles or {}).items()}
        ca.lasting = max(lengths, key=lambda name: lengths[name], default="")
        yield ca


def _settings(ports: Mapping[str, int], pair: Path) -> dict[str, object]:
    return {
        "listenAddress": f"127.0.0.1:{ports['api']}",
        "managementListenAddress": f"127.0.0.1:{ports['management']}",
        "certificate": str(pair),
        "privateKey": str(pair),
        "httpPort": ports["http"],
        "tlsPort": ports["tls"],
        "keyAlgorithm": "ecdsa",
    }


def _dns_command(ports: Mapping[str, int]) -> list[object]:
    return [
        folder() / "bin/pebble-challtestsrv", "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "",
        "-dnsserver", f"127.0.0.1:{ports['dns']}", "-management", f"127.0.0.1:{ports['dns-management']}",
        "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
    ]  # fmt: skip


def _described(at: Path, authority: Authority, pair: Path, ports: Mapping[str, int]) -> Ca:
    return Ca(
        at,
        f"https://localhost:{ports['api']}/dir",
        authority.file,
        ports["http"],
        f"https://localhost:{ports['management']}",
        f"http://127.0.0.1:{ports['dns-management']}",
        pair,
        ssl.create_default_context(cafile=str(authority.file)),
    )


@contextlib.contextmanager
def _process(command: list[object], log: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        environment = {"PATH": os.environ["PATH"], **variables}
        process = subprocess.Popen([str(each) for each in command], stdout=output, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it accepts; a connection is the only sign that both programs give."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            over = process.poll() is not None or time.monotonic() > end
            assert not over, f"{log.name}: {log.read_text('utf-8', 'replace')[-2000:]}"
            time.sleep(0.02)

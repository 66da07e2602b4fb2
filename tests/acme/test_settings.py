"""`https-acme` against a CA with settings of every kind: its keys, chains, pages, waits and validities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flm.tls.files import read_pair
from tests.acme.harness import NAME
from tests.acme.test_proxy import proxy_of, started
from tests.runtime.harness import run
from tests.support import pebble

SECOND = "two.flm.example"


@dataclass(frozen=True)
class Pebble:
    """How it is started, and what FLM is told of it."""

    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    strict: bool = True


def profile(**fields: object) -> Pebble:
    return Pebble({"profiles": {"one": {"description": "one", **fields}}}, flags={"acme__profile": "one"})


SETTINGS = {
    "RSA keys": Pebble({"keyAlgorithm": "rsa"}),
    "a chain of 3": Pebble(environment={"CHAIN_LENGTH": 3}),
    "a chain of 9": Pebble({"keyAlgorithm": "rsa"}, {"CHAIN_LENGTH": 9}),
    "other roots": Pebble(environment={"ALTERNATE_ROOTS": 3, "CHAIN_LENGTH": 2}),
    "9 of 10 nonces refused": Pebble(environment={"WFE_NONCEREJECT": 90}),
    "authorizations that are used again": Pebble(environment={"AUTHZREUSE": 100}),
    "one order a page": Pebble(environment={"WFE_ORDERS_PER_PAGE": 1}),
    "nothing validated": Pebble(environment={"VA_ALWAYS_VALID": 1}),
    "not strict": Pebble(strict=False),
    "no waits": Pebble({"retryAfter": {"authz": 0, "order": 0}}),
    "long waits": Pebble({"retryAfter": {"authz": 600, "order": 600}}, {"VA_NOSLEEP": 0, "VA_SLEEPTIME": 3}),
    "negative waits": Pebble({"retryAfter": {"authz": -5, "order": -5}}),
    "slow validation": Pebble(environment={"VA_NOSLEEP": 0, "VA_SLEEPTIME": 8}),
    "OCSP": Pebble({"ocspResponderURL": "http://127.0.0.1:9/ocsp"}),
    "other names in CAA": Pebble({"caaIdentities": ["ca.flm.example", "other.flm.example"]}),
    "a blocked name": Pebble({"domainBlocklist": ["blocked.flm.example"]}),
    "the name as common name": profile(promoteCommonName=True, validityPeriod=864_000),
    "292 years": profile(validityPeriod=9_223_372_037),
    "no validity of its own": profile(validityPeriod=0),
    "the old setting of validity": Pebble({"certificateValidityPeriod": 600, "profiles": {}}),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_certificate_is_got_served_and_kept(tmp_path: Path, name: str) -> None:
    chosen = SETTINGS[name]

    async def main(ca: pebble.Ca) -> None:
        proxy = proxy_of(ca, tmp_path, acme__domain=f"{NAME}, {SECOND}", **chosen.flags)
        async with started(proxy):
            first = await proxy.served()
            assert await proxy.served(SECOND) == first
            handle = await proxy.handle()
            assert (handle.mode, handle.last_error) == ("https-acme", None)
            await proxy.service.reload()
            await proxy.service.restart()
            assert await proxy.served() == first
        stored = read_pair(proxy.stored())
        assert stored is not None
        assert stored.fingerprint == first
        async with started(proxy):
            assert await proxy.served() == first
        assert (ca.accounts(), ca.issued()) == (1, 1)

    environment = dict(chosen.environment)
    with pebble.running(tmp_path / "ca", more=chosen.settings, strict=chosen.strict, **environment) as ca:
        run(lambda: main(ca))

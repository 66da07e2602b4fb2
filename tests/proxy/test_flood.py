"""Many addresses, named by a trusted proxy, against the table of their limits: stricter for the unknown, never open."""

from __future__ import annotations

import time
from collections import Counter

from flm.policy.document import Policy, RateLimit
from tests.proxy.harness import World, run

BURST = 2
PLACES = 16 + 16  # of the harness: addresses, and those that share
FLOOD = 2000
POLICY = Policy(
    trusted_proxies=("127.0.0.1",),
    rate_limit=RateLimit(rpm=1, burst=10_000),
    ip_rate_limit=RateLimit(rpm=1, burst=BURST),
    auth_failure_limit=RateLimit(rpm=1, burst=BURST),
)


async def ask(world: World, address: str, key: str = "") -> int:
    headers = {"x-forwarded-for": address}
    return (await world.ask("GET", "/v1/models", key=key, headers=headers)).status


def addresses(net: int) -> list[str]:
    return [f"{net}.{number >> 8}.{number & 255}.1" for number in range(FLOOD)]


def test_a_flood_of_addresses_gets_no_more_than_all_buckets_hold() -> None:
    async def test() -> None:
        world = World(policy=POLICY)
        assert [await ask(world, "192.0.2.1") for _ in range(BURST + 1)] == [200, 200, 429]
        began = time.monotonic()
        seen = Counter([await ask(world, address) for address in addresses(11)])
        came_back = (time.monotonic() - began) / 60 * PLACES
        assert 0 < seen[200] <= BURST * PLACES + came_back + 1
        assert seen[200] + seen[429] == FLOOD
        assert await ask(world, "192.0.2.1") == 429  # whose place is its own keeps what it owes
        left = world.buckets.take_key(0, 60_000_000_000, 10_000, time.monotonic_ns())[1]
        assert left == 10_000 - BURST - seen[200] - 1  # what was refused cost the key nothing

    run(test())


def test_a_flood_of_bad_keys_locks_no_good_one_out() -> None:
    async def test() -> None:
        world = World(policy=POLICY)
        seen = Counter([await ask(world, address, "flm_bad") for address in addresses(12)])
        assert 0 < seen[401] <= BURST * PLACES + 1
        assert seen[401] + seen[429] == FLOOD
        assert await ask(world, "12.0.0.1") == 200

    run(test())

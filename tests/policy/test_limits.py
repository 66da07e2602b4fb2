"""Limits on real buckets, with a clock of the tests' own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm._native import Buckets
from flm.errors import ErrorKind, Header, RequestError
from flm.policy.document import Policy, RateLimit
from flm.policy.limits import Grant, Limits, state

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
OWNER, OTHER = 0x0000FFFF_C0000201, 0x20010DB8_00010002


@pytest.fixture
def buckets(tmp_path: Path) -> Buckets:
    return new_buckets(tmp_path / "buckets")


def new_buckets(path: Path) -> Buckets:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return Buckets.create(descriptor, bytes(16), keys=16, addresses=64, overflow=8)
    finally:
        os.close(descriptor)


def limits(**rates: tuple[int, int] | None) -> Limits:
    given_limits = {name: None if rate is None else RateLimit(*rate) for name, rate in rates.items()}
    return Limits(Policy(**given_limits))  # type: ignore[arg-type] - names of limits only


def refusal(policy: Limits, buckets: Buckets, now: int = NOW, slot: int = 0, owner: int = OWNER) -> RequestError:
    with pytest.raises(RequestError) as caught:
        policy.charge(buckets, slot, owner, now)
    assert caught.value.kind is ErrorKind.RATE_LIMIT_EXCEEDED
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def told(headers: tuple[Header, ...]) -> dict[str, int]:
    return {name.decode().removeprefix("x-ratelimit-").removesuffix("-requests"): int(value) for name, value in headers}


def test_no_limit_tells_nothing(buckets: Buckets) -> None:
    assert all(limits().charge(buckets, 0, OWNER, NOW) == Grant() for _ in range(100))


def test_a_key_has_its_burst_and_then_its_rate(buckets: Buckets) -> None:
    policy = limits(rate_limit=(60, 3))
    states = [told(policy.charge(buckets, 0, OWNER, NOW).headers) for _ in range(3)]
    assert states == [{"limit": 3, "remaining": left, "reset": 3 - left} for left in (2, 1, 0)]
    assert told(refusal(policy, buckets).headers) == {"limit": 3, "remaining": 0, "reset": 3, "retry-after": 1}
    policy.charge(buckets, 1, OWNER, NOW)  # another key
    assert told(policy.charge(buckets, 0, OWNER, NOW + SECOND).headers) == {"limit": 3, "remaining": 0, "reset": 3}
    refusal(policy, buckets, NOW + SECOND)


def test_retry_after_is_when_a_token_is_there(buckets: Buckets) -> None:
    policy = limits(rate_limit=(2, 1))
    policy.charge(buckets, 0, OWNER, NOW)
    wait = told(refusal(policy, buckets, NOW + SECOND // 2).headers)["retry-after"]
    assert wait == 30
    refusal(policy, buckets, NOW + 29 * SECOND)
    policy.charge(buckets, 0, OWNER, NOW + SECOND // 2 + wait * SECOND)


@pytest.mark.parametrize("kind", ["rate_limit", "ip_rate_limit", "global_rate_limit"])
def test_whose_bucket_it_is(buckets: Buckets, kind: str) -> None:
    policy = limits(**{kind: (1, 1)})
    policy.charge(buckets, 0, OWNER, NOW)
    passes = []
    for slot, owner in ((0, OWNER), (1, OWNER), (0, OTHER)):
        with suppress(RequestError):
            policy.charge(buckets, slot, owner, NOW)
            passes.append((slot, owner))
    expected = {"rate_limit": [(1, OWNER)], "ip_rate_limit": [(0, OTHER)], "global_rate_limit": []}
    assert passes == expected[kind]


def test_the_headers_tell_of_the_bucket_with_least_left(buckets: Buckets) -> None:
    policy = limits(rate_limit=(60, 10), ip_rate_limit=(60, 5), global_rate_limit=(60, 7))
    assert told(policy.charge(buckets, 0, OWNER, NOW).headers)["limit"] == 5
    assert told(policy.charge(buckets, 0, OTHER, NOW).headers)["limit"] == 5
    for owner in range(3):
        policy.charge(buckets, 1, owner, NOW)
    assert told(policy.charge(buckets, 1, 77, NOW).headers) == {"limit": 7, "remaining": 1, "reset": 6}


@pytest.mark.parametrize("last", ["ip_rate_limit", "global_rate_limit"])
def test_what_is_refused_costs_nothing(buckets: Buckets, last: str) -> None:
    rates: dict[str, tuple[int, int] | None] = {"rate_limit": (60, 9), "ip_rate_limit": (60, 9)}
    policy = limits(**{**rates, last: (60, 1)})
    policy.charge(buckets, 0, OWNER, NOW)
    for _ in range(50):
        assert told(refusal(policy, buckets).headers)["limit"] == 1
    free = limits(**{**rates, last: None})
    assert told(free.charge(buckets, 0, OWNER, NOW).headers)["remaining"] == 7


def test_failures_have_buckets_of_their_own(buckets: Buckets) -> None:
    policy = limits(auth_failure_limit=(60, 2), ip_rate_limit=(60, 1))
    policy.failed(buckets, OWNER, NOW)
    policy.failed(buckets, OWNER, NOW)
    with pytest.raises(RequestError) as caught:
        policy.failed(buckets, OWNER, NOW)
    assert caught.value.kind is ErrorKind.RATE_LIMIT_EXCEEDED
    assert told(caught.value.headers)["retry-after"] == 1
    policy.charge(buckets, 0, OWNER, NOW)  # a good key from the same address is not locked out
    policy.failed(buckets, OTHER, NOW)
    policy.failed(buckets, OWNER, NOW + SECOND)


def test_failures_may_be_unlimited(buckets: Buckets) -> None:
    policy = limits(auth_failure_limit=None)
    for _ in range(1000):
        policy.failed(buckets, OWNER, NOW)


def test_keys_beyond_the_table_share_the_last_bucket(buckets: Buckets) -> None:
    policy = limits(rate_limit=(60, 2))
    policy.charge(buckets, 1 << 31, OWNER, NOW)
    policy.charge(buckets, (1 << 31) + 1, OWNER, NOW)
    refusal(policy, buckets, slot=buckets.key_slots)
    policy.charge(buckets, 0, OWNER, NOW)


@pytest.mark.parametrize("rpm", [1, 7, 60, 59_999, 10_000_000])
def test_no_minute_grants_more_than_burst_and_rate(buckets: Buckets, rpm: int) -> None:
    policy = limits(rate_limit=(rpm, 1))
    granted, now = 0, NOW
    for _ in range(2_000):
        try:
            policy.charge(buckets, 0, OWNER, now)
            granted += 1
        except RequestError:
            now += max(1, 60 * SECOND // rpm // 3)
    assert (granted - 1) * 60 * SECOND <= (now - NOW) * rpm
    assert granted >= 2_000 / 5


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, SECOND)), max_size=60),
    st.lists(st.none() | st.tuples(st.integers(1, 600), st.integers(1, 5)), min_size=3, max_size=3),
)
def test_a_grant_is_what_three_separate_buckets_say(
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[tuple[int, int, int]],
    rates: list[tuple[int, int] | None],
) -> None:
    buckets = new_buckets(tmp_path_factory.mktemp("buckets") / "one")
    policy = limits(rate_limit=rates[0], ip_rate_limit=rates[1], global_rate_limit=rates[2])
    full: dict[tuple[int, int], int] = {}  # bucket -> when it is full
    now = NOW
    for slot, owner, later in asked:
        now += later
        wanted = {}
        for number, (rate, whose) in enumerate(zip(rates, (slot, owner, 0), strict=True)):
            if rate is not None:
                interval = -(-60 * SECOND // rate[0])
                after = max(full.get((number, whose), 0), now) + interval
                wanted[number, whose] = (after, after <= now + interval * rate[1])
        expected = all(fits for _, fits in wanted.values())
        try:
            policy.charge(buckets, slot, owner, now)
            granted = True
        except RequestError:
            granted = False
        assert granted is expected
        if granted:
            full |= {bucket: after for bucket, (after, _) in wanted.items()}


@given(st.integers(1, 600), st.integers(1, 5), st.lists(st.integers(0, 2 * SECOND), max_size=12))
def test_the_state_of_a_bucket_is_what_its_last_grant_said(
    tmp_path_factory: pytest.TempPathFactory, rpm: int, burst: int, pauses: list[int]
) -> None:
    buckets = new_buckets(tmp_path_factory.mktemp("buckets") / "one")
    limit, now = RateLimit(rpm, burst), NOW
    interval = -(-60 * SECOND // rpm)
    assert state(limit, 0, now) == (burst, 0.0)
    for pause in pauses:
        now += pause
        _, remaining, full_in, _ = buckets.take_key(0, interval, burst, now)
        live = {slot: full_at for _, slot, full_at in buckets.live(now, 10)}
        assert state(limit, live.get(0, 0), now) == (remaining, full_in / SECOND)


def test_a_bucket_of_a_larger_limit_is_empty_under_a_smaller_one() -> None:
    assert state(RateLimit(60, 2), NOW + 50 * SECOND, NOW) == (0, 2.0)

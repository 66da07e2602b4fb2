"""How much one may ask: the buckets a request takes a token from, and the 429 of one that finds a bucket empty.

A request is charged to its key, its address and the one bucket of all requests, in this order, as far as the policy
limits them. One that a later bucket refuses is given back to the earlier ones: what is refused costs nothing. Requests
with a bad key are charged to their address in buckets of their own, so that they never cost a good key anything.

Does not know where buckets lie (they are handed in) nor what time it is: `now_ns` is the monotonic clock's
nanoseconds, read right before.
"""

from __future__ import annotations

from typing import Final, NoReturn

import msgspec

from flm._native import ADDRESS_BUCKETS, FAILURE_BUCKETS, Buckets
from flm.errors import ErrorKind, Header, RequestError
from flm.policy.document import Policy, RateLimit

_MINUTE_NS: Final = 60_000_000_000
_SECOND_NS: Final = 1_000_000_000

_Taken = tuple[bool, int, int, int]  # allowed, remaining, nanoseconds until full, nanoseconds until the next token


class Grant(msgspec.Struct, frozen=True):
    """A request may go on. `headers` (`x-ratelimit-…`) tell of the bucket with least left; none if nothing limits."""

    headers: tuple[Header, ...] = ()


_UNLIMITED: Final = Grant()


class _Rate:
    """A limit as buckets take it. The interval is rounded up to whole nanoseconds: never more than `rpm` a minute."""

    __slots__ = ("burst", "interval_ns", "size", "whose")

    def __init__(self, limit: RateLimit, whose: str) -> None:
        self.interval_ns: Final = _interval_ns(limit)
        self.burst: Final = limit.burst
        self.size: Final[Header] = (b"x-ratelimit-limit-requests", b"%d" % limit.burst)
        self.whose: Final = whose

    def headers(self, taken: _Taken) -> tuple[Header, ...]:
        """The bucket's size, what is left in it, and the whole seconds until it is full."""
        return (
            self.size,
            (b"x-ratelimit-remaining-requests", b"%d" % taken[1]),
            (b"x-ratelimit-reset-requests", b"%d" % _seconds(taken[2])),
        )

    def refuse(self, taken: _Taken) -> NoReturn:
        wait = max(1, _seconds(taken[3]))
        message = f"too many requests: the limit {self.whose} is reached; try again in {wait} s"
        headers = (*self.headers(taken), (b"retry-after", b"%d" % wait))
        raise RequestError(ErrorKind.RATE_LIMIT_EXCEEDED, message, headers=headers)


def _interval_ns(limit: RateLimit) -> int:
    return -(-_MINUTE_NS // limit.rpm)


def state(limit: RateLimit, full_at_ns: int, now_ns: int) -> tuple[int, float]:
    """What is left at `now_ns` in a bucket that will be full at `full_at_ns` (both of the monotonic clock): whole
    tokens, and the seconds until it is full."""
    interval = _interval_ns(limit)
    owed = min(max(0, full_at_ns - now_ns), interval * limit.burst)
    return limit.burst + -owed // interval, owed / _SECOND_NS


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // _SECOND_NS)


def _rate(limit: RateLimit | None, whose: str) -> _Rate | None:
    return None if limit is None else _Rate(limit, whose)


class Limits:
    """The limits of one policy."""

    def __init__(self, policy: Policy) -> None:
        self._key: Final = _rate(policy.rate_limit, "of this API key")
        self._address: Final = _rate(policy.ip_rate_limit, "of this address")
        self._all: Final = _rate(policy.global_rate_limit, "of all clients together")
        self._failures: Final = _rate(policy.auth_failure_limit, "for requests without a valid API key")

    def charge(self, buckets: Buckets, slot: int, owner: int, now_ns: int) -> Grant:
        """Take a token for a request of the key in `slot` from the address `owner` (`addresses.bucket_owner`).

        Keys beyond the buckets' slots, such as those made for one chat, share the last slot. Raises RequestError
        RATE_LIMIT_EXCEEDED with `retry-after` and the state of the bucket that refuses; then nothing is charged.
        """
        slot = min(slot, buckets.key_slots - 1)
        key, address, everyone = self._key, self._address, self._all
        grant: tuple[_Rate, _Taken] | None = None
        shared = False
        if key is not None:
            taken = buckets.take_key(slot, key.interval_ns, key.burst, now_ns)
            if not taken[0]:
                key.refuse(taken)
            grant = key, taken
        if address is not None:
            found = buckets.take_address(ADDRESS_BUCKETS, owner, address.interval_ns, address.burst, now_ns)
            taken, shared = found[:4], found[4]
            if not taken[0]:
                self._give_back(buckets, slot, now_ns)
                address.refuse(taken)
            grant = _scarcer(grant, (address, taken))
        if everyone is not None:
            taken = buckets.take_global(everyone.interval_ns, everyone.burst, now_ns)
            if not taken[0]:
                self._give_back(buckets, slot, now_ns)
                if address is not None:
                    buckets.give_back_address(ADDRESS_BUCKETS, owner, shared, address.interval_ns, now_ns, now_ns)
                everyone.refuse(taken)
            grant = _scarcer(grant, (everyone, taken))
        return _UNLIMITED if grant is None else Grant(grant[0].headers(grant[1]))

    def failed(self, buckets: Buckets, owner: int, now_ns: int) -> None:
        """Charge a request whose key is bad to its address. Raises RATE_LIMIT_EXCEEDED, as `charge`, when over."""
        rate = self._failures
        if rate is None:
            return
        taken = buckets.take_address(FAILURE_BUCKETS, owner, rate.interval_ns, rate.burst, now_ns)
        if not taken[0]:
            rate.refuse(taken[:4])

    def _give_back(self, buckets: Buckets, slot: int, now_ns: int) -> None:
        if self._key is not None:
            buckets.give_back_key(slot, self._key.interval_ns, now_ns, now_ns)


def _scarcer(one: tuple[_Rate, _Taken] | None, other: tuple[_Rate, _Taken]) -> tuple[_Rate, _Taken]:
    """Of two buckets the one with fewer tokens left, which will refuse first."""
    return other if one is None or other[1][1] < one[1][1] else one

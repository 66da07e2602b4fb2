"""Who gets in, as one policy says it: the compiled policy, in the order in which a request meets it.

Built once for a policy, not for each request or engine: networks, hosts, origins and limits are made ready here, and a
change of anything else in a snapshot leaves the gate as it is.

Does not know keys, routes or bodies; it looks at the peer's address and at header values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from flm._native import Buckets
from flm.config import ANY
from flm.errors import ErrorKind, Header, RequestError
from flm.policy.access import HostGuard
from flm.policy.addresses import Networks, bucket_owner, client_address
from flm.policy.cors import CrossOrigin
from flm.policy.document import Policy
from flm.policy.limits import Limits
from flm.proxy.head import Head

_REMEMBERED: Final = 4096  # peers seen before; most send many requests
_NOBODY: Final = Networks(())
_KEY_START: Final = b"flm_"  # a key that somebody put into the wrong header must not get into the log
_request_id = re.compile(rb"[A-Za-z0-9._:\-]{1,128}").fullmatch


@lru_cache(_REMEMBERED)
def _plain(peer: str) -> str:
    """The peer's address in its shortest form, IPv4 written as IPv6 as IPv4."""
    return client_address(peer, (), _NOBODY, "x-forwarded-for")


class Gate:
    """One policy, for a listener bound to `bind` (an IP literal, or `*`) whose certificate is for `names`."""

    def __init__(self, policy: Policy, bind: str, names: tuple[str, ...] = ()) -> None:
        self.policy: Final = policy
        self.bind: Final = bind
        self._proxies = Networks(policy.trusted_proxies)
        self._behind_proxies = bool(self._proxies)
        self._header = policy.client_address_header
        self._header_name = policy.client_address_header.encode()
        self._allowed = Networks(policy.ip_whitelist) if policy.ip_whitelist else None
        self._guard = HostGuard("::" if bind == ANY else bind, (*policy.allowed_hosts, *names), policy.allowed_origins)
        self._cors = CrossOrigin(policy.allowed_origins)
        self._limits = Limits(policy)
        limits = (policy.rate_limit, policy.ip_rate_limit, policy.global_rate_limit)
        self._limited = any(limit is not None for limit in limits)

    def client(self, peer: str, fields: Mapping[bytes, bytes]) -> str:
        """The address a request comes from: the peer's, or the one that trusted proxies name."""
        if self._behind_proxies:
            line = fields.get(self._header_name)
            if line is not None:
                return client_address(peer, (line,), self._proxies, self._header)
        return _plain(peer)

    def request_id(self, peer: str, fields: Mapping[bytes, bytes]) -> str | None:
        """The request id that a trusted proxy gave, if it is a word that may stand in a log."""
        if self._behind_proxies:
            given = fields.get(b"x-request-id")
            if given is not None and _request_id(given) and _KEY_START not in given and self._proxies.holds(peer):
                return given.decode("ascii")
        return None

    def check_address(self, address: str) -> None:
        """Raises RequestError IP_NOT_ALLOWED: the answer is the same whatever else the request holds."""
        if self._allowed is not None and not self._allowed.holds(address):
            raise RequestError(ErrorKind.IP_NOT_ALLOWED, "requests from this address are not allowed here")

    def headers(self, origin: bytes | None) -> tuple[Header, ...]:
        """What every answer tells a browser about pages of `origin`."""
        return self._cors.headers(origin)

    def check_page(self, head: Head) -> tuple[Header, ...] | None:
        """The Host, and the page a browser asks for: the headers of a preflight's answer; None for all else.

        A page can send Authorization to another origin only when a preflight has allowed it; a simple request it can
        send to anybody. Raises as HostGuard.check.
        """
        fields = head.fields
        origin = fields.get(b"origin")
        preflight = None
        if head.method == "OPTIONS":
            asked = fields.get(b"access-control-request-method"), fields.get(b"access-control-request-headers")
            preflight = self._cors.preflight(origin, *asked)
        preflighted = origin is not None and (preflight is not None or b"authorization" in fields)
        self._guard.check(fields.get(b"host"), origin, fields.get(b"sec-fetch-site"), preflighted=preflighted)
        return preflight

    def charge(self, buckets: Buckets, slot: int, address: str) -> tuple[Header, ...]:
        """Take one request out of every bucket that limits it: the headers that say what is left.

        Raises RequestError RATE_LIMIT_EXCEEDED; then nothing was taken.
        """
        if not self._limited:
            return ()
        return self._limits.charge(buckets, slot, bucket_owner(address), time.monotonic_ns()).headers

    def count_bad_key(self, buckets: Buckets, address: str) -> None:
        """A request whose key is bad. Raises RequestError RATE_LIMIT_EXCEEDED when its address had too many."""
        self._limits.failed(buckets, bucket_owner(address), time.monotonic_ns())

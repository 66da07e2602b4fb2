"""What a browser is told about pages of other origins (CORS, the Fetch standard): preflights and response headers.

An origin is compared byte for byte with the list; nothing is a prefix, a suffix or a pattern. Credentials are never
allowed: FLM knows no cookie, and a key in `Authorization` is set by the page itself. With a list, every answer says
`vary: origin`, so that no cache gives one site's answer to another.

Does not refuse anything: that is `flm.policy.access`. Knows no route and no key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flm.errors import Header
from flm.policy.document import ANY_ORIGIN

MAX_AGE_SECONDS: Final = 600  # how long a browser may remember a preflight: Chromium's own limit is 2 hours
ALLOWED_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")  # pass-through takes any; the route decides
EXPOSED: Final = (
    "x-request-id",
    "x-flm-warnings",
    "x-should-retry",
    "server-timing",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)

_ANY: Final[Header] = (b"access-control-allow-origin", b"*")
_EXPOSE: Final[Header] = (b"access-control-expose-headers", ", ".join(EXPOSED).encode())
_MAX_AGE: Final[Header] = (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS)
_METHODS: Final[Header] = (b"access-control-allow-methods", ", ".join(ALLOWED_METHODS).encode())
_VARY_PREFLIGHT: Final[Header] = (
    b"vary",
    b"origin, access-control-request-method, access-control-request-headers",
)
_VARY: Final[Header] = (b"vary", b"origin")
_NAME_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_MOST_NAMES: Final = 64  # header names in one preflight


class CrossOrigin:
    """The origins whose pages may read answers; empty, or `*` alone, is every origin."""

    def __init__(self, allowed_origins: Iterable[str]) -> None:
        origins = tuple(allowed_origins)
        self._any: Final = not origins or ANY_ORIGIN in origins
        self._origins: Final = frozenset(origin.encode() for origin in origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of `origin` may read answers."""
        return self._any or origin in self._origins

    def preflight(self, origin: bytes | None, method: bytes | None, headers: bytes | None) -> tuple[Header, ...] | None:
        """The headers of the answer (204, before any key is asked for) to an OPTIONS request that is a preflight.

        The values of Origin, Access-Control-Request-Method and -Headers. None if it is no preflight: an origin or the
        method is missing. To an origin, method or header name that is not allowed the answer allows nothing.
        """
        if origin is None or method is None:
            return None
        vary = (_VARY_PREFLIGHT,)
        names = _names(headers or b"")
        if not self.allows(origin) or names is None or method.decode("latin-1") not in ALLOWED_METHODS:
            return vary
        allowed = ((b"access-control-allow-headers", b", ".join(names)),) if names else ()
        return (self._origin(origin), _METHODS, *allowed, _MAX_AGE, *vary)

    def headers(self, origin: bytes | None) -> tuple[Header, ...]:
        """What every other answer carries, refusals too: a page must be able to read why."""
        vary = () if self._any else (_VARY,)
        if origin is None or not self.allows(origin):
            return vary
        return (self._origin(origin), _EXPOSE, *vary)

    def _origin(self, origin: bytes) -> Header:
        return _ANY if self._any else (b"access-control-allow-origin", origin)


def _names(value: bytes) -> list[bytes] | None:
    """The header names in Access-Control-Request-Headers, in small letters; None for what is no list of them.

    `*` would not cover `Authorization`, so names are allowed one by one, as they were asked for.
    """
    names = [name for part in value.lower().split(b",") if (name := part.strip(b" \t"))]
    wrong = len(names) > _MOST_NAMES or any(name.translate(None, _NAME_BYTES) for name in names)
    return None if wrong else names

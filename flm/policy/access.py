"""From where a request may come: the Host allow-list and the refusal of cross-site browser requests.

A page of any site can make the reader's browser send requests to 127.0.0.1. Two things give it away: after DNS
rebinding the Host header still holds the site's own name, and otherwise Origin or Sec-Fetch-Site say who asked.
An address in the Host header cannot be the result of rebinding, since it was not resolved. The policy may name further
hosts, and origins whose pages may ask.

Does not know what was asked for, nor who asks; it looks at header values only. Addresses of clients: `addresses`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from flm.errors import ErrorKind, RequestError

_PORT_DIGITS: Final = 5
_MAX_PORT: Final = 65_535
_NAME_BYTES: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-._"
_V6_BYTES: Final = b"0123456789abcdef:."
_LOOPBACK_NAMES: Final = frozenset({b"localhost", b"127.0.0.1", b"::1"})
_LOOPBACK_SUFFIX: Final = b".localhost"  # reserved by RFC 6761: nobody can register a name under it
_SAME_SITE: Final = frozenset({b"same-origin", b"same-site", b"none"})
_EVERY: Final = b"*"
_SCHEMES: Final = (b"http://", b"https://")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def host_name(value: bytes) -> bytes | None:
    """The host of a Host header in lower case, without port and brackets, and without the dot that a name may end with
    and still be the same (RFC 3986 §3.2.2); None if it is not `host[:port]`."""
    value = value.lower()
    if value[:1] == b"[":
        host, closed, rest = value[1:].partition(b"]")
        if not closed or host.translate(None, _V6_BYTES):
            return None
        return host if host and (not rest or (rest[:1] == b":" and _is_port(rest[1:]))) else None
    host, colon, port = value.partition(b":")
    if not host or host.translate(None, _NAME_BYTES) or (colon and not _is_port(port)):
        return None
    return _relative(host)


def _relative(host: bytes) -> bytes:
    """A name without its final dot. What is an address without it is none with it, and stays."""
    name = host.removesuffix(b".")
    return host if not name or _address(name) is not None else name


def _is_port(text: bytes) -> bool:
    return 0 < len(text) <= _PORT_DIGITS and text.isdigit() and int(text) <= _MAX_PORT


def _address(host: bytes) -> _Address | None:
    try:
        return ipaddress.ip_address(host.decode("ascii"))
    except ValueError:
        return None


def _canonical(host: bytes) -> bytes:
    address = _address(host)
    return host if address is None else str(address).encode()


class HostGuard:
    """Which hosts a listener bound to `bind` (an IP literal) answers for, and the pages of which origins.

    Always: loopback names and addresses and `bind` itself. Bound wider than loopback: every private, link-local or
    unique-local address too, because behind a port forwarding the address a client used is not one of this machine.
    `allowed_hosts` (names or addresses, small letters, without ports) are answered beside those; pages of
    `allowed_origins` (letter by letter; `*`: all) are answered wherever they come from.
    """

    def __init__(self, bind: str, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()) -> None:
        bound = ipaddress.ip_address(bind)
        self._wide = not bound.is_loopback
        own = _LOOPBACK_NAMES if bound.is_unspecified else _LOOPBACK_NAMES | {str(bound).encode()}
        self._hosts = own | {_canonical(_relative(host.encode())) for host in allowed_hosts}
        self._origins = frozenset(origin.encode() for origin in allowed_origins)

    def check(
        self, host: bytes | None, origin: bytes | None, fetch_site: bytes | None, *, preflighted: bool = False
    ) -> None:
        """The values of Host, Origin and Sec-Fetch-Site; several lines of one name are joined with a comma.

        `preflighted`: the request is a CORS preflight, or carries what no page of another site can send without one
        (Authorization). It passes where no origins are listed, since then CORS lets every page ask.

        Raises RequestError: INVALID_REQUEST without exactly one well-formed Host, HOST_NOT_ALLOWED for a host FLM does
        not answer for, ORIGIN_NOT_ALLOWED for a request a foreign site's page made.
        """
        name = host_name(host) if host else None
        if name is None:
            raise RequestError(ErrorKind.INVALID_REQUEST, "the request needs exactly one Host header: `host[:port]`")
        if not self.allows(name):
            message = (
                "FLM does not answer for the host in the Host header; use localhost or the address it listens on, or "
                "add the name to allowed_hosts of the policy (a foreign name may be a DNS rebinding attack)"
            )
            raise RequestError(ErrorKind.HOST_NOT_ALLOWED, message)
        if _EVERY in self._origins or (origin is not None and origin in self._origins):
            return
        if preflighted and not self._origins:
            return
        if fetch_site is not None and fetch_site.lower() not in _SAME_SITE:
            raise _foreign()
        if origin is not None and not self._allows_origin(origin):
            raise _foreign()

    def allows(self, host: bytes) -> bool:
        """Whether FLM answers for `host` (lower case, without port and brackets)."""
        if host in self._hosts or host.endswith(_LOOPBACK_SUFFIX):
            return True
        address = _address(host)
        if address is None:
            return False
        if address.is_loopback or str(address).encode() in self._hosts:
            return True
        return self._wide and (address.is_private or address.is_link_local) and not address.is_unspecified

    def _allows_origin(self, origin: bytes) -> bool:
        origin = origin.lower()
        for scheme in _SCHEMES:
            if origin.startswith(scheme):
                name = host_name(origin[len(scheme) :])
                return name is not None and self.allows(name)
        return False


def _foreign() -> RequestError:
    message = (
        "the request was made by a page of another site, and FLM only answers pages of its own host and of the "
        "policy's cors.allowed_origins"
    )
    return RequestError(ErrorKind.ORIGIN_NOT_ALLOWED, message)

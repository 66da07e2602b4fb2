"""Which headers cross between a client and an engine on the pass-through, and in which form.

Towards the engine: nothing that belongs to one hop, says who the client is, or could be taken for a credential; the
host and FLM's own credential are written by `wire/http1`. Towards the client: nothing that belongs to one hop, speaks
for FLM's own origin (cookies, HSTS, CORS, redirects elsewhere), or holds FLM's credential for the engine.

A `location` that leads below the engine's base is rewritten to the same place below `/engine/{id}`; any other is left
out. Redirects are never followed.

Does not know engines, nor how bytes travel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from flm._native import KEY_PATTERN
from flm.errors import Header, RequestError
from flm.policy import paths

# RFC 9110 §7.6.1 and §7.8, and their predecessors; what `connection` names comes on top.
_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade http2-settings".split()
    + b"proxy-authenticate proxy-authorization proxy-authentication-info".split()
)
_REQUEST: Final = _HOP | frozenset(
    b"host content-length expect accept-encoding max-forwards".split()
    + b"origin referer forwarded via x-request-id x-conversation-id x-host x-method-override pass x-pass x-pwd".split()
)
_REQUEST_PREFIXES: Final = (
    b"x-forward", b"x-origin", b"x-override-", b"x-rewrite-", b"x-http-method", b"x-stainless-", b"x-flm-", b"x-envoy-",
    b"x-accel-", b"x-openwebui-", b"x-appengine-", b"x-user", b"x-remote-", b"remote-", b"sec-", b"cf-", b"fastly-",
    b"proxy-", b"access-control-",
)  # fmt: skip
_REQUEST_SUFFIXES: Final = (b"-ip", b"-clientip", b"-user")  # who the client is, in whatever proxy's words
_CREDENTIAL = re.compile(rb"auth|api-?key|-key$|token|secret|cookie|credential|passw|passphrase|session").search
_ANSWER: Final = _HOP | frozenset(
    b"content-length content-location location refresh date server via x-powered-by server-timing x-request-id".split()
    + b"set-cookie set-cookie2 www-authenticate authentication-info clear-site-data".split()
    + b"alt-svc strict-transport-security public-key-pins nel report-to reporting-endpoints".split()
    + b"timing-allow-origin service-worker-allowed origin-agent-cluster x-should-retry".split()
    + b"x-sendfile x-lighttpd-send-file".split()
)
_ANSWER_PREFIXES: Final = (b"access-control-", b"x-flm-", b"x-accel-", b"x-ratelimit-", b"proxy-")
_token = re.compile(rb"[!#$%&'*+\-.^`|~0-9A-Za-z]+").fullmatch  # RFC 9110 §5.6.2, without `_`: servers read it as `-`
_value = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
_key = re.compile(KEY_PATTERN.encode()).search
_MIN_SECRET: Final = 16  # a credential shorter than this is a word that stands in many an answer ("EMPTY")


def holds_key(text: bytes) -> bool:
    """Whether an FLM key stands in a path or a query, percent-encoded or not: it would reach the engine, and the logs
    on the way."""
    return _key(text) is not None or _key(unquote_to_bytes(text)) is not None


def _tells(secret: bytes | None, header: Header) -> bool:
    """Whether a header of an answer tells `secret`; names come in lower case, and a redirect may be encoded."""
    if secret is None:
        return False
    secret, text = secret.lower(), b" ".join(header).lower()
    return secret in text or secret in unquote_to_bytes(text)


def _nominated(connection: bytes) -> frozenset[bytes]:
    return frozenset(name.strip().lower() for name in connection.split(b","))


def request_headers(headers: Iterable[Header]) -> tuple[Header, ...]:
    """The client's headers that go on to the engine, in order. A value that holds a key of FLM's never does."""
    fields = [(name.lower(), value) for name, value in headers]
    dropped = _nominated(b",".join(value for name, value in fields if name == b"connection"))
    return tuple(
        (name, value)
        for name, value in fields
        if name not in _REQUEST
        and name not in dropped
        and not name.startswith(_REQUEST_PREFIXES)
        and not name.endswith(_REQUEST_SUFFIXES)
        and not _CREDENTIAL(name)
        and _token(name)
        and _value(value)
        and not _key(value)
    )


def answer_headers(headers: Mapping[bytes, bytes], place: Place, secret: bytes | None) -> list[Header]:
    """The engine's headers (names in lower case) that go back to the client; `secret`: see `Veil`."""
    dropped = _nominated(headers.get(b"connection", b""))
    kept = [
        (name, value)
        for name, value in headers.items()
        if name not in _ANSWER
        and name not in dropped
        and not name.startswith(_ANSWER_PREFIXES)
        and _token(name)
        and _value(value)
    ]
    location = place.translated(headers.get(b"location"))
    if location is not None:
        kept.append((b"location", location))
    return [header for header in kept if not _tells(secret, header)]


class Place:
    """Where an engine is: its `origin` (`scheme://host:port`), its base path, and its id here."""

    __slots__ = ("_base", "_engine", "_origin")

    def __init__(self, engine: str, origin: str, base_path: str) -> None:
        self._engine = engine
        self._origin = origin
        self._base = base_path

    def translated(self, location: bytes | None) -> bytes | None:
        """A redirect's target as the client can ask for it; None if it leads elsewhere, or may not be asked for."""
        if location is None:
            return None
        target = location.decode("latin-1").removeprefix(self._origin)
        path, _, query = target.partition("?")
        if not path.startswith(self._base + "/") or path.startswith("//"):
            return None
        try:
            own = paths.normalised(path.removeprefix(self._base).encode("latin-1"))
            return f"/engine/{self._engine}{own}{paths.query(query.encode('latin-1'))}".encode()
        except RequestError:
            return None


class Veil:
    """Hides FLM's credential for an engine in that engine's own words, wherever it is cut into pieces.

    It is overwritten with as many asterisks, so that lengths stay true. At most its length less one is held back, and
    only while the last bytes could be its beginning. Credentials of less than 16 characters are left: such a word may
    well be part of an answer.
    """

    __slots__ = ("_held", "_mask", "_secret")

    def __init__(self, credential: str | None) -> None:
        secret = credential.encode() if credential is not None and len(credential) >= _MIN_SECRET else b""
        self._secret = secret
        self._mask = b"*" * len(secret)
        self._held = b""

    @property
    def secret(self) -> bytes | None:
        """What is hidden; None if nothing is."""
        return self._secret or None

    def feed(self, data: bytes) -> bytes:
        """The next bytes for the client, possibly none."""
        secret = self._secret
        if not secret:
            return data
        data = (self._held + data).replace(secret, self._mask)
        at = data.find(secret[:1], max(len(data) - len(secret) + 1, 0))
        while at >= 0 and not secret.startswith(data[at:]):
            at = data.find(secret[:1], at + 1)
        if at < 0:
            self._held = b""
            return data
        self._held = data[at:]
        return data[:at]

    def finish(self) -> bytes:
        """What was held back, and was not the credential."""
        held, self._held = self._held, b""
        return held

"""The head of one request, as the ASGI server hands it over: sizes, version and framing are checked before all else.

The server is lenient where a guard belongs (docs/granian.md): long targets and heads, lists of transfer codings,
repeated headers. Repeated headers are joined with a comma, as RFC 9110 §5.3 reads them, so each later check sees
one value and refuses what is not exactly one.

Does not know routes, keys or hosts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from flm.config import MAX_HEADER_BYTES, MAX_TARGET_BYTES
from flm.errors import ErrorKind, RequestError
from flm.wire.http1 import content_length

_VERSIONS: Final = frozenset({"1.1", "1", "1.0"})  # the server says "1" for HTTP/1.0
TUNNELS: Final = frozenset({"CONNECT", "TRACE"})
_FIELD_OVERHEAD: Final = 4  # colon, blank, CR, LF
_CLOSE: Final = ((b"connection", b"close"),)
_READ: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"origin",
        b"sec-fetch-site",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"expect",
        b"x-forwarded-for",
        b"forwarded",
        b"x-request-id",
        b"access-control-request-method",
        b"access-control-request-headers",
    }
)


class Head:
    """What is read of a request's head: the target's path as sent, and the values of the headers FLM looks at."""

    __slots__ = ("fields", "length", "method", "path")

    def __init__(self, method: str, path: bytes, fields: dict[bytes, bytes]) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        length = fields.get(b"content-length")
        self.length = content_length(length) if length is not None else None

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body may still be on their way."""
        return bool(self.length) or b"transfer-encoding" in self.fields


def collect(headers: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], int]:
    """The headers FLM looks at, several lines of one name joined with a comma; and the size of the whole block."""
    fields: dict[bytes, bytes] = {}
    size = 0
    for name, value in headers:
        size += len(name) + len(value) + _FIELD_OVERHEAD
        if name in _READ:
            fields[name] = value if name not in fields else fields[name] + b", " + value
    return fields, size


def check(scope: dict[str, Any], head: Head, size: int) -> None:
    """Refuse a head that is too large, of another HTTP version, or leaves in doubt where its body ends.

    Raises RequestError: HTTP_VERSION_NOT_SUPPORTED, METHOD_NOT_ALLOWED (CONNECT and TRACE), URI_TOO_LONG,
    HEADERS_TOO_LARGE, INVALID_REQUEST (any Transfer-Encoding but exactly `chunked`). All close the connection.
    """
    if scope["http_version"] not in _VERSIONS:
        message = f"FLM speaks HTTP/1.1 and 1.0, not {scope['http_version']}"
        raise RequestError(ErrorKind.HTTP_VERSION_NOT_SUPPORTED, message, headers=_CLOSE)
    if head.method in TUNNELS:
        message = f"{head.method} is never allowed here"
        raise RequestError(ErrorKind.METHOD_NOT_ALLOWED, message, headers=((b"allow", b"GET, HEAD, POST"), *_CLOSE))
    if len(head.path) + 1 + len(scope["query_string"]) > MAX_TARGET_BYTES:
        message = f"the request target is longer than {MAX_TARGET_BYTES} bytes"
        raise RequestError(ErrorKind.URI_TOO_LONG, message, headers=_CLOSE)
    if size > MAX_HEADER_BYTES:
        message = f"the request headers are larger than {MAX_HEADER_BYTES} bytes"
        raise RequestError(ErrorKind.HEADERS_TOO_LARGE, message, headers=_CLOSE)
    coding = head.fields.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        message = "the only transfer coding FLM accepts is exactly one `chunked`"
        raise RequestError(ErrorKind.INVALID_REQUEST, message, headers=_CLOSE)


def check_json_body(fields: dict[bytes, bytes]) -> None:
    """Refuse a body that cannot be JSON FLM reads. A missing content-type is taken for JSON.

    Raises RequestError: LENGTH_REQUIRED without a framing header (no body was sent), UNSUPPORTED_MEDIA_TYPE for
    another content-type or any content-encoding but `identity`: FLM never inflates.
    """
    if b"content-length" not in fields and b"transfer-encoding" not in fields:
        raise RequestError(ErrorKind.LENGTH_REQUIRED, "the request has no body: send JSON with a content-length")
    media_type = fields.get(b"content-type", b"application/json")
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise RequestError(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "the body must be `content-type: application/json`")
    check_identity_coding(fields)


def check_identity_coding(fields: dict[bytes, bytes]) -> None:
    """Raises RequestError UNSUPPORTED_MEDIA_TYPE for a body that somebody would have to inflate: its limits are those
    of what was sent, not of what comes out."""
    encoding = fields.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise RequestError(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "a content-encoding is not accepted: send it plain")

"""HTTP/1.1 towards an engine: request heads out, answers in. Sans-io.

`RequestWriter` renders the head of each request to one engine. `ResponseReader` is fed the bytes of one connection,
answer by answer; after each feed it has a head, some body, the end, or needs more. Errors are raised.

Does not know sockets, time, engines, or what the bodies mean. Parsing is httptools' (llhttp, strict: no leniency is
ever switched on); what llhttp leaves open is decided here: how big a head may be, how many 1xx answers may come,
that an answer has exactly one framing, which statuses exist, and whether the connection may carry another exchange.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NoReturn
from urllib.parse import urlsplit

import httptools
import msgspec

from flm.config import UPSTREAM_HEAD_BYTES, UPSTREAM_HEADERS, UPSTREAM_INTERIM
from flm.errors import ErrorKind, Header, RequestError, UpstreamProtocolError

# Written by FLM alone, or meaningless beyond one hop (RFC 9110 §7.6.1): never taken from a request's own headers.
OWN_HEADERS: Final = frozenset(
    {
        b"accept-encoding",
        b"authorization",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_BODILESS_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})  # no content-length while the body is empty
_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 §5.6.2
_field_value = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch  # no CR, LF, NUL or other control character
_target = re.compile(rb"/[\x21-\x22\x24-\x7e]*").fullmatch  # printable ASCII without blank and `#`
_host = re.compile(r"[0-9A-Za-z._\-]+|[0-9A-Fa-f:.]+").fullmatch  # a name, an IPv4 or an IPv6 literal


LAST_CHUNK: Final = b"0\r\n\r\n"


_MOST_DIGITS: Final = 19  # a petabyte has sixteen


def chunk(data: bytes) -> bytes:
    """`data`, which is not empty (that would end the body), as one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def content_length(digits: bytes) -> int:
    """The value of a Content-Length, decimal also behind leading zeros. Whoever parsed the head has checked that it is
    digits, not how many: a length of more than 19 stays beyond all bounds."""
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


class Address(msgspec.Struct, frozen=True):
    """Where an engine is: scheme `http` or `https`, host (IPv6 without brackets), port, base path (`` or `/a/b`)."""

    scheme: str
    host: str
    port: int
    base_path: str = ""

    @property
    def authority(self) -> str:
        """`host:port`, brackets around IPv6; the value of the host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://host:port`: how messages name an engine."""
        return f"{self.scheme}://{self.authority}"


def parse_address(url: str) -> Address:
    """`url` as an Address. Raises ValueError, saying what is wrong, unless it is http(s)://host[:port][/base/path]."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"not a usable URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("an engine's URL begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an engine's URL carries no user name or password; give the credential separately")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError("an engine's URL has no query and no fragment")
    if not _host(host) or port == 0:
        raise ValueError("an engine's URL names a host (ASCII letters, digits, `.`, `-`) and a port from 1 to 65535")
    base_path = parts.path.rstrip("/")
    if base_path and not _target(base_path.encode()):
        raise ValueError("the path of an engine's URL holds blanks or characters outside ASCII")
    return Address(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), base_path)


class RequestWriter:
    """Renders request heads for one engine. Raises ValueError for a credential that no header may carry."""

    def __init__(self, address: Address, credential: str | None) -> None:
        self._base_path = address.base_path.encode()
        # No compression is asked for: what passes must be readable line by line, and nothing is ever inflated here.
        fixed = f" HTTP/1.1\r\nhost: {address.authority}\r\naccept-encoding: identity\r\nconnection: keep-alive\r\n"
        self._fixed = fixed.encode()
        if credential is not None:
            if not credential.isascii() or not credential.isprintable() or not credential or " " in credential:
                raise ValueError("the engine's credential is empty or holds characters that no header may carry")
            self._fixed += b"authorization: Bearer %s\r\n" % credential.encode()

    def head(self, method: str, path: str, headers: Iterable[Header], length: int | None) -> bytes:
        """The head of one request with a body of `length` bytes, in chunks if None, up to and with its empty line.

        `path` begins with `/`, is percent-encoded, and follows the base path. Names in OWN_HEADERS are left out.
        Raises RequestError (INVALID_REQUEST) for anything that could break out of its line.
        """
        target = path.encode("utf-8", "surrogatepass")
        if not _target(target) or not _token(verb := method.encode("utf-8", "surrogatepass")):
            raise RequestError(ErrorKind.INVALID_REQUEST, "the method or path cannot be sent to an engine")
        pieces = [verb, b" ", self._base_path, target, self._fixed]
        for name, value in headers:
            if not _token(name) or not _field_value(value):
                raise RequestError(ErrorKind.INVALID_REQUEST, "a header cannot be sent to an engine")
            if name.lower() not in OWN_HEADERS:
                pieces += (name, b": ", value, b"\r\n")
        if length is None:
            pieces.append(b"transfer-encoding: chunked\r\n")
        elif length or method not in _BODILESS_METHODS:
            pieces.append(b"content-length: %d\r\n" % length)
        pieces.append(b"\r\n")
        return b"".join(pieces)


class ResponseReader:
    """Reads the answers of one connection, one after another.

    `begin` before each answer, then `feed` the bytes as they come and `take` the body. Attributes of the current
    answer: `started` (a byte has come), `head_complete`, `status` (200..599), `headers` (names lower case, repeated
    ones joined by `, `), `complete`. Bounded: a head of UPSTREAM_HEAD_BYTES in UPSTREAM_HEADERS lines, 1xx answers
    and trailers counted in; body not yet taken is the caller's business. After an error only `take` makes sense.
    The methods named `on_…` are called by httptools.
    """

    __slots__ = (
        "_bodiless",
        "_close_delimited",
        "_fault",
        "_head_bytes",
        "_interim",
        "_keep_alive",
        "_lines",
        "_parser",
        "_pieces",
        "_prefix",
        "_unframed",
        "complete",
        "head_complete",
        "headers",
        "started",
        "status",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self.begin("GET")

    def begin(self, method: str) -> None:
        """The next bytes answer a request with `method`. Only after `reusable`, or on a new connection."""
        self._bodiless = method == "HEAD"
        self._close_delimited = False
        self._fault: UpstreamProtocolError | None = None
        self._head_bytes = self._lines = self._interim = 0
        self._keep_alive = True
        self._prefix: bytes | None = b""  # of the first five bytes, until they are there
        self._unframed = 0  # bytes since something came of them: a head, a trailer or a chunk's size line in the making
        self.started = self.head_complete = self.complete = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    @property
    def reusable(self) -> bool:
        """The answer is complete, nothing follows it, and the engine keeps the connection open."""
        return self.complete and self._keep_alive

    @property
    def in_head(self) -> bool:
        """Part of a head has come. False after an interim answer: the final one has not begun."""
        return not self.head_complete and self._unframed > 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the connection.

        Raises UpstreamProtocolError if they are not an answer FLM accepts; what came before the fault can be taken.
        Bytes after the end raise nothing: the answer is whole, only the connection is of no more use.
        """
        if self.complete:
            self._keep_alive = False
            return
        self.started = True
        if self._prefix is not None:
            self._check_prefix(data)
        self._unframed += len(data)
        self._parse(data)
        if self._unframed > UPSTREAM_HEAD_BYTES:
            raise UpstreamProtocolError(f"the engine sent a head or line of more than {UPSTREAM_HEAD_BYTES} bytes")

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._fault is not None:
                raise self._fault from None
            if not self.complete:
                raise UpstreamProtocolError(f"the engine's answer is not valid HTTP: {error}") from None
            self._keep_alive = False

    def take(self) -> bytes:
        """The body bytes fed since the last call, without their framing; may be empty."""
        pieces = self._pieces
        if not pieces:
            return b""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def end(self) -> bool:
        """The connection has ended. True: the answer is whole; False: it ended too early."""
        self._keep_alive = False
        if self._close_delimited and self._fault is None:
            self.complete = True
        return self.complete

    def _check_prefix(self, data: bytes | memoryview) -> None:
        # llhttp also takes RTSP, ICE and leading empty lines.
        prefix = (self._prefix or b"") + bytes(data[:5])
        if prefix[:5] != b"HTTP/"[: len(prefix)]:
            raise UpstreamProtocolError("the engine's answer is not HTTP")
        self._prefix = prefix if len(prefix) < 5 else None

    def _reject(self, message: str) -> NoReturn:
        # httptools wraps what its callbacks raise; `feed` raises the fault itself.
        self._fault = UpstreamProtocolError(message)
        raise self._fault

    def on_message_begin(self) -> None:
        if self.complete:  # the first byte of something nobody asked for
            self._keep_alive = False

    def on_status(self, reason: bytes) -> None:
        self._count(len(reason) + 15)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        if self._lines > UPSTREAM_HEADERS:
            self._reject(f"the engine's answer has more than {UPSTREAM_HEADERS} header lines")
        self._count(len(name) + len(value) + 4)
        if self.head_complete:  # a trailer: nobody needs it
            return
        name = name.lower()
        value = value.rstrip(b" ")  # a tab stays: llhttp does not recognise `chunked` before one, so neither may we
        known = self.headers.get(name)
        self.headers[name] = value if known is None else known + b", " + value

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > UPSTREAM_HEAD_BYTES:
            self._reject(f"the head of the engine's answer is larger than {UPSTREAM_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        if self.complete:  # a whole second answer in the same segment
            return
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._reject(f"the engine answers in HTTP/{version}")
        if 100 <= status < 200:
            self._check_interim(status)
            return
        if not 200 <= status <= 599:
            self._reject(f"the engine's answer has the status {status:03d}, which does not exist")
        self._decide_framing(status, version)
        self.status = status
        self.head_complete = True
        self._unframed = 0
        if self._bodiless:
            self.complete = True

    def _check_interim(self, status: int) -> None:
        self._interim += 1
        if status == 101:
            self._reject("the engine switched protocols, which nobody asked for")
        if self._interim > UPSTREAM_INTERIM:
            self._reject(f"the engine sent more than {UPSTREAM_INTERIM} interim answers")
        if b"content-length" in self.headers or b"transfer-encoding" in self.headers:
            self._reject("the engine sent an interim answer with a body")

    def _decide_framing(self, status: int, version: str) -> None:
        headers = self.headers
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None:
            # A list, another coding, or chunks for HTTP/1.0: what llhttp would read until the connection closes.
            if encoding.lower() != b"chunked" or version == "1.0" or status == 204:
                self._reject(
                    "the engine's answer has a transfer-encoding other than `chunked`, or one that is misplaced"
                )
            if b"content-length" in headers:
                self._reject("the engine's answer has both transfer-encoding and content-length")
        if version == "1.0" or b"close" in headers.get(b"connection", b"").lower():
            self._keep_alive = False
        if self._bodiless:  # llhttp does not know the method: it would wait for a body
            self._keep_alive = False
        elif status in (204, 304):
            self._bodiless = True
            self._keep_alive = self._keep_alive and encoding is None
        elif encoding is None and b"content-length" not in headers:
            self._close_delimited = True
            self._keep_alive = False

    def on_body(self, data: bytes) -> None:
        self._unframed = 0
        if self.complete:
            self._keep_alive = False
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
        else:  # an interim answer: the next head begins afresh
            self.headers = {}
            self._unframed = 0

"""What a dialect of the demo engine is: a pure function from a request to an answer, and its own way to write a head.

A dialect knows the bytes an engine puts on the wire. It does not know sockets, time or failures of the transport: an
answer carries its directives, and `delivery` obeys them. A new dialect is one file and one line in `registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from flm.demo.directives import NONE, Directives

REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Payload Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class Request(msgspec.Struct, frozen=True):
    """One whole request. Header names are lower case, the last one of a name wins. `created` is in Unix seconds.

    `serial` counts requests of this process from 1: what an engine would choose at random is derived from it.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    body: bytes
    serial: int
    created: float
    keep_alive: bool = True
    preset: Directives | None = None  # set from outside for this path; wins over what the request itself says


class Answer(msgspec.Struct):
    """One answer. `body` as bytes has a length; an iterable is sent chunked, a chunk per piece, and may be endless."""

    status: int
    content_type: bytes
    body: bytes | Iterable[bytes] = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    directives: Directives = NONE
    streamed: bool = False  # the engine's stream of a completion, for engines that write another head for it


class Dialect(Protocol):
    """One engine's habits. An instance serves all requests of one process and changes nothing."""

    name: str
    models: tuple[str, ...]

    def answer(self, request: Request) -> Answer:
        """The answer to a request; a bad request has an answer too. Raises DirectiveError."""

    def error(self, status: int, message: str) -> Answer:
        """An error in the engine's own shape."""

    def head(self, answer: Answer, length: int | None, created: float, keep_alive: bool) -> bytes:
        """Status line and headers as the engine orders them. `length` None: chunked."""


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, b"Demo"))

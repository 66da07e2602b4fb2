"""What the plain-HTTP port beside HTTPS answers: a CA's challenges, and for all else the way to HTTPS. Sans-io.

Strategy: h11 reads one head of bounded size, the answer follows at once, and whatever comes after the head is ignored;
no connection has a second request. Everything a client sends is only compared, but for the path and query of a
redirect, which h11 has found to be printable ASCII and which stand behind a host of ours: the Location can neither be
split nor lead elsewhere.

Knows no socket, no deadline and no certificate. No HSTS here: over plain HTTP it means nothing (RFC 6797 §7.2).
"""

from __future__ import annotations

import ipaddress
import re
from email.utils import formatdate
from typing import Final

import h11
import msgspec

LONGEST_HEAD: Final = 4096  # bytes, the blank line included; a CA's request has some hundred, a browser's under 2000
CHALLENGES: Final = "/.well-known/acme-challenge/"  # RFC 8555 §8.3
HTTPS_PORT: Final = 443  # left out in a URL

_token = re.compile(r"[A-Za-z0-9_-]+").fullmatch  # base64url, RFC 8555 §8.3; no escape, no dot, no slash
_absolute = re.compile(r"https?://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE).fullmatch  # RFC 9112 §3.2.2
_bracketed = re.compile(r"\[([^\[\]]*)\](?::[0-9]*)?").fullmatch
_REASONS: Final = {
    200: "OK",
    308: "Permanent Redirect",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


class Site(msgspec.Struct):
    """What stands behind the port: the names that HTTPS answers to, its port, and the challenges open right now.

    `names`: DNS names in ASCII without a final dot, or IP literals without brackets; at least one, and the first is
    where whoever asked for none of them is sent. `tokens`: token to the whole answer, in ASCII. All may change while
    connections are open.
    """

    names: tuple[str, ...]
    https_port: int
    tokens: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """One answer before it is bytes. `headers` are beside those that each answer has."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/plain; charset=utf-8"


class PlainConnection:
    """One client's connection: fed its bytes until there is an answer, after which nothing is read any more."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._room = LONGEST_HEAD
        self._without_body = False
        self.answered = False

    def feed(self, data: bytes, now: float) -> bytes | None:
        """Take what came, some bytes. The whole answer, once: send it and let the connection end; None before and
        after. `now`, in Unix seconds, becomes its date. Raises nothing."""
        if self.answered or not data:
            return None
        answer = self._read(data[: self._room])
        if answer is None:
            return None
        self.answered = True
        return self._render(answer, now)

    def _read(self, data: bytes) -> Answer | None:
        self._room -= len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:  # its words may be the client's, so they are not repeated
            status = error.error_status_hint
            return Answer(status if status in _REASONS else 400, "This is no HTTP/1.1 request.\n")
        if isinstance(event, h11.Request):
            self._without_body = event.method == b"HEAD"
            return answer_to(self._site, event)
        if self._room == 0:
            return Answer(431, f"This port takes {LONGEST_HEAD} bytes of request head at most.\n")
        return None

    def _render(self, answer: Answer, now: float) -> bytes:
        body = answer.body.encode("ascii")
        headers = [
            ("date", formatdate(now, usegmt=True)),
            ("content-type", answer.content_type),
            ("content-length", str(len(body))),
            # Of a redirect too, which is else kept for good, and would send to a port or mode that is no more.
            ("cache-control", "no-store"),
            ("connection", "close"),
            *answer.headers,
        ]
        response = h11.Response(status_code=answer.status, reason=_REASONS[answer.status], headers=headers)
        sent = self._http.send(response) or b""
        if self._without_body:
            return sent
        return sent + (self._http.send(h11.Data(data=body)) or b"")


def answer_to(site: Site, request: h11.Request) -> Answer:
    """What a request is answered, of which h11 says that it is one. Pure."""
    if not request.http_version.startswith(b"1."):
        return Answer(505, "This port speaks HTTP/1.1.\n")
    host = next((value for name, value in request.headers if name == b"host"), b"").decode("latin-1")
    target = request.target.decode("ascii")
    absolute = _absolute(target)
    if absolute is not None:
        host, target = absolute[1], absolute[2]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/"):
        return Answer(400, "This port serves paths only, no other host and no tunnel.\n")
    path = target.partition("?")[0]
    if path.startswith(CHALLENGES):
        return _challenge(site, request.method, path.removeprefix(CHALLENGES))
    origin = _origin(site, host)
    return Answer(308, f"This is served over HTTPS: {origin}\n", (("location", origin + target),))


def _challenge(site: Site, method: bytes, token: str) -> Answer:
    if method not in (b"GET", b"HEAD"):
        return Answer(405, "A challenge is read with GET.\n", (("allow", "GET, HEAD"),))
    answer = site.tokens.get(token) if _token(token) else None
    if answer is None:
        return Answer(404, "No challenge of this name is open.\n")
    return Answer(200, answer, content_type="application/octet-stream")  # RFC 8555 §8.3


def _origin(site: Site, host: str) -> str:
    """Where `host`, of a request, is served over HTTPS: at itself if it is one of ours, else at our first name."""
    wanted = _name(host)
    name = next((name for name in site.names if wanted and _name(name) == wanted), site.names[0])
    authority = f"[{name}]" if ":" in name else name
    return f"https://{authority}" if site.https_port == HTTPS_PORT else f"https://{authority}:{site.https_port}"


def _name(host: str) -> str:
    """A name or IP literal, with or without port and brackets, in one form to compare it by."""
    bracketed = _bracketed(host)
    name = bracketed[1] if bracketed else host if host.count(":") > 1 else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).compressed
    except ValueError:
        return name.lower().removesuffix(".")

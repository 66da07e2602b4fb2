"""A CA that misbehaves on demand: a TLS reverse proxy before Pebble, which asks a script before and after each request.

with scripted(ca) as front:
    front.script("finalize", hang())                                   # the first one hangs, the next goes through
    front.script("order", problem("rateLimited", "too many", 429, retry_after="3600"))
    front.always("directory", answer(200, b"<html>login</html>", content_type="text/html"))
    ... front.directory, front.ca_file, front.seen, front.count("account", 201) ...

A step is what a request is for: directory, nonce, account, contact, order, authorization, challenge, finalize, poll,
certificate, renewal. A reaction is a function of the exchange and of `forward`, which asks Pebble; what it returns is
answered, and None drops the connection. Pebble makes its URLs from the Host header, so everything comes this way.

Knows Pebble's paths; no client. Works in threads of its own, so it may stand before a client in the same process or
another one.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.pebble import Ca

_STEPS = {
    "dir": "directory",
    "nonce-plz": "nonce",
    "sign-me-up": "account",
    "my-account": "contact",
    "order-plz": "order",
    "authZ": "authorization",
    "chalZ": "challenge",
    "finalize-order": "finalize",
    "my-order": "poll",
    "certZ": "certificate",
    "draft-ietf-acme-ari-03": "renewal",
}
_HOP_BY_HOP = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive"})
_HEADERS = ("retry_after", "link", "date", "replay_nonce")
_WAIT_SECONDS = 20.0


@dataclass
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Exchange:
    """One request: the how-manyth of its step it is, its headers by names in small letters, and the
    status that it got, if only from Pebble."""

    step: str
    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None

    @property
    def payload(self) -> Any:
        """What a signed request says."""
        text = json.loads(self.body)["payload"]
        return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) or b"null")


Forward = Callable[[], Reply]
Reaction = Callable[[Exchange, Forward], "Reply | None"]


def passed(_exchange: Exchange, forward: Forward) -> Reply:
    """As if nobody stood between."""
    return forward()


def answer(status: int, body: bytes = b"", **headers: str) -> Reaction:
    """Pebble is not asked. Headers are written with underscores: `content_type`."""
    return lambda _exchange, _forward: Reply(status, body, _named(headers))


def problem(name: str, detail: str, status: int = 403, **more: Any) -> Reaction:
    """Pebble is not asked; a problem document. What _HEADERS names are headers, all else is more of the document."""
    headers = {each: str(more.pop(each)) for each in _HEADERS if each in more}
    document = {"type": f"urn:ietf:params:acme:error:{name}", "detail": detail, "status": status, **more}
    headers["content_type"] = "application/problem+json"
    return answer(status, json.dumps(document).encode(), **headers)


def dropped(_exchange: Exchange, _forward: Forward) -> None:
    """Pebble is not asked, and the connection breaks."""


def dropped_after(_exchange: Exchange, forward: Forward) -> None:
    """Pebble has done it, and its answer is lost."""
    forward()


def changed(change: Callable[[Reply], None]) -> Reaction:
    """Pebble's answer, after `change`."""

    def react(_exchange: Exchange, forward: Forward) -> Reply:
        reply = forward()
        change(reply)
        return reply

    return react


def edited(change: Callable[[dict[str, Any]], object]) -> Reaction:
    """Pebble's answer after `change` of its JSON document; refusals (of a nonce, say) pass."""

    def edit(reply: Reply) -> None:
        if reply.status < 300:
            document = json.loads(reply.body)
            change(document)
            reply.body = json.dumps(document).encode()

    return changed(edit)


def doing(act: Callable[[], object], then: Reaction) -> Reaction:
    """`act` when the request has come, and then as `then` says."""

    def react(exchange: Exchange, forward: Forward) -> Reply | None:
        act()
        return then(exchange, forward)

    return react


def afterwards(act: Callable[[], object]) -> Reaction:
    """`act` when Pebble has done what was asked; its answer is lost."""

    def react(_exchange: Exchange, forward: Forward) -> None:
        forward()
        act()

    return react


class Front:
    """A running one."""

    def __init__(self, ca: Ca) -> None:
        self.ca = ca
        self.ca_file = ca.ca_file
        self.seen: list[Exchange] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(ca.certificate)
        self._scripts: dict[str, deque[Reaction]] = {}
        self._always: dict[str, Reaction] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._server = _Server(self, self._context)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def directory(self) -> str:
        return f"https://localhost:{self.port}/dir"

    def script(self, step: str, *reactions: Reaction) -> None:
        """What is done with the next requests of that step, one reaction each; later ones pass."""
        self._scripts.setdefault(step, deque()).extend(reactions)

    def always(self, step: str, reaction: Reaction) -> None:
        """What is done with each request of that step for which there is nothing else."""
        self._always[step] = reaction

    def show(self, certificate: Path) -> None:
        """Another certificate of its own for connections from now on, in one file with its key."""
        self._context.load_cert_chain(certificate)

    def hang(self, _exchange: Exchange, _forward: Forward) -> None:
        """A reaction: no answer until the front ends."""
        self._ended.wait()

    def count(self, step: str, status: int | None = None) -> int:
        """How many requests of a step were answered with `status`, or came at all."""
        return sum(each.step == step and status in (None, each.status) for each in list(self.seen))

    def wait_for(self, step: str, number: int = 1, seconds: float = _WAIT_SECONDS) -> None:
        """Until so many requests of that step have come. Fails when they do not."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(step) >= number, seconds), f"no {step} number {number}"

    # --- for the server's threads ---

    def react(self, method: str, path: str, headers: dict[str, str], body: bytes, forward: Forward) -> Reply | None:
        """What to answer to a request."""
        step = _STEPS.get(path.split("/")[1], path)
        with self._changed:
            exchange = Exchange(step, self.count(step) + 1, method, path, headers, body)
            self.seen.append(exchange)
            waiting = self._scripts.get(step)
            reaction = waiting.popleft() if waiting else self._always.get(step, passed)
            self._changed.notify_all()

        def noted() -> Reply:
            found = forward()
            exchange.status = found.status
            return found

        reply = reaction(exchange, noted)
        if reply is not None:
            exchange.status = reply.status
        return reply

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def end(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, front: Front, context: ssl.SSLContext) -> None:
        self.front = front
        super().__init__(("127.0.0.1", 0), _Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """Handshakes that are refused and connections that break are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together, or each answer would wait 40 ms for an acknowledgement
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.front.react(self.command, self.path, headers, body, lambda: self._forward(body))
        if reply is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def do_POST(self) -> None:
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _forward(self, body: bytes) -> Reply:
        ca = self.server.front.ca
        connection = http.client.HTTPSConnection("localhost", ca.port, context=ca.context, timeout=_WAIT_SECONDS)
        try:
            connection.request(self.command, self.path, body or None, dict(self.headers))
            response = connection.getresponse()
            kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP}
            links = response.headers.get_all("link") or []
            return Reply(response.status, response.read(), {**kept, **({"Link": ", ".join(links)} if links else {})})
        finally:
            connection.close()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        pass


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextlib.contextmanager
def scripted(ca: Ca) -> Iterator[Front]:
    """A front before a running Pebble."""
    front = Front(ca)
    thread = threading.Thread(target=front.run)
    thread.start()
    try:
        yield front
    finally:
        front.end()
        thread.join(10)

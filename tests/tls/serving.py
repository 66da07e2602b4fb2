"""An HTTPS server with a pair, for clients that decide whether they trust it."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm.tls.pair import Pair

SAID = "trusted and answered"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        models = self.path == "/v1/models"
        body = b'{"object":"list","data":[]}' if models else f"<html><body>{SAID}</body></html>".encode()
        self.send_response(200)
        self.send_header("content-type", "application/json" if models else "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests read what clients say, not this."""


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake in the connection's own thread, so that one that hangs holds nobody else up."""
        request.settimeout(10)
        with self._context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us ends the handshake: that is its business."""


@contextlib.contextmanager
def serving(pair: Pair, folder: Path) -> Iterator[int]:
    """Serve `pair` on a port of 127.0.0.1 and yield that."""
    file = folder / f"{pair.fingerprint}.pem"
    file.write_bytes(pair.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with _Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()

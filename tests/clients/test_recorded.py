"""The Node client reads every recorded answer as the Python client does.

What the Python client reads is held to the recordings elsewhere (tests/engines/test_law.py). Here the same bytes, as
FLM gives them out for each recording and dialect, are served to both clients by a plain HTTP server: text, thoughts,
pieces of calls, token probabilities, finish reasons, usage, vectors and errors must be the same in both.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flm.engines.call import Endpoint
from flm.engines.registry import DIALECTS
from tests.clients.drivers import Client, Outcome, Running, Server
from tests.support.belonging import Recorded, packed, recorded
from tests.support.reading import answered
from tests.support.translating import outcome

CASES: dict[str, list[Recorded]] = {kind: list(recorded(kind)) for kind in DIALECTS if recorded(kind)}
OPS = {Endpoint.CHAT: "chat", Endpoint.COMPLETIONS: "complete", Endpoint.EMBEDDINGS: "embed"}
AT_ONCE = 16
STREAM_OPS = {Endpoint.CHAT: "stream", Endpoint.COMPLETIONS: "complete_stream"}


def given_out(case: Recorded, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of FLM's answer when the engine answers with `body`."""
    translation = DIALECTS[case.kind].begin(case.call)
    found = outcome(translation, case.exchange.status, case.exchange.headers, [body])
    response = answered(found, stream=case.call.peek.stream)
    return response.status_code, dict(response.headers), response.content


class Handler(BaseHTTPRequestHandler):
    """Answers `/KIND/NUMBER/v1/…` with what FLM gives out for that recording, `/KIND/NUMBER/cut/…` for a part of it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        place = re.match(r"/(\w+)/(\d+)/(cut)?", self.path)
        assert place is not None
        case = CASES[place[1]][int(place[2])]
        whole = case.exchange.body
        status, headers, body = given_out(case, whole[: len(whole) * 2 // 3] if place[3] else whole)
        self.send_response_only(status)
        for name in ("content-type", "x-request-id"):
            self.send_header(name, headers[name])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: the test says what went wrong."""


@contextmanager
def serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def begin(client: Client, base: str, number: int, case: Recorded, part: str = "v1") -> Running:
    call = case.call
    server = Server(f"{base}/{case.kind}/{number}/{part}", "key")
    args: dict[str, Any] = {"model": "m"}
    if call.endpoint is Endpoint.EMBEDDINGS:
        args |= {"input": "a"} | ({} if packed(call) else {"encoding_format": "float"})
    else:
        args |= {"messages": []} if call.endpoint is Endpoint.CHAT else {"prompt": ""}
    return client.begin(server, (STREAM_OPS if call.peek.stream else OPS)[call.endpoint], args)


def comparable(found: Outcome) -> Any:
    """What both clients must agree on; a stream's error has no class of its own in either."""
    error = found.error and (found.error.name, found.error.status, found.error.code, found.error.message)
    return (found.ok, error, found.before)


@pytest.mark.parametrize("kind", CASES)
def test_both_clients_read_the_same(kind: str, both: dict[str, Client]) -> None:
    numbered = list(enumerate(CASES[kind]))
    with serving() as base:
        for start in range(0, len(numbered), AT_ONCE):
            begun = [
                (case, [begin(both[name], base, number, case) for name in ("python", "node")])
                for number, case in numbered[start : start + AT_ONCE]
            ]
            for case, (python, node) in begun:
                assert comparable(node.outcome()) == comparable(python.outcome()), case.id


@pytest.mark.parametrize("kind", CASES)
def test_a_difference_is_seen(kind: str, both: dict[str, Client]) -> None:
    """Negative control: one client gets an answer that is cut, the other the whole one."""
    number, case = next((n, one) for n, one in enumerate(CASES[kind]) if one.call.peek.stream and good(one))
    with serving() as base:
        for cut, whole in (("python", "node"), ("node", "python")):
            damaged = comparable(begin(both[cut], base, number, case, "cut").outcome())
            assert damaged != comparable(begin(both[whole], base, number, case).outcome())


def good(case: Recorded) -> bool:
    return case.exchange.status == 200 and b"error" not in case.exchange.body

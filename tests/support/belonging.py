"""Which recorded engines a dialect speaks to, and which of its requests a recording answers: found out, not listed.

A folder of recordings belongs to each dialect that recognises the engine in it, by the answers it recorded to the
probes of `Dialect.identify`. So a new dialect takes part in every shared test by being there, and its recordings by
lying in `tests/golden/engines`. Knows no engine.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import msgspec

from flm.engines.base import Answer, Dialect, Verdict
from flm.engines.call import Call, Endpoint
from flm.engines.registry import DIALECTS
from flm.errors import RequestError
from tests.support.probing import run
from tests.support.recordings import GOLDEN, Exchange, cases, exchange
from tests.support.translating import call, chat

PLAIN: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: chat(),
    Endpoint.COMPLETIONS: {"prompt": "Say hello to the proxy."},
    Endpoint.EMBEDDINGS: {"input": "a"},
}
"""The least a client sends to each route."""


class Recorded(msgspec.Struct, frozen=True):
    """A recorded answer, and the request of a client that would have brought it about."""

    kind: str
    exchange: Exchange
    call: Call

    @property
    def id(self) -> str:
        mode = " stream" if self.call.peek.stream else " base64" if packed(self.call) else ""
        return f"{self.kind} {self.exchange.name}{mode}"


def packed(wanted: Call) -> bool:
    """Whether the caller wants its vectors as base64."""
    return bytes(wanted.peek.fields.get("encoding_format", b"")) == b'"base64"'


@functools.cache
def folders() -> tuple[str, ...]:
    """Every folder that holds recordings, as `exchange` takes it."""
    return tuple(sorted({str(path.parent.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.response.http")}))


@functools.cache
def exchanges(folder: str) -> tuple[Exchange, ...]:
    """The recordings of one folder; one that holds several answers, or none to a whole request, is left out."""
    found = []
    for name in cases(folder):
        if not (GOLDEN / folder / f"{name}.request.http").exists():
            continue  # two requests on one connection: a case about connections
        found.append(exchange(folder, name))
    return tuple(found)


def _fuller(folder: str) -> str | None:
    """The folder this one records the differences to: the one above it, else the next version of the same engine."""
    above = folder.rpartition("/")[0]
    if above:
        return above
    product, _, version = folder.rpartition("-")
    numbers = [int(part) for part in version.split(".") if part.isdigit()]
    later = []
    for other in folders():
        name, _, text = other.rpartition("-")
        parts = [int(part) for part in text.split(".") if part.isdigit()]
        if name == product and parts > numbers:
            later.append((parts, other))
    return min(later)[1] if later else None


def probed(folder: str) -> dict[str, Answer]:
    """What the engine of a folder says to probes, by path."""
    fuller = _fuller(folder)
    answers = probed(fuller) if fuller else {}
    found = [one for one in exchanges(folder) if one.method == "GET"]
    for one in sorted(found, key=lambda one: one.status == 200):  # a refusal for its headers must not stand last
        answers[one.path] = Answer(one.status, one.headers, one.body)
    return answers


@functools.cache
def belongs(kind: str, folder: str) -> bool:
    """Whether the dialect takes the engine that was recorded for one of its own."""
    return run(DIALECTS[kind].identify(), probed(folder))[0].verdict is Verdict.RECOGNISED


def begun(dialect: Dialect, endpoint: Endpoint, **more: Any) -> Call | None:
    """The least request to a route, with `more` fields; None where the dialect has no such route."""
    wanted = call({**PLAIN[endpoint], **more}, endpoint=endpoint)
    try:
        dialect.begin(wanted)
    except RequestError:
        return None
    return wanted


def streamed(found: Exchange) -> bool:
    """Whether the answer is a stream; an error is what its request asked for."""
    kind = found.headers.get(b"content-type", b"")
    if found.status == 200:
        return b"event-stream" in kind or b"ndjson" in kind
    return asked(found).get("stream") is True


def asked(found: Exchange) -> dict[str, Any]:
    """The recorded request, empty if it is no JSON object."""
    try:
        body = json.loads(found.request_body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _call(dialect: Dialect, endpoint: Endpoint, found: Exchange) -> Call | None:
    """The recorded request as a client's, if the dialect passes it on, else the least one of the same form."""
    body = asked(found)
    if found.path == endpoint.value and body:
        wanted = call({**body, "model": "flm://engine/some-model"}, endpoint=endpoint)
        try:
            dialect.begin(wanted)
        except RequestError:
            pass  # the engine was never asked in this way through FLM; what it says is translated all the same
        else:
            return wanted
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if streamed(found) else {}
    if endpoint is Endpoint.EMBEDDINGS:
        if not body.get("input"):
            return None  # FLM refuses to ask for no vectors
        more = {"input": body["input"]}
    return begun(dialect, endpoint, **more) or begun(dialect, endpoint)


def _as_base64(wanted: Call) -> Call:
    inputs = json.loads(bytes(wanted.peek.fields["input"]))
    return call({"input": inputs, "encoding_format": "base64"}, endpoint=wanted.endpoint)


@functools.cache
def recorded(kind: str) -> tuple[Recorded, ...]:
    """Every recorded answer to one of the dialect's own requests to chat, complete or embed, errors included."""
    dialect = DIALECTS[kind]
    paths: dict[str, Endpoint] = {}
    for endpoint in Endpoint:
        if (wanted := begun(dialect, endpoint)) is not None:
            paths.setdefault(dialect.begin(wanted).request.path, endpoint)
    found = []
    for folder in folders():
        if not belongs(kind, folder):
            continue
        for one in exchanges(folder):
            if one.method == "POST" and one.path in paths:
                endpoint = paths[one.path]
                wanted = _call(dialect, endpoint, one)
                if wanted is not None:
                    found.append(Recorded(kind, one, wanted))
                    if endpoint is Endpoint.EMBEDDINGS and one.path != endpoint.value:
                        found.append(Recorded(kind, one, _as_base64(wanted)))
    return tuple(found)

"""One request to /engine/{engine_id}/{path}: passed on to that engine as it is, and its answer as it comes.

Nothing is translated. Both bodies flow while they come in, each as fast as its reader takes it; neither is held whole.
A body that is cut, malformed or too large is broken off towards the engine too: its socket is closed and the end of
the body never sent. An engine that fails inside its answer ends the client's connection without an end of the body;
before its head there is time for an error of FLM's own.

What may be asked is decided before anything is sent: the engine must be one FLM knows and that answers, its path must
stay below the engine's base (`policy/paths`), the route must not be closed (`policy/closing`), and only harmless
headers cross (`policy/crossing`). A key that is restricted to some models has no business here, where FLM does
not read which model is asked.

Knows no engine by name, and not what the bytes mean.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from flm.engines.base import UpstreamRequest
from flm.errors import EngineTimeoutError, ErrorKind, Header, RequestError, engine_refusal, shown
from flm.policy import paths
from flm.policy.closing import check_open
from flm.policy.crossing import Place, Veil, answer_headers, holds_key, request_headers
from flm.policy.restrictions import Restriction, denied
from flm.proxy import patience
from flm.proxy.body import BodyReader, check_size
from flm.proxy.exchange import ClientGoneError, Exchange
from flm.proxy.head import TUNNELS, Head, check_identity_coding
from flm.proxy.respond import Responder
from flm.proxy.view import Target, View
from flm.proxy.watchdog import Watchdog
from flm.upstream.pool import Response, Upload
from flm.wire.http1 import content_length

_OWN_REFUSALS: Final = frozenset({401, 403, 407})  # FLM's credential for the engine was refused
_BODILESS: Final = frozenset({204, 304})
_LAST_EVENT: Final = b"data: [DONE]\n\n"  # clients of event streams often read no further
_STOPS_UPLOAD: Final = (
    400  # from this status on an engine does not want the rest of a body (RFC 9110 §10.1.1, 9112 §9.3)
)


class Passing(msgspec.Struct, frozen=True):
    """What has been decided about one request: to which engine it goes, and as what."""

    target: Target
    method: str
    path: str
    headers: tuple[Header, ...]


async def pass_through(exchange: Exchange, view: View, head: Head, responder: Responder) -> None:
    """Answer one request. Raises RequestError, and whatever broke the request off."""
    passing = _admitted(exchange, view, head)
    try:
        if head.has_body:
            await _with_body(exchange, view, head, passing, responder)
        else:
            await _without_body(exchange, passing, responder)
    except EngineTimeoutError as error:
        error.message += patience.advice(error.limit, passing.target.engine)
        raise


def _admitted(exchange: Exchange, view: View, head: Head) -> Passing:
    """The order matters: what is not allowed is refused before the body is looked at."""
    engine_id, rest = paths.split(head.path)
    _check_key(exchange.restriction, engine_id)
    target = view.engine(engine_id)
    exchange.record.engine_id = target.engine.id
    if head.method.upper() in TUNNELS:  # as a careless engine would read it; the rest is refused for every route
        raise RequestError(ErrorKind.METHOD_NOT_ALLOWED, f"{head.method} is never allowed here")
    path = paths.normalised(rest)
    query = paths.query(exchange.scope["query_string"])
    if holds_key((path + query).encode()):
        message = "the path or query holds an API key of FLM's: it belongs in `authorization: Bearer`, nowhere else"
        raise RequestError(ErrorKind.INVALID_REQUEST, message)
    check_open(target.dialect.closed_routes, view.openings, target.engine.id, head.method, path)
    check_identity_coding(head.fields)
    check_size(head, view.settings)
    headers = request_headers(exchange.scope["headers"]) + view.introduction(exchange.record.client_ip)
    return Passing(target, head.method, path + query, headers)


def _check_key(restriction: Restriction | None, engine_id: str) -> None:
    if restriction is None:
        return
    if restriction.models:
        raise denied("/engine/: it is restricted to models, and what is passed on there is not read")
    if not restriction.allows_engine(engine_id):
        raise denied(f"engine {shown(engine_id)}")


async def _without_body(exchange: Exchange, passing: Passing, responder: Responder) -> None:
    exchange.watch_client()
    request = UpstreamRequest(passing.path, b"", passing.method, passing.headers)
    exchange.asks()
    with await passing.target.pool.send(request) as response:
        await _answer(passing.target, response, responder)


# --- the request's body ----------------------------------------------------------------------------------------------


async def _with_body(exchange: Exchange, view: View, head: Head, passing: Passing, responder: Responder) -> None:
    # The client is asked for its body (100 Continue) only when the engine is there to take it.
    exchange.asks()
    upload = await passing.target.pool.upload(passing.method, passing.path, passing.headers, head.length)
    sender = _Sender(exchange, BodyReader(exchange, head.length, view.settings), upload)
    sending = exchange.loop.create_task(sender.run())
    sending.add_done_callback(sender.ended)
    try:
        with await upload.response() as response:
            if not sender.done:
                exchange.closing = True  # bytes of this request may still come when the answer is complete
                if response.status >= _STOPS_UPLOAD:
                    sender.discard()
            await _answer(passing.target, response, responder)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


class _Sender:
    """Takes a request's body to the engine, piece by piece, beside the task that waits for the answer.

    `done`: all of it has come. What is wrong with the body breaks the request off; the engine's faults are left to the
    task that reads its answer.
    """

    __slots__ = ("_discarding", "_exchange", "_reader", "_upload", "done")

    def __init__(self, exchange: Exchange, reader: BodyReader, upload: Upload) -> None:
        self._exchange = exchange
        self._reader = reader
        self._upload = upload
        self._discarding = False
        self.done = False

    def discard(self) -> None:
        """The engine wants no more. The rest is still read, so that a client that sends first can then read."""
        self._discarding = True
        self._upload.stop()

    async def run(self) -> None:
        """To the end of the body. Raises RequestError for a body that is cut, malformed or too large."""
        exchange, reader = self._exchange, self._reader
        # A timer of its own: the request's may be measuring how fast the client takes the answer.
        reader.watchdog = Watchdog(exchange.loop, self._broken)
        exchange.body_begun = True
        try:
            while (piece := await reader.next()) is not None:
                reader.watchdog.disarm()
                exchange.record.bytes_in += len(piece)
                asked = exchange.loop.time()
                await self._upload.write(piece)
                reader.excuse(exchange.loop.time() - asked)
        finally:
            reader.watchdog.close()
        exchange.body_unread = False
        self.done = True
        exchange.watch_client()
        await self._upload.end()

    def ended(self, task: asyncio.Task[None]) -> None:
        """Whatever went wrong in `run` ends the request."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        if not self._discarding:
            self._exchange.interrupt(error)
        elif self._reader.cut:
            self._exchange.interrupt(ClientGoneError())


# --- the answer ------------------------------------------------------------------------------------------------------


async def _answer(target: Target, response: Response, responder: Responder) -> None:
    """The engine's answer as it comes. Raises RequestError for one that cannot be passed on."""
    veil = Veil(target.engine.credential)
    if response.status in _OWN_REFUSALS:
        raise engine_refusal(response.status, "its words are not passed on; see `flm engines list`")
    place = Place(target.engine.id, target.pool.origin, target.pool.base_path)
    headers = answer_headers(response.headers, place, veil.secret)
    bodiless = response.status in _BODILESS
    length = response.headers.get(b"content-length", b"")
    left = content_length(length) if length.isdigit() else -1  # bytes to the end, if that is known
    if left >= 0 and not bodiless:
        headers.append((b"content-length", b"%d" % left))  # written anew: `010` is eight for some
    await responder.begin(response.status, headers, last=bodiless or left == 0)
    if bodiless or responder.without_body:
        response.release()
        await responder.end_stream()
        return
    while data := await response.read():
        if piece := veil.feed(data):
            left -= len(piece)
            await responder.write(piece, last=left == 0 or piece.endswith(_LAST_EVENT))
    if rest := veil.finish():
        await responder.write(rest, last=True)
    response.release()
    await responder.end_stream()

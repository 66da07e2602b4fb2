"""One translated request: peek, route, translate, ask the engine, translate back.

The engine's socket is closed the moment the request is broken off, whoever broke it off: every path out of here
releases the engine's answer, read to its end, or aborts it, or leaves it (which aborts it too, but for the engines that
break when they are cut: flm/upstream/draining.py).

Knows no engine by name: the dialect of the route translates.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec

from flm.config import MAX_ANSWER_BYTES, MAX_CHAT_VALUES, MAX_INPUT_VALUES
from flm.engines.base import Translation
from flm.engines.call import Call, Change, Endpoint
from flm.errors import EngineTimeoutError, Header, RequestError, UpstreamProtocolError
from flm.proxy import patience
from flm.proxy.body import read_body
from flm.proxy.exchange import Exchange
from flm.proxy.head import Head, check_json_body
from flm.proxy.keepalive import KeepAlive
from flm.proxy.respond import Responder, warnings_header
from flm.proxy.view import Target, View
from flm.upstream.pool import Response
from flm.wire.openai import check_values, peek

SETTLE_SECONDS: Final = 1.0  # for the last bytes of an answer that is complete, so that its connection can be kept
_REMOVED: Final = "(removed)"
_TELLING: Final = 4  # characters of a credential's beginning that are not shown either

_ID_PREFIXES: Final = {Endpoint.CHAT: "chatcmpl", Endpoint.COMPLETIONS: "cmpl", Endpoint.EMBEDDINGS: "embd"}


async def infer(endpoint: Endpoint, exchange: Exchange, view: View, head: Head, responder: Responder) -> None:
    """Answer one request to a translated route. Raises RequestError, and whatever broke the request off."""
    record = exchange.record
    check_json_body(head.fields)
    body = await read_body(exchange, head, view.settings)
    exchange.watch_client()
    check_values(body, MAX_CHAT_VALUES if endpoint is Endpoint.CHAT else MAX_INPUT_VALUES)
    peeked = peek(body)
    record.model = peeked.model
    route = view.routes.resolve(peeked.model, exchange.restriction)
    record.engine_id = route.engine.id
    target = view.target(route)
    call = Call(
        endpoint,
        peeked,
        route.model.name,
        response_id=f"{_ID_PREFIXES[endpoint]}-{exchange.request_id}",
        created=int(time.time()),
        engine_version=route.engine.version,
        capabilities=route.model.capabilities,
    )
    translation = target.dialect.begin(call)
    if introduction := view.introduction(record.client_ip):
        request = translation.request
        translation.request = msgspec.structs.replace(request, headers=request.headers + introduction)
    headers = _warnings(translation.changes, exchange)
    exchange.asks()
    try:
        if translation.streaming:
            await _stream(exchange, view, target, translation, responder, headers)
        else:
            await _whole(target, translation, responder, headers)
    except RequestError as error:
        if isinstance(error, EngineTimeoutError):
            error.message += patience.advice(error.limit, route.engine, route.model.name)
        _take_out(route.engine.credential, error)
        raise


def _take_out(credential: str | None, error: RequestError) -> None:
    """Engines tend to repeat the key they refuse; theirs is FLM's, and none of the client's business."""
    if credential:
        error.message = _without(credential, error.message)
        error.code = _without(credential, error.code)
        error.param = error.param and _without(credential, error.param)


def _without(credential: str, text: str) -> str:
    """`text` without `credential`, nor the beginning of it that is left where an engine's words were cut short."""
    text = text.replace(credential, _REMOVED)
    for length in range(min(len(credential) - 1, len(text)), _TELLING - 1, -1):
        if text.endswith(credential[:length]):
            return text[:-length] + _REMOVED
    return text


def _warnings(changes: tuple[Change, ...], exchange: Exchange) -> tuple[Header, ...]:
    if not changes:
        return ()
    listed = warnings_header(tuple((change.parameter, change.action, change.value) for change in changes))
    exchange.record.warnings = [f"{change.parameter} {change.action}" for change in changes]
    return ((b"x-flm-warnings", listed),)


async def _whole(target: Target, translation: Translation, responder: Responder, headers: tuple[Header, ...]) -> None:
    with await target.pool.send(translation.request) as response:
        translation.head(response.status, response.headers)
        pieces = []
        size = 0
        while data := await response.read():
            piece = translation.feed(data)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamProtocolError(f"the engine's answer is larger than {MAX_ANSWER_BYTES} bytes")
            pieces.append(piece)
        response.release()
        pieces.append(translation.finish())
    await responder.whole(200, b"".join(pieces), headers)


async def _stream(
    exchange: Exchange,
    view: View,
    target: Target,
    translation: Translation,
    responder: Responder,
    headers: tuple[Header, ...],
) -> None:
    interval = view.settings.engine_keepalive_comment_seconds
    async with KeepAlive(exchange, responder, headers, interval) as silence:
        with await target.pool.send(translation.request) as response:
            translation.head(response.status, response.headers)
            pieces = _Pieces(response, translation)
            piece = await pieces.next()
            await silence.stop()
            await responder.begin_stream(headers)
            while piece:
                await responder.write(piece, last=pieces.over)
                piece = await pieces.next()
            await responder.end_stream()
            await _settle(response)


class _Pieces:
    """The translated answer, piece by piece."""

    __slots__ = ("_ended", "_response", "_translation")

    def __init__(self, response: Response, translation: Translation) -> None:
        self._response = response
        self._translation = translation
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether `next` has returned everything."""
        return self._ended or self._translation.complete

    async def next(self) -> bytes:
        """The next bytes for the client; b"" when everything it needs has been returned."""
        translation, response = self._translation, self._response
        if self.over:
            return b""
        while data := await response.read():
            if piece := translation.feed(data):
                return piece
        self._ended = True
        response.release()
        return translation.finish()


async def _settle(response: Response) -> None:
    """The client has everything; take what the engine still sends, so that the connection can be used again."""
    response.satisfied = True
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            while await response.read():
                pass
        response.release()
    except (TimeoutError, RequestError):
        response.leave()  # the answer was complete: what the engine does afterwards is no concern of the client

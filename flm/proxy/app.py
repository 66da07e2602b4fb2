"""The ASGI application of one worker: the route table, the order of a request's steps, the only broad except.

The order is a promise (docs/http.md) and stands in `_serve`: request id, address, head, IP policy, host and origin,
key, scope, room for one more, rate limits, route. No branch skips a step. Errors climb to `__call__`, which answers
them once and writes the one line.

Does not know databases, files or processes: what it shares with others is in its `WorkerContext`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from flm import snapshot as snapshots
from flm._native import Buckets
from flm.engines.call import Endpoint
from flm.errors import ErrorKind, RequestError
from flm.policy import scopes
from flm.policy.keys import Keyring, Principal, authenticate
from flm.policy.paths import PREFIX as ENGINE_PREFIX
from flm.proxy import head as heads
from flm.proxy.audit import Auditor
from flm.proxy.body import drain, is_drainable
from flm.proxy.exchange import ClientGoneError, ClientTooSlowError, Exchange, Receive, Scope, Send
from flm.proxy.head import Head
from flm.proxy.inference import infer
from flm.proxy.passthrough import pass_through
from flm.proxy.recorder import Record, Recorder, method_word, path_words
from flm.proxy.respond import ALWAYS, HSTS, Responder
from flm.proxy.view import EngineFailed, OpenPool, PoolKey, View, open_pool

_CLIENT_LEFT: Final = 499  # nginx's status for a client that left before an answer; only in the log
_HEALTHY: Final = b'{"status":"ok"}'
_MODELS_PREFIX: Final = b"/v1/models/"
_REVOKED: Final = "the API key of this request was revoked while it was running"
_OVERLOAD_RETRY: Final = ((b"retry-after", b"1"),)

# For a client to read the answer to a body it had not finished sending. The server closes such a connection after the
# answer; but now and then, when FLM had just stopped waiting for more of the body, it goes on waiting for ever.
LINGER_SECONDS: Final = 2.0

Handler = Callable[[Exchange, View, Head, Responder], Awaitable[None]]


class Keys(Keyring, Protocol):
    """The part of the native keyring that is needed here."""

    def ids(self) -> list[str]: ...


class SharedMemory(Protocol):
    """The part of the native shared memory that is needed here."""

    def epoch(self) -> int: ...
    def snapshot(self) -> tuple[int, bytes]: ...
    def add(self, slot: int, counter: int, delta: int, /) -> None: ...


def _leave_open(_client: tuple[str, str]) -> None:
    """Where the runtime cannot cut a connection, it ends by TCP_USER_TIMEOUT."""


def _keep_quiet(_engine_id: str, _message: str) -> None:
    """Where nobody watches the engines, a failure is known to the request alone."""


def _forget(_key_id: str) -> None:
    """Where nobody asks when a key was last used."""


class WorkerContext(msgspec.Struct, kw_only=True):
    """What the composition root hands to the data path of one worker.

    `buckets`: charged by all workers. `slot`: the worker's own in shared memory. `log`: takes one JSON line, never
    blocks. `audit`: takes the row of a finished request to where this process's death does not reach it, never blocks.
    `cut`: closes the connection of a client, given as (address, port), that cannot be got rid of in another way.
    `engine_failed`: is told the id of an engine that failed a request by its own fault, and what happened. `key_used`:
    is told the id of each valid key. `names`: hosts that the listener's certificate is for. `hsts`: browsers are told
    to come by HTTPS only.
    """

    shared: SharedMemory
    keyring: Keys
    buckets: Buckets
    slot: int
    log: Callable[[bytes], None]
    audit: Callable[[bytes], object]
    cut: Callable[[tuple[str, str]], None] = _leave_open
    engine_failed: EngineFailed = _keep_quiet
    key_used: Callable[[str], None] = _forget
    names: tuple[str, ...] = ()
    hsts: bool = False


ANY_METHOD: Final[tuple[str, ...]] = ()  # but the two that are refused everywhere


class Route(msgspec.Struct, frozen=True):
    """One line of the route table. `name` is what the log calls it; a public route needs no key, others
    one with `scope` (0: any key)."""

    name: str
    methods: tuple[str, ...]
    handle: Handler
    public: bool = False
    scope: int = 0


async def _health(_exchange: Exchange, _view: View, _head: Head, responder: Responder) -> None:
    await responder.whole(200, _HEALTHY)


async def _models(exchange: Exchange, view: View, _head: Head, responder: Responder) -> None:
    await responder.whole(200, view.models(exchange.restriction))


async def _model(exchange: Exchange, view: View, head: Head, responder: Responder) -> None:
    """GET /v1/models/{id}: the id holds `/` and `:`, clear or percent-encoded (decoded once)."""
    try:
        name = unquote_to_bytes(head.path[len(_MODELS_PREFIX) :]).decode()
    except UnicodeDecodeError:
        raise RequestError(ErrorKind.INVALID_MODEL, "the model id in the path is not UTF-8", param="model") from None
    exchange.record.model = name
    await responder.whole(200, view.model(name, exchange.restriction))


def _inference(endpoint: Endpoint, scope: int) -> Route:
    return Route(endpoint.value, ("POST",), partial(infer, endpoint), scope=scope)


ROUTES: Final[dict[bytes, Route]] = {
    b"/health": Route("/health", ("GET", "HEAD"), _health, public=True),
    b"/v1/models": Route("/v1/models", ("GET", "HEAD"), _models, scope=scopes.MODELS),
    b"/v1/chat/completions": _inference(Endpoint.CHAT, scopes.CHAT),
    b"/v1/completions": _inference(Endpoint.COMPLETIONS, scopes.COMPLETIONS),
    b"/v1/embeddings": _inference(Endpoint.EMBEDDINGS, scopes.EMBEDDINGS),
}
MODEL_ROUTE: Final = Route("/v1/models/{id}", ("GET", "HEAD"), _model, scope=scopes.MODELS)
ENGINE_ROUTE: Final = Route("/engine/{engine_id}/{path}", ANY_METHOD, pass_through, scope=scopes.PASSTHROUGH)
_PATHS: Final = ", ".join(each.name for each in (*ROUTES.values(), MODEL_ROUTE, ENGINE_ROUTE))
_NO_SUCH_PATH: Final = f"there is no such path here: the API is below /v1, as base URLs are; there are {_PATHS}"


def find_route(path: bytes) -> Route | None:
    """The route of a path as it was sent: exact, but for the id of a model and what follows an engine."""
    route = ROUTES.get(path)
    if route is None and path.startswith(_MODELS_PREFIX) and len(path) > len(_MODELS_PREFIX):
        return MODEL_ROUTE
    if route is None and path.startswith(ENGINE_PREFIX):
        return ENGINE_ROUTE
    return route


class App:
    """The ASGI callable."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._opener: OpenPool = partial(open_pool, engine_failed=context.engine_failed)
        self._recorder = Recorder(context.log, context.shared, context.slot)
        self._auditor = Auditor(context.audit)
        self._always = (*ALWAYS, HSTS) if context.hsts else ALWAYS
        self._current: View | None = None
        self._running: set[Exchange] = set()
        self._admitted: set[Exchange] = set()  # those with a good key that are not answered yet
        self._closing_pools: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Requests in progress."""
        return len(self._running)

    def drain(self) -> None:
        """From now on every answer closes its connection. Running requests go on."""
        self._draining = True
        for exchange in self._running:
            exchange.closing = True

    def abort_streams(self, error: RequestError) -> None:
        """End every running request with `error`: one event in a stream, a whole answer elsewhere."""
        for exchange in tuple(self._running):
            exchange.interrupt(error)

    def end_revoked(self) -> None:
        """End every running request whose key is no longer in the keyring, and no other: for when one was revoked."""
        for exchange in tuple(self._running):
            key_id = exchange.record.api_key_id
            if key_id is not None and not self._context.keyring.holds(key_id):
                exchange.interrupt(RequestError(ErrorKind.INVALID_API_KEY, _REVOKED))

    def cut_slow(self, client: tuple[str, str]) -> None:
        """Cut the connection of this client, who takes too little of what the server has for it."""
        for exchange in tuple(self._running):
            if exchange.scope["client"] == client:
                exchange.interrupt(ClientTooSlowError())  # before the cut, which would look as if the client had left
        self._context.cut(client)

    async def aclose(self) -> None:
        """Close all connections to engines, those of running requests too."""
        pools = self._current.pools.values() if self._current is not None else ()
        await asyncio.gather(*self._closing_pools, *(pool.close(running=True) for pool in pools))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its first byte to its log line. Never raises but for a foreign cancellation."""
        if scope["type"] != "http":
            return
        exchange = _exchange(scope, receive, send)
        exchange.closing = self._draining
        exchange.auditor = self._auditor
        self._running.add(exchange)
        self._recorder.begin()
        responder = Responder(exchange, without_body=scope["method"] == "HEAD", always=self._always)
        try:
            await self._attempt(self._serve(exchange, responder), exchange, responder)
            self._see_off(exchange)
            exchange.end()
            self._admitted.discard(exchange)  # what is read off behind an answer takes nobody's room
            if not await _finish_body(exchange):
                self._cut_soon(exchange)
        finally:
            exchange.end()
            self._running.discard(exchange)
            self._admitted.discard(exchange)
            exchange.settle()
            self._recorder.end(exchange.record)

    async def _serve(self, exchange: Exchange, responder: Responder) -> None:
        scope, record = exchange.scope, exchange.record
        view = self._view()
        gate = view.gate
        fields, size = heads.collect(scope["headers"])
        responder.use(view.settings, gate.headers(fields.get(b"origin")), view.by_ids)
        head = Head(scope["method"], scope["raw_path"], fields)
        exchange.head = head
        exchange.name(gate.request_id(scope["client"][0], fields))
        address = record.client_ip = gate.client(scope["client"][0], fields)
        route = find_route(head.path)
        record.endpoint = route.name if route is not None else path_words(head.path)
        heads.check(scope, head, size)
        gate.check_address(address)
        preflight = gate.check_page(head)
        if preflight is not None:
            await responder.allow(preflight)
            return
        if route is None or not route.public:
            principal = self._authenticate(view, fields.get(b"authorization"), address)
            record.api_key_id = principal.key_id
            exchange.restriction = principal.restriction
            exchange.timed = bool(principal.scopes & scopes.TIMING)
            self._context.key_used(principal.key_id)
            principal.demand(route.scope if route is not None else 0)
            self._admit(exchange, view)
            responder.add(gate.charge(self._context.buckets, principal.slot, address))
        if route is None:
            raise RequestError(ErrorKind.NOT_FOUND, _NO_SUCH_PATH)
        if head.method not in route.methods and route.methods is not ANY_METHOD:
            allow = ((b"allow", ", ".join(route.methods).encode()),)
            message = f"{route.name} takes {' and '.join(route.methods)} only"
            raise RequestError(ErrorKind.METHOD_NOT_ALLOWED, message, headers=allow)
        await route.handle(exchange, view, head, responder)

    def _authenticate(self, view: View, authorization: bytes | None, address: str) -> Principal:
        """Raises RequestError INVALID_API_KEY, or RATE_LIMIT_EXCEEDED to an address with many bad keys: only once the
        key is known to be bad, so that nobody's good key is locked out by others."""
        try:
            return authenticate(authorization, self._context.keyring, int(time.time() * 1000), view.restrictions)
        except RequestError:
            view.gate.count_bad_key(self._context.buckets, address)
            raise

    def _admit(self, exchange: Exchange, view: View) -> None:
        """Take room for one more. Only requests with a good key do, so that nobody else can use it up."""
        limit = view.settings.proxy_max_in_flight
        if len(self._admitted) >= limit:
            message = f"FLM is already answering {limit} requests (setting proxy.max_in_flight); try again shortly"
            raise RequestError(ErrorKind.OVERLOADED, message, headers=_OVERLOAD_RETRY)
        self._admitted.add(exchange)

    async def _attempt(self, work: Awaitable[None], exchange: Exchange, responder: Responder) -> None:
        """Do the work; turn whatever it raises into an answer. The only broad except of the data path."""
        try:
            try:
                await work
            except asyncio.CancelledError:
                reason = exchange.interrupted()
                if reason is None:
                    raise
                raise reason from None
        except ClientGoneError:
            _mark(exchange.record, "client_disconnected")
        except ClientTooSlowError:
            _mark(exchange.record, "client_too_slow")
            self._context.cut(exchange.scope["client"])
        except RequestError as error:
            await self._fail(error, exchange, responder)
        except Exception as error:
            self._recorder.fault(error, exchange.request_id)
            message = "FLM made a mistake; the log has it under this request id"
            await self._fail(RequestError(ErrorKind.INTERNAL_ERROR, message), exchange, responder)

    async def _fail(self, error: RequestError, exchange: Exchange, responder: Responder) -> None:
        """Answer with the error, unless the client leaves or stops reading even now."""
        exchange.forget_interruption()
        head = exchange.head
        if exchange.body_unread and head is not None and not is_drainable(exchange, head):
            exchange.closing = True
        try:
            await responder.fail(error)
        except ClientTooSlowError:
            self._context.cut(exchange.scope["client"])
        except asyncio.CancelledError:
            reason = exchange.interrupted()
            if reason is None:
                raise
            if isinstance(reason, ClientTooSlowError):
                self._context.cut(exchange.scope["client"])

    def _see_off(self, exchange: Exchange) -> None:
        """Cut the connection behind the answer to a body that was not read to its end, if the server does not."""
        if exchange.closing and exchange.body_begun and exchange.body_unread:
            self._cut_soon(exchange)

    def _cut_soon(self, exchange: Exchange) -> None:
        exchange.loop.call_later(LINGER_SECONDS, self._context.cut, exchange.scope["client"])

    def _view(self) -> View:
        """The world at this moment; taken anew when the epoch has moved."""
        view = self._current
        shared = self._context.shared
        if view is not None and view.epoch == shared.epoch():
            return view
        epoch, data = shared.snapshot()
        pools: dict[PoolKey, Any] = view.pools if view is not None else {}
        gate = view.gate if view is not None else None
        fresh = View(epoch, snapshots.decode(data), pools, self._opener, gate, self._context.names)
        self._current = fresh
        self._recorder.set_level(fresh.settings.log_level)
        for key, pool in pools.items():
            if key not in fresh.pools:
                task = asyncio.get_running_loop().create_task(pool.close())
                self._closing_pools.add(task)
                task.add_done_callback(self._closing_pools.discard)
        return fresh


_random = bytearray()  # drawn in large pieces: one system call for each request would be felt
_RANDOM_BYTES: Final = 4096
_ID_BYTES: Final = 8


def new_request_id() -> str:
    """`{Unix ms}-{16 hex digits}`."""
    if not _random:
        _random.extend(os.urandom(_RANDOM_BYTES))
    digits = _random[-_ID_BYTES:].hex()
    del _random[-_ID_BYTES:]
    return f"{int(time.time() * 1000)}-{digits}"


def _exchange(scope: Scope, receive: Receive, send: Send) -> Exchange:
    request_id = new_request_id()
    record = Record(request_id=request_id, client_ip=scope["client"][0], method=method_word(scope["method"]))
    return Exchange(scope, receive, send, request_id, record)


async def _finish_body(exchange: Exchange) -> bool:
    """Throw away the small rest of a body that was not needed, so that the connection can be used again. False if there
    was no end of it."""
    head = exchange.head
    if head is not None and exchange.body_unread and head.has_body and is_drainable(exchange, head):
        return await drain(exchange)
    return True


def _mark(record: Record, error_type: str) -> None:
    record.error_type = error_type
    record.status = record.status or _CLIENT_LEFT


def create_app(context: WorkerContext) -> App:
    """The data path of one worker. Nothing is opened before the first request."""
    return App(context)

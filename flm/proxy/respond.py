"""What goes to the client: one whole answer, or a stream of frames, or an error in whichever of the two has begun.

Every answer carries `x-request-id` and the headers of `ALWAYS`. A frame is at most SEND_FRAME_BYTES, because the server
holds four of them for a slow client; awaiting each one is the back-pressure that slows the engine down. A client that
takes nothing for `proxy.send_timeout_seconds`, or less than `proxy.min_bytes_per_second` while FLM has more for it, is
cut.

Does not know what the bytes mean, nor where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flm.config import SEND_FRAME_BYTES, Settings
from flm.errors import Header, RequestError, envelope, error_event
from flm.proxy.body import PACE_SECONDS
from flm.proxy.exchange import ClientTooSlowError, Exchange
from flm.proxy.recorder import without_keys

JSON: Final = (b"content-type", b"application/json")
STREAM_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # nginx in front would otherwise collect the stream
)
# For browsers: an answer is kept by nobody, is never taken for something else than it says, and never part of a page.
# What an engine says of these on the pass-through does not count.
ALWAYS: Final[tuple[Header, ...]] = (
    (b"server", b"flm"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
# RFC 6797: a browser that has been here once comes by HTTPS only, for a year. Not for subdomains, which are not FLM's.
HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_ALWAYS_NAMES: Final = frozenset(name for name, _ in (*ALWAYS, HSTS))
_CLOSE: Final = (b"connection", b"close")
_NO_RETRY: Final = (b"x-should-retry", b"false")
_DEFAULTS: Final = Settings()
_COMMENT: Final = b": waiting for the engine\n\n"
_STATUSES: Final = range(200, 600)  # the server's process dies on some statuses outside (docs/granian.md)

ByIds = Callable[[str, str | None], str]


def _as_it_is(text: str, _engine_id: str | None) -> str:
    """Before the engines are known, nothing is said about them."""
    return text


class Responder:
    """The answer to one request. `without_body`: only its head is wanted (HEAD). `always`: headers of every answer."""

    __slots__ = (
        "_added",
        "_always",
        "_blocked",
        "_by_ids",
        "_exchange",
        "_paced_bytes",
        "_settings",
        "_streaming",
        "started",
        "without_body",
    )

    def __init__(self, exchange: Exchange, *, without_body: bool, always: tuple[Header, ...] = ALWAYS) -> None:
        self._exchange = exchange
        self._always = always
        self._settings = _DEFAULTS
        self._added: tuple[Header, ...] = ()
        self._by_ids: ByIds = _as_it_is
        self._streaming = False
        self._blocked = 0.0
        self._paced_bytes = 0
        self.without_body = without_body
        self.started = False

    def use(self, settings: Settings, headers: tuple[Header, ...], by_ids: ByIds) -> None:
        """What is in force for this request, once it is known: the settings, headers its answer carries, whatever it
        is, and how engines are called in errors (see `View.by_ids`)."""
        self._settings = settings
        self._added = headers
        self._by_ids = by_ids

    def add(self, headers: tuple[Header, ...]) -> None:
        """More headers for whatever the answer is."""
        if headers:
            self._added += headers

    async def whole(self, status: int, body: bytes, headers: tuple[Header, ...] = ()) -> None:
        """One JSON answer of known length."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [JSON, length, *headers])
        await self._frames(b"" if self.without_body else body, more=False)

    async def allow(self, headers: tuple[Header, ...]) -> None:
        """The answer to a preflight, without a body; `headers` say all there is to say to a browser."""
        self._added = headers
        await self._start(204, [])
        await self._frame(b"", more=False)

    async def begin_stream(self, headers: tuple[Header, ...]) -> None:
        """The head of an event stream; does nothing if it has been sent."""
        if not self.started:
            self._streaming = True
            await self._start(200, [*STREAM_HEADERS, *headers])

    async def begin(self, status: int, headers: list[Header], *, last: bool = False) -> None:
        """The head of an answer that FLM passes on as it is; it reaches the client before any piece of the body.
        `last`: it says that there is no body."""
        await self._start(status, [header for header in headers if header[0] not in _ALWAYS_NAMES])
        if last:
            self._exchange.audit(0)
        if not self.without_body:
            await self._frame(b"", more=True)  # the server holds back a head that no body follows

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the stream that has begun. Returns when the server has taken it. `last`: a client may take what it
        has then for the whole answer."""
        record = self._exchange.record
        if record.ttft_ms is None:
            record.ttft_ms = self._exchange.elapsed_ms()
        if last:
            self._exchange.audit(len(data))
        await self._frames(data, more=True)

    async def comment(self) -> None:
        """A line that clients ignore and that keeps whatever stands between from giving up."""
        await self._frames(_COMMENT, more=True)

    async def end_stream(self) -> None:
        """The orderly end of the stream."""
        await self._frame(b"", more=False)

    async def fail(self, error: RequestError) -> None:
        """The error: a whole answer if nothing has been sent, else the one event that ends a stream.

        A whole answer that broke off half-way cannot be mended: it stays short, and the server cuts the connection.
        """
        record = self._exchange.record
        record.error_type = error.kind.code  # an engine's own code may be any text
        error.message = self._by_ids(without_keys(error.message), record.engine_id)
        if self._exchange.answered:
            return
        request_id = self._exchange.request_id
        if not self.started:
            retry = (_NO_RETRY,) if error.should_retry is False else ()
            status = error.status if error.status in _STATUSES else 502
            await self.whole(status, envelope(error, request_id), (*error.headers, *retry))
        elif self._streaming:
            await self._frames(error_event(error, request_id), more=False)

    async def _start(self, status: int, headers: list[Header]) -> None:
        exchange = self._exchange
        self.started = True
        exchange.record.status = status
        headers += self._always
        headers += self._added
        headers.append((b"x-request-id", exchange.request_id.encode()))
        if exchange.timed:
            headers.append((b"server-timing", exchange.timing()))
        if exchange.closing and _CLOSE not in headers:
            headers.append(_CLOSE)
        await exchange.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _frames(self, data: bytes, *, more: bool) -> None:
        if len(data) <= SEND_FRAME_BYTES:
            await self._frame(data, more=more)
            return
        for start in range(0, len(data), SEND_FRAME_BYTES):
            end = start + SEND_FRAME_BYTES
            await self._frame(data[start:end], more=more or end < len(data))

    async def _frame(self, data: bytes, *, more: bool) -> None:
        exchange = self._exchange
        if not more:
            exchange.audit(len(data))
            exchange.answered = True
        before = exchange.loop.time()
        exchange.watchdog.arm(before + self._settings.proxy_send_timeout_seconds, ClientTooSlowError)
        await exchange.send({"type": "http.response.body", "body": data, "more_body": more})
        exchange.watchdog.disarm()
        exchange.record.bytes_out += len(data)
        self._paced_bytes += len(data)
        waited = exchange.loop.time() - before
        if waited > 0:
            self._check_pace(waited)

    def _check_pace(self, waited: float) -> None:
        """Only time spent waiting for the client counts: a slow engine is not the client's fault."""
        self._blocked += waited
        if self._blocked < PACE_SECONDS:
            return
        if self._paced_bytes < self._blocked * self._settings.proxy_min_bytes_per_second:
            raise ClientTooSlowError
        self._blocked = 0.0
        self._paced_bytes = 0


def warnings_header(changes: tuple[tuple[str, str, object], ...]) -> bytes:
    """Changes (parameter, action, value) as an RFC 9651 list: `temperature;action=clamped;value=2, …`."""
    return b", ".join(_warning(*change) for change in changes)


def _warning(parameter: str, action: str, value: object) -> bytes:
    text = f"{_token(parameter)};action={_token(action)}"
    if value is not None:
        text += f";value={_bare_item(value)}"
    return text.encode("ascii")


_TOKEN_CHARS: Final = frozenset("!#$%&'*+-.^_`|~:/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MAX_INTEGER: Final = 999_999_999_999_999  # RFC 9651 §3.3.1
_MAX_DECIMAL: Final = 999_999_999_999.0  # §3.3.2: twelve digits before the point, three behind it


def _token(text: str) -> str:
    is_token = (text[:1].isalpha() or text[:1] == "*") and text.isascii() and _TOKEN_CHARS.issuperset(text)
    return text if is_token else _string(text)


def _bare_item(value: object) -> str:
    if isinstance(value, bool):
        return "?1" if value else "?0"
    if isinstance(value, int) and abs(value) <= _MAX_INTEGER:
        return str(value)
    if isinstance(value, float) and abs(value) <= _MAX_DECIMAL:
        text = f"{value:.3f}".rstrip("0")
        return text + "0" if text.endswith(".") else text
    return _token(str(value))


def _string(text: str) -> str:
    shown = "".join(char if " " <= char <= "~" else "?" for char in text)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'

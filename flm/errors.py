"""Every way FLM can say no, and the one place that renders it for an HTTP client.

Two families, one for each listener: `RequestError` answers an HTTP client, `CommandError` answers the person at
the CLI. What a kind means in status, type and code stands in one table each, and nowhere else.

Knows nothing of sockets, engines or databases: it turns facts into bytes.
"""

from __future__ import annotations

import enum

import msgspec

Header = tuple[bytes, bytes]


class FlmError(Exception):
    """Anything FLM raises on purpose. `message` is for people and never holds a secret, a prompt or an answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


_SHOWN = 200  # characters of a caller's own words that an error repeats


def shown(text: str) -> str:
    """A caller's own words, fit to be repeated in an error: quoted, cut short, and saying so."""
    return repr(text) if len(text) <= _SHOWN else repr(text[:_SHOWN]) + "…"


class ErrorKind(enum.Enum):
    """What went wrong with one HTTP request: (status, OpenAI error type, code). Explained in docs/http.md."""

    INVALID_MODEL = (400, "invalid_request_error", "invalid_model")
    INVALID_REQUEST = (400, "invalid_request_error", "invalid_request")
    UNSUPPORTED_PARAMETER = (400, "invalid_request_error", "unsupported_parameter")
    INVALID_API_KEY = (401, "authentication_error", "invalid_api_key")
    IP_NOT_ALLOWED = (403, "permission_error", "ip_not_allowed")
    PERMISSION_DENIED = (403, "permission_error", "permission_denied")
    ROUTE_DISABLED = (403, "permission_error", "route_disabled")
    ORIGIN_NOT_ALLOWED = (403, "permission_error", "origin_not_allowed")
    NOT_FOUND = (404, "invalid_request_error", "not_found")
    ENGINE_NOT_FOUND = (404, "invalid_request_error", "engine_not_found")
    MODEL_NOT_FOUND = (404, "invalid_request_error", "model_not_found")
    METHOD_NOT_ALLOWED = (405, "invalid_request_error", "method_not_allowed")
    REQUEST_TIMEOUT = (408, "invalid_request_error", "request_timeout")
    LENGTH_REQUIRED = (411, "invalid_request_error", "length_required")
    PAYLOAD_TOO_LARGE = (413, "invalid_request_error", "payload_too_large")
    URI_TOO_LONG = (414, "invalid_request_error", "uri_too_long")
    UNSUPPORTED_MEDIA_TYPE = (415, "invalid_request_error", "unsupported_media_type")
    HOST_NOT_ALLOWED = (421, "invalid_request_error", "host_not_allowed")
    UNSUPPORTED_MODALITIES = (422, "invalid_request_error", "unsupported_modalities")
    HEADERS_TOO_LARGE = (431, "invalid_request_error", "headers_too_large")
    RATE_LIMIT_EXCEEDED = (429, "rate_limit_error", "rate_limit_exceeded")
    INTERNAL_ERROR = (500, "server_error", "internal_error")
    NOT_IMPLEMENTED = (501, "server_error", "not_implemented")
    ENGINE_ERROR = (502, "server_error", "engine_error")
    ENGINE_PROTOCOL_ERROR = (502, "server_error", "engine_protocol_error")
    ENGINE_UNAVAILABLE = (503, "server_error", "engine_unavailable")
    OVERLOADED = (503, "server_error", "overloaded")
    ENGINE_TIMEOUT = (504, "server_error", "engine_timeout")
    HTTP_VERSION_NOT_SUPPORTED = (505, "invalid_request_error", "http_version_not_supported")

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def type(self) -> str:
        return self.value[1]

    @property
    def code(self) -> str:
        return self.value[2]


# A retry of these only burns the engine again, so clients are told not to (`x-should-retry`, read by the OpenAI SDKs).
NOT_WORTH_RETRYING = frozenset(
    {ErrorKind.INTERNAL_ERROR, ErrorKind.NOT_IMPLEMENTED, ErrorKind.ENGINE_PROTOCOL_ERROR, ErrorKind.ENGINE_TIMEOUT}
)


class RequestError(FlmError):
    """One HTTP request is answered with an error.

    `status`, `type` and `code` follow from `kind` unless an engine's own refusal is passed on (`engine_refusal`).
    `headers` are added to the response, for example `retry-after`.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - the field's name in OpenAI's error object
        code: str | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.param = param
        self.status = kind.status if status is None else status
        self.type = kind.type if type is None else type
        self.code = kind.code if code is None else code
        self.headers = headers

    @property
    def should_retry(self) -> bool | None:
        """False where a retry cannot help; None leaves the choice to the client."""
        return False if self.kind in NOT_WORTH_RETRYING else None


class UpstreamProtocolError(RequestError):
    """The engine sent bytes that are not the protocol it should speak, or ended too early. Blame: the engine."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorKind.ENGINE_PROTOCOL_ERROR, message)


class EngineTimeoutError(RequestError):
    """An engine was late. `limit` says which time was over: `connect`, `first_byte`, `between_bytes` or `total`."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(ErrorKind.ENGINE_TIMEOUT, message)
        self.limit = limit


# The kind an engine's own status is filed under; the status itself is kept.
_REFUSAL_KINDS = {
    404: ErrorKind.MODEL_NOT_FOUND,
    413: ErrorKind.PAYLOAD_TOO_LARGE,
    422: ErrorKind.UNSUPPORTED_MODALITIES,
}


def engine_refusal(status: int, message: str, *, param: str | None = None, code: str | None = None) -> RequestError:
    """The error for an engine's own answer with `status` >= 400.

    4xx keeps status and message. 401, 403 and 407 mean that FLM's own credential for the engine is wrong, which is
    not the caller's fault: 502. 429 and 503 become 503 (the engine is busy); 501 stays; other 5xx become 502.
    """
    if status in (401, 403, 407):
        return RequestError(ErrorKind.ENGINE_ERROR, f"the engine refused FLM's own credentials ({status}): {message}")
    if status in (429, 503):
        return RequestError(ErrorKind.ENGINE_UNAVAILABLE, message, headers=((b"retry-after", b"1"),))
    if status == 501:
        return RequestError(ErrorKind.NOT_IMPLEMENTED, message, code=code)
    if 400 <= status < 500:
        kind = _REFUSAL_KINDS.get(status, ErrorKind.INVALID_REQUEST)
        return RequestError(kind, message, status=status, param=param, code=code or kind.code)
    return RequestError(ErrorKind.ENGINE_ERROR, message, code=code)


class _Body(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class _Envelope(msgspec.Struct):
    error: _Body


_encoder = msgspec.json.Encoder()


def envelope(error: RequestError, request_id: str) -> bytes:
    """The JSON body of an error response: `{"error":{"message","type","param","code","request_id"}}`."""
    return _encoder.encode(_Envelope(_Body(error.message, error.type, error.param, error.code, request_id)))


def error_event(error: RequestError, request_id: str) -> bytes:
    """The same as the one SSE event that ends a stream which has already begun. No `[DONE]` follows it."""
    return b"data: " + envelope(error, request_id) + b"\n\n"


class CommandCode(enum.Enum):
    """What went wrong with one command."""

    USAGE = "USAGE"
    ENGINE_NOT_FOUND = "ENGINE_NOT_FOUND"
    ENGINE_NETWORK_ERROR = "ENGINE_NETWORK_ERROR"
    ENGINE_API_ERROR = "ENGINE_API_ERROR"
    ENGINE_TIMEOUT = "ENGINE_TIMEOUT"
    PROXY_ALREADY_RUNNING = "PROXY_ALREADY_RUNNING"
    PROXY_NOT_RUNNING = "PROXY_NOT_RUNNING"
    PROXY_PORT_IN_USE = "PROXY_PORT_IN_USE"
    PROXY_CERT_FAILED = "PROXY_CERT_FAILED"
    PROXY_ACME_ERROR = "PROXY_ACME_ERROR"
    PROXY_INVALID_CONFIG = "PROXY_INVALID_CONFIG"
    POLICY_INVALID = "POLICY_INVALID"
    CONFIG_NOT_SET = "CONFIG_NOT_SET"
    CONFIG_INVALID = "CONFIG_INVALID"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    BACKUP_INVALID = "BACKUP_INVALID"
    DB_ERROR = "DB_ERROR"
    MIGRATION_FAILED = "MIGRATION_FAILED"
    IO_ERROR = "IO_ERROR"

    @property
    def exit_code(self) -> int:
        """1: the user can mend it. 2: FLM could not do its work."""
        return 2 if self in _INTERNAL else 1


_INTERNAL = frozenset({CommandCode.DB_ERROR, CommandCode.MIGRATION_FAILED, CommandCode.IO_ERROR})


class CommandError(FlmError):
    """A command could not be carried out. `message` says what happened, what was tried and what to do next."""

    def __init__(self, code: CommandCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def exit_code(self) -> int:
        return self.code.exit_code

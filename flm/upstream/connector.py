"""How a connection to one engine comes to be: its name resolved and dialled, its certificate verified, in time.

Knows which failure is whose: nothing that listens is 503, as is no free socket here; what the engine does wrong once it
has accepted is 502, lateness is 504. Keeps no connection and asks nothing on it: see `pool`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable
from typing import Final

from flm.errors import EngineTimeoutError, ErrorKind, RequestError
from flm.upstream.connection import RECEIVE_BYTES, Connection
from flm.upstream.dial import dial
from flm.upstream.tls import client_context, handshake_failure
from flm.wire.http1 import Address

RETRY_AFTER: Final = ((b"retry-after", b"1"),)
_NO_SOCKET: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Connector:
    """Connects to the engine at `address`, within `seconds` each time.

    `ca`: PEM text of the authorities that verify an https engine, None for the system's; `server_name`: the name that
    its certificate must have, None for the address's own.
    """

    def __init__(self, address: Address, *, ca: str | None, server_name: str | None, seconds: float) -> None:
        self._address = address
        self._ca = ca
        self._server_name = server_name or address.host
        self._seconds = seconds
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))  # of all its connections: each hands on at once what came
        self._tls: ssl.SSLContext | None = None

    async def connect(self, total_at: float, on_lost: Callable[[Connection], None]) -> Connection:
        """A connection, ready for an exchange that must be over at `total_at` (loop time). `on_lost` is told its end.

        Raises RequestError: ENGINE_UNAVAILABLE (nothing listens), ENGINE_TIMEOUT (connect, total), ENGINE_ERROR (no
        TLS), OVERLOADED (no socket is free here).
        """
        loop, address = asyncio.get_running_loop(), self._address
        left = max(total_at - loop.time(), 0)
        limit, seconds = ("total", left) if left < self._seconds else ("connect", self._seconds)
        secure = await self._tls_context() if address.scheme == "https" else None

        async def attempt(host: str) -> Connection:
            _, connection = await loop.create_connection(
                lambda: Connection(loop, self._buffer, address.origin, on_lost),
                host,
                address.port,
                ssl=secure,
                server_hostname=self._server_name if secure else None,
            )
            return connection

        try:
            async with asyncio.timeout(seconds):
                # A host name is resolved in here, at each connect, and only what came of it is dialled.
                connection = await dial(address.host, address.port, attempt, Connection.abort, seconds)
        except TimeoutError:
            what = "accept a connection and finish its TLS handshake" if secure else "accept a connection"
            or_else = ", or it does not speak TLS; then use http://" if secure else ""
            late = f"the engine at {address.origin} did not {what} within {round(seconds, 1):g} s{or_else}"
            raise EngineTimeoutError(late, limit) from None
        except OSError as error:
            raise self._no_tls(error) if secure and _in_handshake(error) else self._unreachable(error) from None
        return connection

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:  # reads the system's certificates: not on the loop
            try:
                self._tls = await asyncio.to_thread(client_context, self._ca)
            except (ssl.SSLError, TypeError, ValueError):
                origin = self._address.origin
                message = f"the CA certificates kept for the engine at {origin} cannot be read; register it anew"
                raise RequestError(ErrorKind.ENGINE_ERROR, message) from None
        return self._tls

    def _no_tls(self, error: OSError) -> RequestError:
        reason = handshake_failure(error, self._address.authority, own_ca=self._ca is not None)
        message = f"no TLS connection to the engine at {self._address.origin}: {reason}"
        return RequestError(ErrorKind.ENGINE_ERROR, message)

    def _unreachable(self, error: OSError) -> RequestError:
        if error.errno in _NO_SOCKET:
            message = "FLM has no free socket for the engine; too many connections are open"
            return RequestError(ErrorKind.OVERLOADED, message, headers=RETRY_AFTER)
        reason = "the connection was refused" if isinstance(error, ConnectionRefusedError) else _words(error)
        message = f"nothing answers at {self._address.origin} ({reason}); is the engine running?"
        return RequestError(ErrorKind.ENGINE_UNAVAILABLE, message, headers=RETRY_AFTER)


def _words(error: OSError) -> str:
    """The system's own: event loops add the address they dialled."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _in_handshake(error: OSError) -> bool:
    """Whether an error came after the connection was accepted: in TLS, or by its end."""
    return isinstance(error, (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError))

"""One finished request as the row of the audit log, and its way out of this process.

A row is written before the last byte of its answer is handed to the server: by the time a client can have read the
answer to its end, the row is where no death of this worker loses it. What is known only afterwards (the client took no
more, or left) comes in a second row of the same serial number, which takes the place of the first.

The latency is that of the answer's last byte as FLM sends it, the sizes are those of bodies, of a stream broken off as
far as it came. A row never holds a key, a prompt or an answer; what a caller wrote is cut short.

Does not know where rows go: they are handed to a function that never blocks, and counts those it has to drop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import msgspec

from flm.proxy.recorder import Record, words

_SERIAL_BYTES: Final = 7  # below 2^63 after any number of requests, which is what a database holds


class AuditRow(msgspec.Struct, array_like=True, frozen=True):
    """One finished request. `serial`: its number, no other's. `timestamp`: Unix milliseconds of its end."""

    serial: int
    timestamp: int
    request_id: str
    client_ip: str
    api_key_id: str | None
    method: str
    endpoint: str
    engine_id: str | None
    model: str | None
    status: int
    latency_ms: float
    ttft_ms: float | None
    bytes_in: int
    bytes_out: int
    error_type: str | None


Push = Callable[[bytes], object]
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(AuditRow)


def decode(data: bytes) -> AuditRow:
    """What a worker wrote. Raises msgspec.MsgspecError."""
    return _decoder.decode(data)


class Auditor:
    """Writes the rows of one worker's requests. Serial numbers begin at a random one, so no two workers share any."""

    __slots__ = ("_next", "_push")

    def __init__(self, push: Push) -> None:
        self._push = push
        self._next = int.from_bytes(os.urandom(_SERIAL_BYTES)) + 1

    def write(self, record: Record, latency_ms: float, more: int = 0, serial: int = 0) -> int:
        """Write a request's row and return its serial number: a new one, or the one given, whose row it replaces.
        `more`: bytes that are sent with the answer's end and are not in the record yet."""
        if not serial:
            serial = self._next
            self._next += 1
        model, error_type = record.model, record.error_type
        self._push(
            _encode(
                AuditRow(
                    serial,
                    int(time.time() * 1000),
                    record.request_id,
                    record.client_ip,
                    record.api_key_id,
                    record.method,
                    record.endpoint,
                    record.engine_id,
                    model if model is None else words(model),
                    record.status,
                    latency_ms,
                    record.ttft_ms,
                    record.bytes_in,
                    record.bytes_out + more,
                    error_type if error_type is None else words(error_type),
                )
            )
        )
        return serial

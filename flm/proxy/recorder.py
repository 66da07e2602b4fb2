"""What is remembered of a request: one JSON line in the log and three counters, once, when it is over.

Never holds a key, a prompt or an answer. What a caller wrote and FLM did not understand (a model's name, an unknown
path) is cut short, and anything that looks like a key is taken out of it.

Does not know where a line goes: it is handed to a function that never blocks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import unquote

import msgspec

from flm._native import ERRORS, IN_FLIGHT, KEY_PATTERN, REQUESTS

LEVELS: Final = ("debug", "info", "warning", "error")
_KEY: Final = re.compile(KEY_PATTERN)
_MOST_OF_A_KEY: Final = re.compile(r"flm_\w{8,}", re.IGNORECASE)  # a mistyped one, or in capitals
_KEY_START: Final = "flm_"
_DECODINGS: Final = 4
_LONGEST_METHOD: Final = 20  # letters; the longest registered one has 17 (IANA)
_SHOWN: Final = 200  # characters of a caller's own words that a log line repeats
_OK: Final = 200  # with an error: a stream that was broken off
_CLIENTS_OWN: Final = frozenset({"client_disconnected", "client_too_slow"})  # nobody here made a mistake
_SERVER_ERROR: Final = 500
_CLIENT_ERROR: Final = 400


class Counters(Protocol):
    """The part of the shared memory that is needed here."""

    def add(self, slot: int, counter: int, delta: int, /) -> None: ...


class Record(msgspec.Struct, omit_defaults=False):
    """One finished request, as it is logged. Times are milliseconds, sizes bytes of bodies."""

    timestamp: str = ""
    level: str = "info"
    request_id: str = ""
    client_ip: str = ""
    api_key_id: str | None = None
    method: str = ""
    endpoint: str = ""
    engine_id: str | None = None
    model: str | None = None
    status: int = 0
    latency_ms: float = 0.0
    ttft_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    error_type: str | None = None
    warnings: list[str] | None = None


class Fault(msgspec.Struct):
    """An error in FLM itself: where it was raised and its type, never its text, which may quote a request."""

    timestamp: str
    level: str
    request_id: str
    event: str
    exception: str
    where: str


def words(text: str) -> str:
    """A caller's own words, fit for the log."""
    text = without_keys(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def without_keys(text: str) -> str:
    """A caller's own words, fit to be repeated: some send a key as a model's name, and log what comes back."""
    if _KEY_START in text.lower():
        text = _KEY.sub("flm_(removed)", text)
        text = _MOST_OF_A_KEY.sub("flm_(removed)", text)
    return text


def path_words(path: bytes) -> str:
    """An unknown path, fit for the log: a key is no less a key for being percent-encoded, once or several times."""
    text = path.decode("latin-1")
    for _ in range(_DECODINGS):
        plain = unquote(text, "latin-1")
        if plain == text:
            return words(text)
        text = plain
    return "(encoded too often)"


def method_word(method: str) -> str:
    """A method, fit for the log: some send anything in its place."""
    return method if method.isalpha() and method.isascii() and len(method) <= _LONGEST_METHOD else "-"


class Recorder:
    """Writes the log lines of one worker and counts its requests in the worker's `slot` of shared memory."""

    __slots__ = ("_counters", "_encode", "_least", "_log", "_second", "_second_text", "_slot")

    def __init__(self, log: Callable[[bytes], None], counters: Counters, slot: int) -> None:
        self._log = log
        self._counters = counters
        self._slot = slot
        self._encode = msgspec.json.Encoder().encode
        self._least = 0
        self._second = -1
        self._second_text = ""

    def set_level(self, level: str) -> None:
        """Lines below `level` are not written."""
        self._least = LEVELS.index(level)

    def begin(self) -> None:
        """A request begins."""
        self._counters.add(self._slot, REQUESTS, 1)
        self._counters.add(self._slot, IN_FLIGHT, 1)

    def end(self, record: Record) -> None:
        """A request is over: count it and write its line."""
        self._counters.add(self._slot, IN_FLIGHT, -1)
        broken_off = record.status == _OK and record.error_type is not None
        if record.error_type in _CLIENTS_OWN:
            pass  # people close tabs: no error, and none that is counted
        elif record.status >= _SERVER_ERROR or broken_off:
            record.level = "error"
            self._counters.add(self._slot, ERRORS, 1)
        elif record.status >= _CLIENT_ERROR or record.warnings:
            record.level = "warning"
        if LEVELS.index(record.level) < self._least:
            return
        record.timestamp = self._now()
        if record.model is not None:
            record.model = words(record.model)
        self._log(self._encode(record))

    def fault(self, error: BaseException, request_id: str) -> None:
        """Write down an error in FLM itself."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = ""
        if trace is not None:
            code = trace.tb_frame.f_code
            where = f"{code.co_filename.rpartition('/flm/')[2]}:{trace.tb_lineno} in {code.co_name}"
        name = type(error).__name__
        self._log(self._encode(Fault(self._now(), "error", request_id, "internal_error", name, where)))

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:  # strftime is slow; once a second is enough
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1000):03d}Z"

"""What every translation of an answer has in common: its status, its errors, its bounds, its end.

Subclasses append bytes for the client as bytes of the engine come in; this class decides what an error means at that
moment. An error raised after bytes were produced in the same call is kept and raised by the next call, so that the
result does not depend on how the input was cut.

Does not know any engine's format.
"""

from __future__ import annotations

from collections.abc import Mapping

from flm.config import MAX_ANSWER_BYTES, MAX_ERROR_BODY_BYTES
from flm.engines.base import UpstreamRequest
from flm.engines.call import Change
from flm.engines.refusals import refusal
from flm.errors import RequestError, UpstreamProtocolError
from flm.wire.framing import LineReader


class AnswerTranslation:
    """The state of one answer: running, refused (its body is an error), failed or complete.

    `long_field` is the request's field that holds the text an engine may find too long.
    """

    streaming: bool = False
    long_field: str = "messages"

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...]) -> None:
        self.request = request
        self.changes = changes
        self._status = 0
        self._complete = False
        self._refused: bytearray | None = None
        self._failure: RequestError | None = None

    @property
    def complete(self) -> bool:
        return self._complete

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """See `Translation.head`. Redirects are never followed, and no answer FLM asks for is empty."""
        self._status = status
        if 400 <= status <= 599:
            self._refused = bytearray()
        elif status != 200:
            raise UpstreamProtocolError(f"the engine answered with status {status}, which is no answer to this request")

    def feed(self, data: bytes) -> bytes:
        """See `Translation.feed`."""
        if self._failure is not None:
            raise self._failure
        if self._complete or not data:
            return b""
        if self._refused is not None:
            self._refused += data[: MAX_ERROR_BODY_BYTES - len(self._refused)]
            return b""
        out = bytearray()
        try:
            self._take(data, out)
        except RequestError as error:
            self._fail(error, out)
        return bytes(out)

    def finish(self) -> bytes:
        """See `Translation.finish`."""
        if self._failure is not None:
            raise self._failure
        if self._complete:
            return b""
        if self._refused is not None:
            raise refusal(self._status, bytes(self._refused), self.long_field)
        out = bytearray()
        self._end(out)
        return bytes(out)

    def _fail(self, error: RequestError, out: bytearray) -> None:
        self._failure = error
        if not out:
            raise error

    def _take(self, data: bytes, out: bytearray) -> None:
        """Append to `out` what `data` means for the client."""
        raise NotImplementedError

    def _end(self, out: bytearray) -> None:
        """The engine's body has ended: append the rest, or raise if the answer is not whole (the rest is then lost)."""
        raise NotImplementedError


class LineStream(AnswerTranslation):
    """A streamed answer of one JSON object a line (NDJSON), of which one says that it is the last."""

    streaming = True

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...]) -> None:
        super().__init__(request, changes)
        self._lines = LineReader()

    def _take(self, data: bytes, out: bytearray) -> None:
        self._each(self._lines.feed(data), out)

    def _end(self, out: bytearray) -> None:
        self._each(self._lines.finish(), out)
        if not self._complete:
            raise unfinished()

    def _each(self, lines: list[bytes], out: bytearray) -> None:
        for line in lines:
            if line and not line.isspace():
                self._line(line, out)
            if self._complete:
                return

    def _line(self, data: bytes, out: bytearray) -> None:
        """Append what one line means for the client; set `_complete` at the last. Raises RequestError."""
        raise NotImplementedError


def unfinished() -> UpstreamProtocolError:
    """The engine's body ended in order, and its answer did not."""
    return UpstreamProtocolError("the engine ended its answer early, without saying that it is done")


class WholeAnswer(AnswerTranslation):
    """An answer that is translated when all of it is there: one JSON body, at most MAX_ANSWER_BYTES."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...]) -> None:
        super().__init__(request, changes)
        self._body = bytearray()

    def _take(self, data: bytes, out: bytearray) -> None:
        self._body += data
        if len(self._body) > MAX_ANSWER_BYTES:
            raise UpstreamProtocolError(f"the engine's answer is larger than {MAX_ANSWER_BYTES} bytes")

    def _end(self, out: bytearray) -> None:
        out += self._whole(bytes(self._body))
        self._complete = True

    def _whole(self, body: bytes) -> bytes:
        """The client's body. Raises RequestError."""
        raise NotImplementedError

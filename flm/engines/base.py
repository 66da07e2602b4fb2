"""What every engine's dialect must say, and the small vocabulary it says it in.

A dialect is sans-io: it plans exchanges as generators that yield a `Probe` and are sent its `Answer`, and it turns
one client request into one `UpstreamRequest` plus a `Translation` of the answer's bytes. It has no clock, socket,
log or randomness: ids and times are arguments.

Does not know which engines exist (see `registry`), how bytes travel (`upstream`), nor who asked (`policy`).
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping
from typing import Protocol

import msgspec

from flm.engines.call import Call, Change
from flm.engines.capabilities import Table
from flm.engines.closed import CLOSED_ANYWHERE, ClosedRoute
from flm.errors import Header
from flm.snapshot import Model


class Probe(msgspec.Struct, frozen=True):
    """One small request to find out about an engine; `path` begins with `/` and follows the engine's base URL."""

    path: str
    method: str = "GET"
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    """What came back. `status` 0: no HTTP answer (refused, timed out, not HTTP, too large). Header names lower case."""

    status: int
    headers: Mapping[bytes, bytes] = {}
    body: bytes = b""


class Verdict(enum.Enum):
    """What an exchange says about the server at the other end."""

    RECOGNISED = "recognised"  # its answers have the shape only this kind of engine gives
    BUSY = "busy"  # recognised, and says 429 or 503: loading or overloaded
    FOREIGN = "foreign"  # something answered, and it is not this kind of engine (or no longer speaks as one)
    SILENT = "silent"  # nothing answered in time


class Identity(msgspec.Struct, frozen=True):
    """The outcome of `Dialect.identify`. `detail` says in plain words why it is not RECOGNISED."""

    verdict: Verdict
    version: str | None = None
    detail: str | None = None


class ListingError(Exception):
    """An engine's model list does not have the expected shape, or did not come; the message is for people."""


Identifying = Generator[Probe, Answer, Identity]
Listing = Generator[Probe, Answer, tuple[Model, ...]]


class UpstreamRequest(msgspec.Struct, frozen=True):
    """What goes to the engine. The pool adds host, content-length, accept-encoding and the engine's own credential."""

    path: str
    body: bytes
    method: str = "POST"
    headers: tuple[Header, ...] = ((b"content-type", b"application/json"),)


class Translation(Protocol):
    """The answer's way back, for one request. Order of calls: `head` once, `feed` any number of times, `finish` once.

    `request`: what to send. `changes`: what was altered on the way in. `streaming`: whether the client gets SSE
    (`text/event-stream`) or one JSON body. `complete`: true once everything the client needs has been returned, so
    what the engine still sends may be thrown away.
    Bounded: holds at most MAX_LINE_BYTES of a stream, MAX_ANSWER_BYTES of a whole answer, MAX_ERROR_BODY_BYTES of an
    error.
    """

    request: UpstreamRequest
    changes: tuple[Change, ...]
    streaming: bool

    @property
    def complete(self) -> bool: ...

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """The engine's status line and headers (names lower case). Raises UpstreamProtocolError if they are absurd."""

    def feed(self, data: bytes) -> bytes:
        """Bytes for the client, possibly none. The result is the same for any chunking of the same input.

        Raises RequestError for an error the engine reports inside its answer, UpstreamProtocolError for bytes it
        should not have sent. Before any byte was returned the proxy answers with a real status, else with one error
        event. Bytes that came before the error in the same call are returned first, and the error is raised by the
        next call of `feed` or `finish`; a translation that has failed raises the same error again.
        """

    def finish(self) -> bytes:
        """The engine's body has ended in order: the last bytes for the client.

        Raises RequestError with the engine's own words if its status was an error, UpstreamProtocolError if the body
        ended too early. Never invents a finish_reason.
        """


class Dialect(Protocol):
    """One kind of engine. An instance is stateless and shared by all requests.

    `kind`: the name in settings and databases. `label`: the name for people. `idle_seconds`: how long a pooled
    connection may lie idle before the engine is likely to close it. `chat_table`, `completion_table` and
    `embedding_table`: what becomes of each parameter of such a request; None where it translates none of them.
    `closed_routes`: what the pass-through does not let through by itself.
    """

    kind: str
    label: str
    idle_seconds: float
    chat_table: Table | None
    completion_table: Table | None
    embedding_table: Table | None
    closed_routes: tuple[ClosedRoute, ...]

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        """Base URLs where an engine of this kind listens: by its environment variables, its settings, by default.

        `files`: path to content of those of `settings` and `further_settings` that are there. Anything may stand in
        them.
        """

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        """Absolute paths of files that may say where it listens; pure, as `binaries`. At most a few.

        As in `binaries` the last part of a path may hold `*`, which stands for any characters.
        """

    def further_settings(self, files: Mapping[str, bytes]) -> tuple[str, ...]:
        """Absolute paths of more such files, that those of `settings` point to. `files`: as for `addresses`."""

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        """Absolute paths where its program may be installed. `system` is `linux`, `darwin` or `win32`.

        A pure function of its arguments; entries of PATH are included.
        """

    def identify(self) -> Identifying:
        """Plan the requests that decide whether this kind of engine answers. Never trusts a status alone."""

    def models(self) -> Listing:
        """Plan the requests that list its models. Raises ListingError."""

    def begin(self, call: Call) -> Translation:
        """Translate one request. Raises RequestError when the engine cannot do what was asked."""

    def drain_seconds(self, version: str | None) -> float:
        """How long an answer that nobody waits for any more is still read before the engine's socket is closed.

        0 closes it at once, which makes an engine stop; above 0 is for versions that break when they are cut.
        """


class DialectDefaults:
    """What most engines have in common, so that a dialect says only what is its own."""

    idle_seconds: float = 4.0  # uvicorn, under many servers, closes after 5 s
    chat_table: Table | None = None
    completion_table: Table | None = None
    embedding_table: Table | None = None
    closed_routes: tuple[ClosedRoute, ...] = CLOSED_ANYWHERE

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        """None: such an engine is only ever registered by hand."""
        return ()

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ()

    def further_settings(self, files: Mapping[str, bytes]) -> tuple[str, ...]:
        return ()

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return ()

    def drain_seconds(self, version: str | None) -> float:
        return 0.0

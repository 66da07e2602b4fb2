"""The small language in which a test tells the demo engine to be slow, to fail or to misbehave. The one place of it.

Pure. It knows what may be asked, not how it is done (`delivery` and the dialects do it).

    demo: first=0.5 between=0.01 cut=200 end=rst

A directive line begins with `demo:`; items are separated by blanks or commas; an unknown name, a wrong value or one
out of bounds is an error the engine reports as a bad request. A line is looked for, in this order, in: the fault set
for the path (`POST /demo/faults`, or `--fault` at the start), the model's name (`demo:cut=200`), the first system
message, the first input of an embedding. N of `cut`, `stall` and `garbage` counts bytes of the body as they are on
the wire, chunk framing included; 0 is after the head, -1 before it.

| item          | what it does |
|---------------|--------------|
| `first=S`     | waits S seconds before the first byte of the answer |
| `between=S`   | waits S seconds before each further piece of a streamed answer |
| `hold=NAME`   | waits until `POST /demo/release?name=NAME`: before the head, or |
| `hold_at=N`   | ... before the piece number N (from 1) of the body |
| `cut=N`       | closes the connection after N bytes |
| `stall=N`     | says nothing more after N bytes, and keeps the connection open |
| `garbage=N`   | sends bytes that are no HTTP, JSON or SSE after N bytes, then closes |
| `end=fin/rst` | how `cut`, `garbage` and `after` close: in order, or with a reset |
| `split=N`     | sends the body in writes of N bytes, wherever that falls |
| `status=N`    | answers with this status and an error in the engine's own shape |
| `body=TEXT`   | the body of `status`, percent-encoded, instead of the engine's own |
| `error=N`     | reports an error in the engine's own way inside the stream, after N pieces of text |
| `quiet`       | the stream ends in order, but without its finish and end marks |
| `flood=N`     | N MiB of text |
| `line=N`      | N MiB without an end of line, in the middle of the answer |
| `endless`     | text without end |
| `words=N`     | an answer of N words |
| `think=N`     | N words of reasoning before the answer |
| `calls=N`     | N tool calls instead of one, when tools are given |
| `finish=WORD` | this finish reason instead of the true one |
| `after=close` | closes the connection after the answer and says so; `after=drop`: does not say so |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

PREFIX = "demo:"

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Offset = Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
# A test that wants more than this wants `endless`.
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1024)]


class Directives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One directive line, as values. Seconds are floats, sizes bytes unless said otherwise; None: not asked for."""

    first: Seconds = 0.0
    between: Seconds = 0.0
    hold: str | None = None
    hold_at: Count = 0
    cut: Offset | None = None
    stall: Offset | None = None
    garbage: Offset | None = None
    end: Literal["fin", "rst"] = "fin"
    split: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    body: str | None = None
    error: Count | None = None
    quiet: bool = False
    flood: Mebibytes = 0
    line: Mebibytes = 0
    endless: bool = False
    words: Count | None = None
    think: Count = 0
    calls: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    finish: str | None = None
    after: Literal["keep", "close", "drop"] = "keep"


NONE = Directives()


class DirectiveError(ValueError):
    """A directive line that cannot be read; the message says which item and why."""


def parse(line: str) -> Directives:
    """Read one line, with or without its `demo:`. Raises DirectiveError."""
    items = line.removeprefix(PREFIX).replace(",", " ").split()
    if not items:
        return NONE
    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        values[name] = value if equals else "true"
    try:
        return msgspec.convert(values, Directives, strict=False)
    except msgspec.ValidationError as error:
        raise DirectiveError(f"the demo engine does not understand {line[:200]!r}: {error}") from None


def find(texts: Iterable[str | None]) -> Directives:
    """The directives of the first text that is a directive line; NONE if there is none. Raises DirectiveError."""
    for text in texts:
        if text and text.startswith(PREFIX):
            return parse(text)
    return NONE

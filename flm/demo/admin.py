"""The routes under `/demo/` by which a test watches and steers the demo engine; only there with `--admin`.

| route | |
|---|---|
| `GET /demo/journal` | everything seen since the last clear: `now`, `open_connections`, `events` (counts), `requests` |
| `GET /demo/wait?event=E&count=N&timeout=S` | answers once E has happened N times (1), else 408 after S (10) seconds |
| `POST /demo/release?name=N` | lets go what a directive `hold=N` holds, now and later |
| `POST /demo/faults?path=P&directives=D` | every request to path P gets these directives; an empty D ends it |
| `POST /demo/clear` | forgets journal, events, faults and releases |

Asking here leaves no trace in the journal.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.demo.dialect import Answer, Request
from flm.demo.directives import DirectiveError, parse
from flm.demo.journal import Journal

PREFIX: Final = "/demo/"
MAX_WAIT = 60.0  # seconds; a test that waits longer has hung


async def answer(journal: Journal, request: Request) -> Answer:
    """The answer to a request under `/demo/`."""
    query = request.query
    match request.method, request.path:
        case "GET", "/demo/journal":
            return _json(200, journal.report())
        case "GET", "/demo/wait":
            event, count = query.get("event", "request"), int(query.get("count", "1"))
            happened = await journal.wait(event, count, min(float(query.get("timeout", "10")), MAX_WAIT))
            return _json(200 if happened else 408, {"event": event, "count": journal.events[event]})
        case "POST", "/demo/release":
            journal.release(query.get("name", ""))
            return _json(200, {})
        case "POST", "/demo/faults":
            return _set_fault(journal, query.get("path", ""), query.get("directives", ""))
        case "POST", "/demo/clear":
            journal.clear()
            return _json(200, {})
    return _json(404, {"error": f"no such control: {request.method} {request.path}"})


def _set_fault(journal: Journal, path: str, line: str) -> Answer:
    try:
        directives = parse(line)
    except DirectiveError as error:
        return _json(400, {"error": str(error)})
    if line:
        journal.faults[path] = directives
    else:
        journal.faults.pop(path, None)
    return _json(200, {})


def _json(status: int, value: object) -> Answer:
    return Answer(status, b"application/json", msgspec.json.encode(value))

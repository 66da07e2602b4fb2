"""docs/behaviour.md, written from what the tests of this folder observe: `python -m tests.behaviour.page` writes it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from flm.engines.registry import DIALECTS
from tests.behaviour.hygiene import MARKS, Arrived
from tests.behaviour.observing import KINDS, Observed, Rows, in_order, observe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "behaviour.md"
INTRODUCTION = """\
# What happens when something goes wrong

Written by `make docs` from what is observed; do not edit it by hand. Each row is a real request through a real FLM to
a simulator of that engine (`flm/demo`), brought about by `tests/behaviour`; `make test` fails when this page says
something else than what happens. Real engines are asked the same by `make test-real`, as far as they can be made to.

*The client* is whoever asks FLM, *the engine* what FLM asks. Status *none*: the client was gone before there was one.
An error event is `data: {"error":{…}}`; a stream that has one has no `[DONE]` and no finish reason that the engine did
not give. What the codes mean is in [http.md](http.md). That the engine learns of a client that has left within 250 ms
is measured by `tests/proxy/test_cancel_latency.py`. An engine that fails three times in a row
(`engine.failure_threshold`) is taken for down and not asked until it is seen again; here it is asked all the same.
"""
REACHES = """\
## What reaches an engine

On every route the caller sends, beside its key in `authorization`, all of these: {marks}. The bytes between FLM and the
engine are recorded: none of the names and none of the values is in them, nor the key; only the pass-through lets
`user-agent` through. `authorization` below is FLM's own credential for the engine, given at `flm engines add`.

| engine | asked | the engine gets | with these headers |
|---|---|---|---|
"""
HEAD = "| when | asked | status | code | retry | the client gets | the engine sees |\n|---|---|---|---|---|---|---|\n"


def page(found: Observed) -> str:
    parts = [INTRODUCTION]
    parts += [f"\n## {DIALECTS[kind].label} (`{kind}`)\n\n{HEAD}{_table(found.rows[kind])}" for kind in KINDS]
    marks = ", ".join(f"`{name}`" for name in MARKS)
    rows = [_arrived(kind, one) for kind in KINDS for one in found.arrived[kind]]
    parts.append("\n" + REACHES.format(marks=marks) + "".join(rows))
    return "".join(parts)


def _table(rows: Rows) -> str:
    lines = []
    for title, ways, seen in in_order(rows):
        asked = "; ".join(way.label for way in ways)
        cells = (title, asked, seen.status, seen.code, seen.retry, seen.client, seen.engine)
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _arrived(kind: str, one: Arrived) -> str:
    gets = f"`{one.line}`" if one.line else "nothing: FLM answers"
    headers = ", ".join(f"`{name}`" for name in one.headers)
    return f"| `{kind}` | {one.asked} | {gets} | {headers} |\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(asyncio.run(observe(Path(folder)))))

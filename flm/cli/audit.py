"""`flm security audit-logs`: one line a request, who asked what when, and what became of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flm.cli.command import Context, Noun, Output

if TYPE_CHECKING:
    from flm.services.audit import Query

_USUAL = 100
_COLUMNS = ("timestamp", "status", "method", "endpoint", "model", "engine_id", "api_key_id", "client_ip", "latency_ms",
            "ttft_ms", "bytes_in", "bytes_out", "error_type", "request_id")  # fmt: skip
_WIDTHS = (24, 6, 6, 20, 24, 14, 12, 15, 10, 8, 8, 9, 16, 0)  # of a table whose rows are not known yet


def add_verbs(noun: Noun) -> None:
    logs = noun.verb("audit-logs", _audit_logs, "finished requests, the last ones last")
    logs.add_argument("--since", metavar="T", help="from then on: 2026-11-24T09:00:00Z, or an age: 90s, 12h, 30d")
    logs.add_argument("--until", metavar="T", help="before then")
    logs.add_argument("--key", metavar="ID", help="an API key, by id or label")
    logs.add_argument("--engine", metavar="ID", help="an engine")
    logs.add_argument("--model", metavar="NAME", help="the model asked for, * for anything: 'flm://*/small*'")
    logs.add_argument("--status", metavar="S", help="a status: 404, or 4xx")
    logs.add_argument("--errors", action="store_true", help="only requests that failed")
    logs.add_argument("--limit", metavar="N", type=int, help=f"how many; {_USUAL} unless told, with --follow none")
    logs.add_argument("--follow", action="store_true", help="go on with each new one, as one line of JSON")


async def _audit_logs(arguments: argparse.Namespace, context: Context) -> Output | None:
    from flm.services.audit import AuditService, Query

    query = Query(
        since=arguments.since,
        until=arguments.until,
        key=arguments.key,
        engine=arguments.engine,
        model=arguments.model,
        status=arguments.status,
        errors=arguments.errors,
    )
    if arguments.follow:
        await _follow(query, arguments.limit or 0, context)
        return None
    limit = _USUAL if arguments.limit is None else arguments.limit
    return Output(await AuditService(context.folder).entries(query, limit), _COLUMNS)


async def _follow(query: Query, first: int, context: Context) -> None:
    import sys

    import msgspec

    from flm.cli.output import harmless, printable
    from flm.services.audit import AuditService

    if context.format == "text":
        heads = [name.upper().replace("_", " ").ljust(width) for name, width in zip(_COLUMNS, _WIDTHS, strict=True)]
        sys.stdout.write("  ".join(heads) + "\n")
    async for entry in AuditService(context.folder).follow(query, first):
        if context.format == "text":
            values = [getattr(entry, name) for name in _COLUMNS]
            cells = ["-" if value is None else str(value) for value in values]
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
            sys.stdout.write(printable(line).replace("\n", " ") + "\n")
        else:
            sys.stdout.write(harmless(msgspec.json.encode(entry)) + "\n")
        sys.stdout.flush()

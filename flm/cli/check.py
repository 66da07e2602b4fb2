"""`flm check`: the integrity of all databases."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output
from flm.errors import CommandCode, CommandError


def register(noun: Noun) -> None:
    check = noun.without_verb(_check)
    check.add_argument("--verbose", action="store_true", help="sizes and change counts too")


async def _check(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import CheckService

    checked = await CheckService(context.folder).check()
    problems = [problem for each in checked for problem in each.problems]
    if problems:
        raise CommandError(CommandCode.DB_ERROR, "; ".join(dict.fromkeys(problems)))
    rows = []
    for each in checked:
        row: dict[str, object] = {"name": each.name, "path": each.path, "ok": True, "exists": each.exists}
        if arguments.verbose:
            row |= {"bytes": each.bytes, "generation": each.generation}
        rows.append(row)
    return Output(rows)

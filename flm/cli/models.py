"""`flm models …`: the models of all engines."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output

_COLUMNS = ("id", "context_length", "trained_context_length", "loaded", "capabilities")


def register(noun: Noun) -> None:
    listing = noun.verb("list", _list, "the models of all engines that serve")
    listing.add_argument("--engine", metavar="K", help="one engine's, by id or kind")


async def _list(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import EngineService

    return Output(await EngineService(context.folder).models(arguments.engine), _COLUMNS)

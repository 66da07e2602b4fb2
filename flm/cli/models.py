"""`flm models …`: the models of all engines, and the operator's own names for them."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output

_COLUMNS = ("id", "context_length", "trained_context_length", "loaded", "capabilities")
_ALIAS_COLUMNS = ("alias", "target")


def register(noun: Noun) -> None:
    listing = noun.verb("list", _list, "the models of all engines that serve, and the aliases for them")
    listing.add_argument("--engine", metavar="K", help="one engine's, by id or kind")
    alias = noun.group("alias", "names of your own for models, for clients that cannot be told an id")
    setting = alias.verb("set", _set_alias, "let NAME stand for TARGET, from the next request on")
    setting.add_argument("name", metavar="NAME", help="what clients write as the model")
    setting.add_argument("target", metavar="TARGET", help="flm://engine/model, or a plain name")
    removing = alias.verb("remove", _remove_alias, "forget a name")
    removing.add_argument("name", metavar="NAME")
    alias.verb("list", _list_aliases, "the names there are, and what they stand for")


async def _list(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ModelService

    return Output(await ModelService(context.folder).models(arguments.engine), _COLUMNS)


async def _set_alias(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ModelService

    return Output(await ModelService(context.folder).set_alias(arguments.name, arguments.target))


async def _remove_alias(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ModelService

    return Output({"alias": await ModelService(context.folder).remove_alias(arguments.name), "removed": True})


async def _list_aliases(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ModelService

    return Output(await ModelService(context.folder).aliases(), _ALIAS_COLUMNS)

"""`flm config …`: settings."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output

_COLUMNS = ("key", "value", "default", "source", "running")


def register(noun: Noun) -> None:
    put = noun.verb("set", _set, "change a setting")
    put.add_argument("key")
    put.add_argument("value")
    noun.verb("get", _get, "one setting").add_argument("key")
    noun.verb("list", _list, "all settings, where each value comes from, and what a running proxy has from its start")
    noun.verb("unset", _unset, "go back to the default").add_argument("key")


async def _set(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ConfigService

    return Output(await ConfigService(context.folder).set(arguments.key, arguments.value))


async def _get(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ConfigService

    return Output(await ConfigService(context.folder).get(arguments.key))


async def _list(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ConfigService

    return Output(await ConfigService(context.folder).list(), _COLUMNS)


async def _unset(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import ConfigService

    return Output(await ConfigService(context.folder).unset(arguments.key))

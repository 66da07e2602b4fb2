"""`flm api-keys …`: the keys that clients send."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output

_COLUMNS = ("id", "label", "scopes", "created_at", "expires_at", "revoked_at")


def register(noun: Noun) -> None:
    create = noun.verb("create", _create, "make a key, and show it this once")
    create.add_argument("--label", required=True, metavar="L", help="what it is for: 1 to 64 characters")
    noun.verb("list", _list, "all keys, without their secrets")
    revoke = noun.verb("revoke", _revoke, "make a key invalid, at once")
    revoke.add_argument("key", metavar="ID", help="its id, or its label if no other key has it")


async def _create(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    created = await SecurityService(context.folder).create_key(arguments.label)
    return Output(created)


async def _list(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).list_keys(), _COLUMNS)


async def _revoke(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).revoke_key(arguments.key))

"""`flm api-keys …`: the keys that clients send."""

from __future__ import annotations

import argparse

from flm.cli.command import Context, Noun, Output

_COLUMNS = ("id", "label", "scopes", "models", "engines", "created_at", "expires_at", "revoked_at", "last_used_at")
_NAMED = "its id, or its label if no other key has it"


def register(noun: Noun) -> None:
    create = noun.verb("create", _create, "make a key, and show it this once")
    create.add_argument("--label", required=True, metavar="L", help="what it is for: 1 to 64 characters")
    create.add_argument(
        "--expires", metavar="T", help="90s, 15m, 12h, 30d, 8w from now, or a moment such as 2030-01-31T12:00:00Z"
    )
    create.add_argument(
        "--scope",
        action="append",
        default=[],
        metavar="S,…",
        help="what it may do: inference (or of it only models, chat, completions, embeddings), passthrough, metrics, "
        "timing; without: inference,passthrough",
    )
    create.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only models whose id or name is like this, * for any characters; may be repeated; no pass-through then",
    )
    create.add_argument(
        "--engine", action="append", default=[], metavar="ID", help="only models of this engine; may be repeated"
    )
    noun.verb("list", _list, "all keys, without their secrets")
    rotate = noun.verb("rotate", _rotate, "make a key in another's place, and show it this once")
    rotate.add_argument("key", metavar="ID", help=_NAMED)
    rotate.add_argument(
        "--grace", metavar="T", help="how long the old one stays valid, such as 24h; without: it ends at once"
    )
    revoke = noun.verb("revoke", _revoke, "make a key invalid, at once")
    revoke.add_argument("key", metavar="ID", help=_NAMED)


async def _create(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    created = await SecurityService(context.folder).create_key(
        arguments.label,
        expires=arguments.expires,
        scopes=[scope.strip() for listed in arguments.scope for scope in listed.split(",")],
        models=arguments.model,
        engines=arguments.engine,
    )
    return Output(created)


async def _list(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).list_keys(), _COLUMNS)


async def _rotate(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).rotate_key(arguments.key, grace=arguments.grace))


async def _revoke(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).revoke_key(arguments.key))

"""`flm security …`: who gets in, and how much."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Coroutine
from typing import Any

from flm.cli import audit, backup
from flm.cli.command import Context, Noun, Output, UsageError

_LONGEST_DOCUMENT = 1_048_576  # more than is taken, so that it is the service that refuses what is too large

_BUCKET = ("kind", "subject", "limit_rpm", "burst", "remaining", "resets_in_seconds")
_CERTIFICATE = (
    "served",
    "mode",
    "domains",
    "issuer",
    "trusted",
    "not_after",
    "renew_after",
    "next_attempt_at",
    "last_error",
)


def register(noun: Noun) -> None:
    policy = noun.group("policy", "addresses, origins, hosts and rate limits")
    policy.verb("show", _show, "the policy, with every default filled in")
    put = policy.verb("set", _set, "replace the policy, at once; what is left out is its default")
    put.add_argument("--json", required=True, metavar="F", help="a file, - for standard input, or the JSON itself")
    limits = noun.group("rate-limits", "how much is left of the policy's limits")
    limits.verb("list", _rate_limits, "each bucket of a limit, full ones of addresses left out")
    certificates = noun.group("certificates", "the certificates that FLM serves HTTPS with")
    certificates.verb("list", _certificates, "when each ends, when it is renewed, and what went wrong")
    backup.add_verbs(noun)
    audit.add_verbs(noun)


async def _show(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).policy())


async def _rate_limits(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).rate_limits(), columns=_BUCKET)


async def _certificates(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).certificates(), columns=_CERTIFICATE)


def _set(arguments: argparse.Namespace, context: Context) -> Coroutine[Any, Any, Output]:
    # Read here and not on the event loop, where Ctrl-C would wait for the end of the input.
    return _put(_document(arguments.json), context)


async def _put(document: bytes, context: Context) -> Output:
    from flm.services import SecurityService

    return Output(await SecurityService(context.folder).set_policy(document))


def _document(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read(_LONGEST_DOCUMENT)
    if source.lstrip()[:1] in ("{", "["):
        return source.encode(errors="surrogateescape")
    try:
        with open(source, "rb") as file:
            return file.read(_LONGEST_DOCUMENT)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        usage = "flm security policy set --json F\n"
        raise UsageError(f"{source!r:.80} is no JSON object and no file that can be read: {why}", usage) from None

"""What may be registered as an engine: id, address, timeouts, credential and authorities, as a person gives them.

Asks no engine and stores nothing: it returns the record to store, or says what is wrong with the arguments.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.store.engines import Upstream
from flm.upstream.tls import authorities
from flm.wire.http1 import Address, parse_address

ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # what needs no escape in a URL or a model id
_LONGEST_TIMEOUT: Final = 86_400.0  # as of the settings of the same names


class EngineTimeouts(msgspec.Struct, frozen=True):
    """Seconds, for one engine; None takes the setting of the same name, a total of 0 is none."""

    connect: float | None = None
    first_byte: float | None = None
    between_bytes: float | None = None
    total: float | None = None


def upstream(
    engine_id: str, kind: str, url: str, timeouts: EngineTimeouts, ca: bytes | None, created_at: int
) -> Upstream:
    """The record of an engine; `ca` is the content of a PEM file, `created_at` Unix seconds. Raises USAGE."""
    if not ID_PATTERN.fullmatch(engine_id):
        raise CommandError(
            CommandCode.USAGE,
            "an engine's id has 1 to 63 characters, a-z, 0-9, `.`, `_` and `-`, and begins with a letter or digit; "
            f"not {engine_id!r:.80}",
        )
    try:
        address = parse_address(url)
    except ValueError as error:
        raise CommandError(CommandCode.USAGE, f"{_without_secret(url)}: {error}") from None
    for name, seconds in msgspec.structs.asdict(timeouts).items():
        lowest = 0.0 if name == "total" else 0.1
        if seconds is not None and not lowest <= seconds <= _LONGEST_TIMEOUT:
            raise CommandError(
                CommandCode.USAGE,
                f"the {name.replace('_', '-')} timeout is {lowest:g} to {_LONGEST_TIMEOUT:g} seconds, not {seconds:g}",
            )
    # Everybody's examples end in /v1, and so do the paths FLM adds to the base.
    base_path = address.base_path.removesuffix("/v1")
    return Upstream(
        engine_id,
        kind,
        address.origin + base_path,
        timeouts.connect,
        timeouts.first_byte,
        timeouts.between_bytes,
        timeouts.total,
        created_at,
        _authorities(ca, address),
    )


def _authorities(ca: bytes | None, address: Address) -> str | None:
    if ca is None:
        return None
    if address.scheme != "https":
        raise CommandError(
            CommandCode.USAGE,
            f"{address.origin} is not https://, so no certificate is verified there: leave the CA file out, or give "
            "the https:// URL",
        )
    try:
        return authorities(ca)
    except ValueError as error:
        raise CommandError(CommandCode.USAGE, f"the CA file {error}") from None


def _without_secret(url: str) -> str:
    """A URL that was refused, without what may be a password in it."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"[:200]


def check_credential(credential: str | None) -> None:
    """Raises USAGE for one that no header may carry, without repeating it."""
    if credential is None:
        return
    if not credential or not credential.isascii() or not credential.isprintable() or " " in credential:
        raise CommandError(
            CommandCode.USAGE, "the engine's credential is empty or holds characters that no HTTP header may carry"
        )

"""Whose certificate is asked for, and by which way: which directories of which authority, in which order.

Knows the settings and two addresses; asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from flm.config import Settings

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
LETS_ENCRYPT_STAGING: Final = "https://acme-staging-v02.api.letsencrypt.org/directory"


class Stop(msgspec.Struct, frozen=True):
    """One directory on the way to a certificate. `rehearsal`: what it issues is not served."""

    directory: str
    rehearsal: bool


def way(settings: Settings, *, proven: bool) -> Iterator[Stop]:
    """The directories to ask, in order. `proven`: the last one is known to work for these names."""
    production = settings.acme_directory or LETS_ENCRYPT
    staging = settings.acme_staging_directory or ("" if settings.acme_directory else LETS_ENCRYPT_STAGING)
    if settings.acme_staging:
        yield Stop(staging or production, rehearsal=False)
        return
    if staging and not proven:
        yield Stop(staging, rehearsal=True)
    yield Stop(production, rehearsal=False)

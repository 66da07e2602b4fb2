"""Which dialects there are: every module of this package that has a `DIALECT`.

A new engine is one new file; nothing is listed by hand. Knows no engine itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from flm import engines
from flm.engines.base import Dialect
from flm.errors import CommandCode, CommandError


def _found() -> Mapping[str, Dialect]:
    dialects: dict[str, Dialect] = {}
    for module in pkgutil.iter_modules(engines.__path__):
        if module.name == "registry":
            continue
        dialect: Dialect | None = getattr(importlib.import_module(f"{engines.__name__}.{module.name}"), "DIALECT", None)
        if dialect is None:
            continue  # shared machinery, not an engine
        if dialect.kind in dialects:
            raise RuntimeError(f"two modules of {engines.__name__} claim the kind {dialect.kind!r}")
        dialects[dialect.kind] = dialect
    return MappingProxyType(dict(sorted(dialects.items())))


DIALECTS: Mapping[str, Dialect] = _found()
"""Kind -> dialect, by kind."""


def dialect(kind: str) -> Dialect:
    """The dialect of `kind`. Raises USAGE naming the known kinds."""
    try:
        return DIALECTS[kind]
    except KeyError:
        known = ", ".join(DIALECTS)
        raise CommandError(CommandCode.USAGE, f"there is no engine kind {kind!r}; known kinds: {known}") from None

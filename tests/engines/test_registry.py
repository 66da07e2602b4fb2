"""Every engine module is found by being there, and an unknown kind names the known ones."""

from __future__ import annotations

import pytest

from flm.engines.registry import DIALECTS, dialect
from flm.errors import CommandCode, CommandError


def test_the_kinds() -> None:
    assert {"llamacpp", "ollama", "openai"} <= set(DIALECTS)
    assert list(DIALECTS) == sorted(DIALECTS)
    assert all(found.kind == kind for kind, found in DIALECTS.items())
    assert len({found.label for found in DIALECTS.values()}) == len(DIALECTS)
    assert all(found.idle_seconds > 0 for found in DIALECTS.values())


def test_a_known_kind() -> None:
    assert dialect("ollama") is DIALECTS["ollama"]


def test_an_unknown_kind() -> None:
    with pytest.raises(CommandError, match=r"'ollma'; known kinds: .*ollama") as caught:
        dialect("ollma")
    assert caught.value.code is CommandCode.USAGE

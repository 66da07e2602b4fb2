"""Which versions of which engines are read on instead of cut when their client leaves, and for how long at most."""

from __future__ import annotations

import pytest

from flm.engines.registry import DIALECTS

LONGEST = 120.0  # seconds: a place of the engine that works for nobody
KNOWN = [
    ("vllm", "0.2.7", True),  # VLLM#2475
    ("vllm", "0.5.2", True),  # VLLM#6586
    ("vllm", "0.5.3", False),
    ("vllm", "0.32.0", False),
    ("ollama", "0.11.4", False),  # stops within 0.1 s, as tests/real sees
    ("ollama", "0.34.4", False),
    ("llamacpp", "b10454-4df29be", False),
    ("lmstudio", None, False),
]


@pytest.mark.parametrize(("kind", "version", "drained"), KNOWN)
def test_only_versions_known_to_break_are_drained(kind: str, version: str | None, drained: bool) -> None:
    assert (DIALECTS[kind].drain_seconds(version) > 0) is drained


@pytest.mark.parametrize("kind", sorted(DIALECTS))
@pytest.mark.parametrize("version", [None, "", "0.0.0", "0.5.2", "unknown", "1" * 1000])
def test_a_drain_is_bounded_and_an_unknown_version_is_cut(kind: str, version: str | None) -> None:
    seconds = DIALECTS[kind].drain_seconds(version)
    assert 0 <= seconds <= LONGEST
    if version in (None, "", "unknown"):
        assert seconds == 0

"""No engine's name stands outside the rooms of the engines: a new engine is one new file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "flm"
NAMES = re.compile(r"ollama|llama|vllm|lm[ _-]?studio|\blms\b|gguf", re.IGNORECASE)
ALLOWED_ROOMS = frozenset({"engines", "demo"})

SOURCES = sorted(
    path
    for pattern in ("*.py", "*.pyi", "*.rs", "*.sql")
    for path in PACKAGE.rglob(pattern)
    if path.relative_to(PACKAGE).parts[0] not in ALLOWED_ROOMS
)


def named(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if NAMES.search(line)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_engine_is_named(path: Path) -> None:
    assert named(path.read_text()) == []


@pytest.mark.parametrize(
    "line", ['if kind == "ollama":', "# as LM Studio does", 'PATHS = {"llama-server": 1}', "VLLM = 1"]
)
def test_a_planted_name_is_seen(line: str) -> None:
    assert named(line)

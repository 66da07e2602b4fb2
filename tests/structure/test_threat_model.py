"""Every test that the threat model leans on is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`")
POINTS = sorted(set(NAMED.findall((ROOT / "docs" / "threat-model.md").read_text())))


def functions(path: Path) -> set[str]:
    found = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("file", "name"), POINTS, ids=[name or file for file, name in POINTS])
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert not name or name in functions(ROOT / file)


def test_there_are_points() -> None:
    assert len(POINTS) > 40

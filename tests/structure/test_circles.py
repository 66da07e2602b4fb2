"""No circle of modules: whatever a file stands on does not stand on it. The negative controls show that it bites.

Every import counts, also one inside a function, one for the type checker alone, and `import_module` with a name: a
circle that none of them closes at run time still cannot be read or tested a part at a time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flm"


def module_of(path: Path) -> str:
    """The dotted name of a file under ROOT."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named(source: str) -> Iterator[str]:
    """Every dotted name that `source` imports: of `from a import b` that is `a.b`, be it a module or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))


def circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of one circle, the first one again at the end; empty if there is none. `sources`: by module."""
    stands_on = {}
    for module, source in sources.items():
        met = (name if name in sources else name.rpartition(".")[0] for name in named(source))
        stands_on[module] = {each for each in met if each in sources and each != module}
    try:
        TopologicalSorter(stands_on).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_stands_on_itself() -> None:
    sources = {module_of(path): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(sources) > 100
    assert " -> ".join(reversed(circle(sources))) == ""


@pytest.mark.parametrize(
    "back",
    [
        "from flm.a import thing",
        "from flm import a",
        "import flm.a",
        "def f():\n    from flm.a import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flm.a import Thing",
        "from importlib import import_module\nimport_module('flm.a')",
        "import importlib\nimportlib.import_module('flm.a')",
        "from flm.b.deeper import thing",
    ],
)
def test_a_circle_is_seen(back: str) -> None:
    sources = {"flm.a": "from flm.b import thing", "flm.b": back, "flm.b.deeper": "import flm.a", "flm": "import os"}
    found = circle(sources)
    assert {"flm.a", "flm.b"} <= set(found)
    assert found[0] == found[-1]


def test_two_ways_to_one_module_are_no_circle() -> None:
    sources = {"flm.a": "from flm import b, c", "flm.b": "from flm.c import b", "flm.c": "import flm", "flm": ""}
    assert circle(sources) == []

"""Who may import whom. The table here is the one of docs/architecture.md; the negative controls show that it bites."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flm"

PURE_0 = frozenset({"errors", "config"})
PURE_1 = frozenset({"wire", "policy"})
PURE_2 = frozenset({"engines", "snapshot"})
IO_3 = frozenset({"upstream", "store", "tls"})
BELOW_PROXY = PURE_0 | PURE_1 | PURE_2
BELOW_RUNTIME = BELOW_PROXY | IO_3 | {"disk", "proxy", "_native"}

# room -> the rooms it may import besides itself
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "config": frozenset({"errors"}),
    "_native": frozenset(),
    "wire": PURE_0 | {"_native"},
    "policy": PURE_0 | {"_native"},
    "snapshot": PURE_0 | PURE_1,
    "engines": PURE_0 | PURE_1 | {"snapshot"},
    "disk": PURE_0,
    "upstream": BELOW_PROXY,
    "store": BELOW_PROXY | {"disk", "_native"},
    "tls": BELOW_PROXY | {"disk"},
    "proxy": BELOW_PROXY | {"upstream", "_native"},
    "runtime": BELOW_RUNTIME,
    "demo": BELOW_RUNTIME,
    "services": BELOW_RUNTIME | {"runtime", "demo"},
    "cli": frozenset({"services", "errors", "config"}),
    "__init__": frozenset(),
    "__main__": frozenset({"cli"}),
}
PURE = PURE_0 | PURE_1 | PURE_2
FORBIDDEN_IN_PURE = frozenset({"asyncio", "socket", "ssl", "time", "os", "random", "logging", "sqlite3"})
SERVER_ROOM = "runtime"  # the only one that names the ASGI server


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str) -> Iterator[str]:
    """Every dotted module name that `source` imports, also inside functions; TYPE_CHECKING blocks count too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they reach into"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "flm" else [module]


def violations(room: str, source: str) -> list[str]:
    found = []
    for name in imports(source):
        parts = name.split(".")
        if parts[0] == "flm" and len(parts) > 1:
            other = parts[1]
            if other in MAY_IMPORT and other not in MAY_IMPORT[room] | {room}:
                found.append(f"{room} imports {name}")
        elif room in PURE and parts[0] in FORBIDDEN_IN_PURE:
            found.append(f"{room} is pure and imports {name}")
        elif parts[0] == "granian" and room != SERVER_ROOM:
            found.append(f"{room} names the server: {name}")
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_floor_may(path: Path) -> None:
    assert room_of(path) in MAY_IMPORT, f"{room_of(path)} is a new room: give it a floor"
    assert violations(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("wire", "from flm.policy import keys"),
        ("wire", "import asyncio"),
        ("engines", "import time"),
        ("engines", "def f():\n    from os import environ"),
        ("proxy", "from flm.store.database import open_config"),
        ("proxy", "from flm import runtime"),
        ("proxy", "from granian.server.embed import Server"),
        ("upstream", "import flm.store"),
        ("tls", "from flm.store import folder"),
        ("disk", "from flm.store import folder"),
        ("proxy", "from flm.disk import private"),
        ("proxy", "from flm.tls import pair"),
        ("cli", "from flm.store import keys"),
        ("services", "from flm.cli.output import table"),
        ("errors", "from flm.config import Settings"),
    ],
)
def test_a_forbidden_import_is_seen(room: str, source: str) -> None:
    assert violations(room, source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "the first lines say what a file is and does not know"

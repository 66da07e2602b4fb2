"""Patterns of code that must not be in FLM, found in the syntax tree: what general linters cannot know.

    python -m tests.structure.patterns flm      # prints FILE:LINE RULE why; ends with 1 if there is any

A line that is right all the same says so: `# allowed RULE: reason`. Knows no type, only names and calls.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_SECRET: Final = re.compile(
    r"(^|_)(secret|credential|passphrase|password|pepper|authorization|digest|prompt)(s?)$", re.IGNORECASE
)
_LOGGING: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
_LOADERS: Final = frozenset({"pickle", "marshal", "shelve", "dill", "xml", "yaml"})
_RANDOM: Final = frozenset({"random", "randint", "choice", "getrandbits", "randbytes", "uniform"})
_ALLOWED: Final = re.compile(r"# allowed ([a-z-]+): \S")
_WORDS_OF_RULES: Final = {
    "secret-in-log": "a secret is handed to a logger",
    "secret-in-message": "a secret is put into the text of an exception",
    "secret-compared": "compare secrets in constant time: hmac.compare_digest, or the native crate",
    "unverified-tls": "a certificate is not verified",
    "unsafe-loader": "loads objects, code or entities that a file may bring along",
    "code-from-text": "runs text as code",
    "shell": "hands a line to a shell",
    "guessable": "random numbers that can be guessed; os.urandom or secrets cannot",
    "secret-in-environment": "hands a secret on in an environment, where /proc shows it",
    "temporary-name": "a name in a folder of others; disk/private makes private files",
}


class Find(NamedTuple):
    """One place. `rule` is a key of the table above."""

    line: int
    rule: str


def finds(source: str) -> list[Find]:
    """All places in one file, but for those that are allowed."""
    lines = source.splitlines()
    found = {find for node in ast.walk(ast.parse(source)) for find in _of(node)}
    return sorted(find for find in found if not _is_allowed(lines, find))


def _is_allowed(lines: list[str], find: Find) -> bool:
    said = _ALLOWED.search(lines[find.line - 1])
    return said is not None and said.group(1) == find.rule


def _of(node: ast.AST) -> Iterator[Find]:
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from (Find(line, "unsafe-loader") for name in names if name.split(".")[0] in _LOADERS)
    elif isinstance(node, ast.Compare):
        if any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops) and not _with_a_constant(node):
            sides = (node.left, *node.comparators)
            yield from (Find(line, "secret-compared") for side in sides if _names_a_secret(side))
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        told = [part for argument in node.exc.args for part in _formatted(argument)]
        yield from (Find(line, "secret-in-message") for part in told if _names_a_secret(part))
    elif isinstance(node, ast.Assign | ast.Attribute):
        yield from _of_tls(node, line)
    elif isinstance(node, ast.Call):
        yield from _of_call(node, line)


def _of_tls(node: ast.Assign | ast.Attribute, line: int) -> Iterator[Find]:
    if isinstance(node, ast.Attribute):
        if node.attr in ("CERT_NONE", "_create_unverified_context"):
            yield Find(line, "unverified-tls")
    elif isinstance(node.value, ast.Constant) and node.value.value is False:
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "check_hostname":
                yield Find(line, "unverified-tls")


def _of_call(call: ast.Call, line: int) -> Iterator[Find]:
    owner, name = _called(call)
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name in _LOGGING and owner in ("log", "logger", "logging"):
        parts = [part for argument in arguments for part in (argument, *_formatted(argument))]
        yield from (Find(line, "secret-in-log") for part in parts if _names_a_secret(part))
    if not owner and name in ("eval", "exec", "compile"):
        yield Find(line, "code-from-text")
    if owner == "os" and name in ("system", "popen"):
        yield Find(line, "shell")
    if owner == "random" and name in _RANDOM:
        yield Find(line, "guessable")
    if owner == "tempfile" and name in ("mktemp", "NamedTemporaryFile"):
        yield Find(line, "temporary-name")
    if owner == "os" and name == "putenv" and any(map(_names_a_secret, arguments)):
        yield Find(line, "secret-in-environment")
    for keyword in call.keywords:
        if keyword.arg == "shell" and getattr(keyword.value, "value", None) is True:
            yield Find(line, "shell")
        if keyword.arg == "verify" and getattr(keyword.value, "value", None) is False:
            yield Find(line, "unverified-tls")
        if keyword.arg == "env" and any(_names_a_secret(node) for node in ast.walk(keyword.value)):
            yield Find(line, "secret-in-environment")


def _called(call: ast.Call) -> tuple[str, str]:
    """(what the function belongs to, its name)"""
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        return owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", ""), call.func.attr
    return "", call.func.id if isinstance(call.func, ast.Name) else ""


def _formatted(node: ast.expr) -> Iterator[ast.expr]:
    """What an f-string, a `%` or a `+` puts into text."""
    if isinstance(node, ast.JoinedStr):
        yield from (part.value for part in node.values if isinstance(part, ast.FormattedValue))
    elif isinstance(node, ast.BinOp):
        yield node.right
        yield from _formatted(node.left)


def _names_a_secret(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "folder":
        return False  # where its file is
    return _SECRET.search(name) is not None


def _with_a_constant(node: ast.Compare) -> bool:
    return any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))


def main(roots: list[str]) -> int:
    count = 0
    for path in sorted(path for root in roots for path in Path(root).rglob("*.py")):
        for find in finds(path.read_text(encoding="utf-8")):
            print(f"{path}:{find.line} {find.rule} {_WORDS_OF_RULES[find.rule]}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

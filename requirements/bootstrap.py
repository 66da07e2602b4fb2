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
from typing import NoReturn

import rust

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "dev.lock"


def fail(message: str) -> NoReturn:
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


def rust_environment() -> dict[str, str]:
    """The environment to build in: the virtual one, and a Rust that works if there is one."""
    path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    try:
        environment, works = rust.usable({**os.environ, "VIRTUAL_ENV": str(VENV), "PATH": path})
    except rust.TooOldError as error:
        fail(str(error))
    if not works:
        print("  no working Rust here: maturin fetches one for this build")
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

"""Install the real vLLM that `make gate-vllm` runs, and write the model that it serves.

usage: python -m tests.real.vllm.build

Does not start it (serving.py does). Like tests/real/build.py, whose lock, scratch folders and logs it uses: one folder
whose name carries everything that decides its content, renamed into its place when it has proved that it runs.

Strategy: a virtual environment with the pinned wheels of requirements.txt, checked by their hashes and nothing else
resolved. They are for one platform only, Python 3.11 on x86-64 Linux with glibc, so that is looked at first; a wheel
of CUDA's torch is large: 2 GB come in, 5 GB stay.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from pathlib import Path

from tests.real import locations, scripted_llama
from tests.real.build import Part, Scratch, build_parts, missing_of, run_build

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
VERSION = "0.32.0"
DISK_NEEDED_BYTES = 9 << 30
"""The wheels while they are unpacked, and what stays."""
PYTHON = (3, 11)


def vllm_dir() -> Path:
    """Part that holds `bin/python` with vLLM, and the model folder `scripted`."""
    texts = REQUIREMENTS.read_bytes() + b"".join(
        (HERE.parent / name).read_bytes() for name in ("scripted_llama.py", "scripted_gguf.py")
    )
    return locations.engines_dir() / f"vllm-{VERSION}-linux-x86_64-{hashlib.sha256(texts).hexdigest()[:12]}"


def unfit() -> str | None:
    """Why this machine cannot run it, in a sentence; None if it can."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"the pinned wheels are for Linux on x86-64; this is {machine}"
    if sys.version_info[:2] != PYTHON:
        return f"the pinned wheels are for Python 3.11; this is {platform.python_version()}"
    return None


def _make(scratch: Scratch) -> None:
    free = shutil.disk_usage(scratch.out).free
    if free < DISK_NEEDED_BYTES:
        raise SystemExit(
            f"vLLM needs {DISK_NEEDED_BYTES >> 30} GiB of disk while it is installed; {free >> 30} are free"
        )
    environment = scratch.out / "venv"
    scratch.run("vllm: environment", sys.executable, "-m", "venv", str(environment))
    pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--require-hashes")
    scratch.run("vllm: install", *pip, "--only-binary", ":all:", "--no-cache-dir", "-r", str(REQUIREMENTS))
    scripted_llama.write(scratch.out / "scripted")


def part() -> Part:
    """The one folder to make."""
    return Part(f"vLLM {VERSION}", vllm_dir(), _make, ("venv/bin/python", "-c", "import vllm"))


def _work(folder: Path) -> int:
    wanted = missing_of([part()])
    if not wanted:
        print(f"vLLM {VERSION} is installed (in {folder}).")
        return 0
    if (reason := unfit()) is not None:
        print(f"vLLM cannot be installed here: {reason}.", file=sys.stderr)
        return 1
    build_parts(wanted, folder, " (once; about five minutes, 2 GB to load)")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_build(_work))

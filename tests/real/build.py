"""Build the real engines that `make test-real` runs: llama-server, two Ollamas, and the scripted models they serve.

usage: python -m tests.real.build [--list]

Does not start an engine (engines.py does). What is already built is left alone, so a second run ends at once.

Strategy: every part is made in a scratch folder beside its final place and renamed into it when it has proved that it
runs, stamp included; a build that was killed leaves only a scratch folder, which the next one removes. One lock keeps
two builds apart. Sources come from package registries through their ordinary clients, checked by pip's hash and by Go's
checksum database.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # also usable as `python tests/real/build.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.real import locations, scripted_gguf, toolchain
from tests.real.progress import StepError, run_step

SCRATCH_PREFIX = ".building-"
LOG_FOLDER = "logs"

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    # Half of the compile time goes into optimising templates that a 2 MB model never makes use of.
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
    # The cache may move to another machine of the same kind (CI): no instruction of this very processor.
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    # Without these the commit of whatever git checkout lies above the source would be taken for llama.cpp's.
    "-DLLAMA_BUILD_NUMBER=1",
    f"-DLLAMA_BUILD_COMMIT=py{locations.LLAMA_CPP_PYTHON}",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One folder to make: its name for people, its place, and what fills a scratch folder with its content."""

    name: str
    folder: Path
    make: Callable[[Scratch], None]
    check: tuple[str, ...] = ()
    """A command, its program relative to the folder, that must exit 0 for the part to count as built."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where one part is being made: `out` becomes the part's folder, `work` is thrown away."""

    out: Path
    work: Path
    log: Path

    def run(self, label: str, *command: str, cwd: Path | None = None, **variables: str) -> None:
        """Run one command of the recipe with `variables` added to the environment; StepError when it fails."""
        run_step(label, command, self.log, env={**os.environ, **variables}, cwd=cwd or self.work)


def _make_llama_server(scratch: Scratch) -> None:
    requirement = scratch.work / "requirement.txt"
    requirement.write_text(
        f"llama-cpp-python=={locations.LLAMA_CPP_PYTHON} --hash=sha256:{locations.LLAMA_CPP_PYTHON_SHA256}\n"
    )
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes")
    scratch.run("llama-server: source", *pip, "-d", str(scratch.work), "-r", str(requirement))
    with tarfile.open(next(scratch.work.glob("*.tar.gz"))) as archive:
        archive.extractall(scratch.work / "source", filter="data")
    tree = next((scratch.work / "source").glob("*/vendor/llama.cpp"))
    objects = scratch.work / "objects"
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    scratch.run("llama-server: configure", "cmake", *generator, "-S", str(tree), "-B", str(objects), *CMAKE_FLAGS)
    target = ("--target", "llama-server", "--parallel", str(os.cpu_count() or 1))
    scratch.run("llama-server: compile", "cmake", "--build", str(objects), *target)
    (scratch.out / "bin").mkdir()
    shutil.copy2(objects / "bin" / "llama-server", scratch.out / "bin" / "llama-server")


def _make_ollama(scratch: Scratch, version: str) -> None:
    (scratch.out / "bin").mkdir()
    scratch.run(
        f"ollama {version}: compile",
        *("go", "install", "-trimpath", "-ldflags", f"-s -w -X=github.com/ollama/ollama/version.Version={version}"),
        f"github.com/ollama/ollama@v{version}",
        GOBIN=str(scratch.out / "bin"),
        GOMODCACHE=str(scratch.work / "modules"),
        GOCACHE=str(scratch.work / "objects"),
        GOPATH=str(scratch.work / "gopath"),
        GOFLAGS="-mod=mod",
        CGO_ENABLED="1",
    )
    if version == locations.OLLAMA_NEW:
        beside = scratch.out / "lib" / "ollama"
        beside.mkdir(parents=True)
        shutil.copy2(locations.llama_server_dir() / "bin" / "llama-server", beside / "llama-server")


def _make_scripted(scratch: Scratch) -> None:
    scripted_gguf.write(str(scratch.out / "scripted.gguf"))
    scripted_gguf.write_modelfiles(scratch.out / "scripted.gguf", scratch.out)


def _parts() -> list[Part]:
    """Everything to build, in the order of what needs what."""
    old, new = locations.OLLAMA_OLD, locations.OLLAMA_NEW
    version = ("bin/ollama", "--version")
    return [
        Part("scripted models", locations.scripted_dir(), _make_scripted),
        Part("llama-server", locations.llama_server_dir(), _make_llama_server, ("bin/llama-server", "--version")),
        Part(f"ollama {old}", locations.ollama_dir(old), lambda scratch: _make_ollama(scratch, old), version),
        Part(f"ollama {new}", locations.ollama_dir(new), lambda scratch: _make_ollama(scratch, new), version),
    ]


def _runs(part: Part, folder: Path) -> bool:
    """Whether the built program in `folder` starts on this machine."""
    if not part.check:
        return True
    program, *arguments = part.check
    with tempfile.TemporaryDirectory() as home:
        try:
            done = subprocess.run(
                [folder / program, *arguments], env={**os.environ, "HOME": home}, capture_output=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            return False
    return done.returncode == 0


def _remove(folder: Path) -> None:
    """Remove a folder of ours; Go makes its module cache read-only, which would stop a plain removal."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(path, name)
            if not inner.is_symlink():
                inner.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


@contextmanager
def _scratch(part: Part) -> Iterator[Scratch]:
    root = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=part.folder.parent))
    logs = part.folder.parent / LOG_FOLDER
    logs.mkdir(exist_ok=True)
    log = logs / f"{part.folder.name}.log"
    log.unlink(missing_ok=True)
    scratch = Scratch(root / "out", root / "work", log)
    try:
        scratch.out.mkdir()
        scratch.work.mkdir()
        yield scratch
    finally:
        _remove(root)


def _build(part: Part) -> None:
    """Make one part and put it in its place; StepError when a step, or the finished program, fails."""
    with _scratch(part) as scratch:
        part.make(scratch)
        if not _runs(part, scratch.out):
            raise StepError(f"{part.name} was built but `{' '.join(part.check)}` does not run; see {scratch.log}")
        (scratch.out / locations.STAMP).write_text(f"{part.name}\n{platform.platform()}\n")
        if part.folder.exists():
            _remove(part.folder)
        scratch.out.rename(part.folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One build at a time; a second one waits and then finds the work done."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("Another build of the real engines is under way; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in folder.glob(f"{SCRATCH_PREFIX}*"):
            _remove(leftover)
        yield


def missing_of(parts: list[Part]) -> list[Part]:
    """Those that are not built, or whose program does not start here."""
    return [part for part in parts if not (locations.is_built(part.folder) and _runs(part, part.folder))]


def build_parts(wanted: list[Part], folder: Path, length: str) -> None:
    """Make each part, in this order; StepError when one fails. `length` says in words how long it takes."""
    started = time.monotonic()
    print(f"Building {', '.join(part.name for part in wanted)} in {folder}{length}.")
    for part in wanted:
        _build(part)
    minutes = (time.monotonic() - started) / 60
    print(f"Built after {minutes:.1f} minutes; logs in {folder / LOG_FOLDER}.")


def _build_all(folder: Path) -> int:
    parts = _parts()
    wanted = missing_of(parts)
    if not wanted:
        print(f"The real engines are built: {', '.join(part.name for part in parts)} (in {folder}).")
        return 0
    if found := toolchain.missing(folder, programs=any(part.check for part in wanted)):
        print(toolchain.describe(found), file=sys.stderr)
        return 1
    compiled = any(part.check for part in wanted)
    build_parts(wanted, folder, " (once; up to 15 minutes on two cores)" if compiled else "")
    return 0


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Build what is missing; 0 when everything is there, 1 with the reason on standard error otherwise."""
    parser = argparse.ArgumentParser(description="Build the real engines that `make test-real` runs.")
    parser.add_argument(
        "--list", action="store_true", help="print each part's folder and whether it is built; build nothing"
    )
    if parser.parse_args().list:
        for part in _parts():
            print(f"{part.name}: {part.folder} {'(built)' if locations.is_built(part.folder) else '(not built)'}")
        return 0
    return run_build(_build_all)


def run_build(work: Callable[[Path], int]) -> int:
    """The exit code of `work`, called with the folder of the engines while no other build runs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)  # so that the compilers end and the scratch folder goes
    os.nice(10)
    folder = locations.engines_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder):
            return work(folder)
    except StepError as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; what was finished before is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

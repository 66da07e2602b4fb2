"""Runs the native crate's tests under a checker, as they are and with faults planted in a copy of the source.

Knows cargo's report of tests, no checker. Strategy: a fault is one change of text that must fit exactly once, so that
it cannot quietly miss; the test it is meant for must fail, and say what is expected of it: a copy that does not
compile, or fails elsewhere, is no proof.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gates.page import ROOT, Row

PARTS = ("Cargo.toml", "Cargo.lock", "flm/_native/src")  # what the crate is made of
SOURCE = "flm/_native/src"
SECONDS = 1800  # a checker on a slow machine, with the build of what the crate stands on

_BUILT = "Compiling flm-native "
_RESULT = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fault:
    """A change to a file of the source after which `test` must fail with `says` (a regular expression)."""

    what: str
    file: str
    old: str
    new: str
    test: str
    says: str


class PlantError(Exception):
    """A fault does not fit the source any more; the message names it."""


@dataclass(frozen=True, slots=True)
class Checker:
    """A command that runs tests whose names are appended to it, and the environment it needs.

    It builds below `target`: the crate as it is and the copies apart, so that none is taken for the other, and each
    time anew: Miri's programs are notes of where the source is, and cargo does not see that they are stale.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]

    def run(self, folder: Path, tests: Sequence[str]) -> tuple[int, str, float]:
        """Its exit code, what it printed, and how long it took, in seconds. One that hangs is an exit code too."""
        began = time.monotonic()
        target = ROOT / "target" / (self.name if folder == ROOT else f"{self.name}-planted")
        for known in target.rglob(".fingerprint/flm-native-*"):
            shutil.rmtree(known)
        environment = {**os.environ, **self.environment, "CARGO_TARGET_DIR": str(target), "RUST_BACKTRACE": "0"}
        try:
            done = subprocess.run(
                [*self.command, *tests],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
            return done.returncode, done.stdout, time.monotonic() - began
        except subprocess.TimeoutExpired:
            return -1, f"did not end within {SECONDS} s", time.monotonic() - began


def outcomes(output: str) -> dict[str, str]:
    """What cargo's report says of each test: "ok", "FAILED" or "ignored"."""
    return dict(_RESULT.findall(output))


def as_it_is(checker: Checker, tests: Sequence[str], demanded: Sequence[str]) -> list[Row]:
    """A row for each test, one for the run, and one for each demanded beginning of a name that no test has."""
    code, output, seconds = checker.run(ROOT, tests)
    found = outcomes(output)
    rows = [Row(name, "passed" if said == "ok" else said, None) for name, said in sorted(found.items())]
    rows += [Row(name, "no such test ran", None) for name in demanded if not any(one.startswith(name) for one in found)]
    built = "passed" if _BUILT in output else "was not built"
    rows.append(Row("cargo", built if code == 0 else f"ended with {code}", seconds, "with the build"))
    if any(row.outcome != "passed" for row in rows):
        print(output)
    return rows


def plant(fault: Fault, folder: Path) -> None:
    """Put a copy of the crate into `folder`, in the place of what is there, with the fault in it. Raises PlantError."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in PARTS:
        sources = (ROOT / part).glob("*.rs") if (ROOT / part).is_dir() else [ROOT / part]
        for source in sources:
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    path = folder / SOURCE / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise PlantError(f"{fault.what}: {fault.file} has its place {text.count(fault.old)} times, not once")
    path.write_text(text.replace(fault.old, fault.new))


def caught(checker: Checker, fault: Fault) -> Row:
    """Whether the checker finds the fault in a copy of the crate."""
    folder = ROOT / ".build" / "gates" / checker.name
    try:
        plant(fault, folder)
    except PlantError as error:
        return Row(fault.what, str(error), None)
    code, output, seconds = checker.run(folder, [fault.test])
    said = re.search(fault.says, output)
    began = re.search(rf"^test {re.escape(fault.test)}\b", output, re.MULTILINE)
    if _BUILT not in output:
        outcome = "the copy was not built"
    elif code == 0:
        outcome = "NOT FOUND"
    elif not began:
        outcome = "the test did not run"
    elif not said:
        outcome = "failed otherwise"
    else:
        return Row(fault.what, "passed", seconds, f"failed as it must: {said[0].strip()}")
    print(output)
    return Row(fault.what, outcome, seconds)

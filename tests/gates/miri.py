"""The native crate's tests under Miri, and the proof that it finds a data race and a read out of bounds there.

    python -m tests.gates.miri      # writes docs/gates/miri.md; ends with 0 only if all holds

Miri interprets the tests and ends at the first undefined behaviour. It has no files mapped into memory, so what stands
on one (`mapping`, and its users `bucket`, `keyring`, `ring`, `shared`) is not run; and it is some thousand times
slower, so plain arithmetic without unsafe code or threads (`gcra`, `keyformat`) is left out.
"""

from __future__ import annotations

import subprocess

from tests.gates import page
from tests.gates.crate import Checker, Fault, as_it_is, caught

ROOMS = ("charge::", "latch::", "moves::", "record::", "siphash::", "spsc::", "values::")
TOOLCHAIN = "+nightly"  # Miri is a part of nightly toolchains only

FAULTS = (
    Fault(
        "bucket: its time is read without an atomic load",
        "charge.rs",
        "now_ns: u64) -> Outcome {\n    let mut seen = bucket.load(Ordering::Relaxed);",
        "now_ns: u64) -> Outcome {\n    let mut seen = unsafe { *bucket.as_ptr() };",
        "charge::tests::plain::threads_that_share_a_bucket_get_exactly_what_it_holds",
        r"Undefined Behavior: Data race detected",
    ),
    Fault(
        "ring, writer: the head is written without an atomic store",
        "spsc.rs",
        "self.head.store(head + needed, Ordering::Release);",
        "unsafe { *self.head.as_ptr() = head + needed };",
        "spsc::tests::a_writer_and_a_reader_at_once_lose_and_tear_nothing",
        r"Undefined Behavior: Data race detected",
    ),
    Fault(
        "ring: a round is one word too long, unchecked",
        "spsc.rs",
        "&self.words[(position & (self.size() - 1)) as usize]",
        "unsafe { &*self.words.as_ptr().add((position % (self.size() + 1)) as usize) }",
        "spsc::tests::rows_of_every_length_come_back_round_after_round",
        r"Undefined Behavior: [^\n]*(out-of-bounds|dangling)[^\n:]*",
    ),
)


def checker() -> Checker:
    """cargo with Miri."""
    command = ["cargo", TOOLCHAIN, "miri", "test", "--locked", "--no-default-features", "--lib", "--"]
    return Checker("miri", command, {})


def version() -> str | None:
    """What Miri says of itself; None if there is none."""
    command = ["cargo", TOOLCHAIN, "miri", "--version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def main() -> int:
    """Run, write, and say with the exit code whether all holds."""
    if (miri := version()) is None:
        print("failed: Miri is missing: rustup toolchain install nightly --component miri --component rust-src")
        return 1
    commit, interpreter = page.commit_of("flm/_native", "Cargo.toml", "Cargo.lock", "tests/gates"), checker()
    rows = as_it_is(interpreter, ROOMS, ROOMS)
    rows += [caught(interpreter, fault) for fault in FAULTS]
    facts = [("commit", commit), ("when", page.now()), ("Miri", miri), ("machine", page.machine())]
    head = ("test, or fault planted in a copy", "outcome", "s", "seen")
    page.write("miri", page.render("The native crate's tests under Miri", "gate-miri", facts, head, rows))
    return page.verdict(rows)


if __name__ == "__main__":
    raise SystemExit(main())

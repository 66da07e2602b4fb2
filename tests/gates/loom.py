"""The models of the native crate's memory orderings, by loom, and the proof that weaker orderings are found.

    python -m tests.gates.loom      # writes docs/gates/loom.md; ends with 0 only if all holds

loom runs each model in every interleaving, with every value that the memory model allows a load to see.
"""

from __future__ import annotations

import subprocess

from tests.gates import page
from tests.gates.crate import Checker, Fault, as_it_is, caught

MODELS = (
    "latch::model::latch_is_never_torn",
    "spsc::model::rows_are_never_torn",
    "charge::tests::model::a_shared_bucket_is_exact",
    "moves::model::moves_hide_nothing",
    "charge::tests::model::a_reclaimed_slot_charges_each_for_itself",
    "charge::tests::model::owner_and_time_changed_separately_are_caught",
)
_LATCH, _RING, _BUCKET, _MOVES = MODELS[:4]
_UNEQUAL = r"assertion `left == right` failed"
_HIDDEN = r"assertion failed: settled"
_TORN = r"Causality violation: Concurrent (atomic store and `unsync_load`|`unsync_load` and atomic store)"

FAULTS = (
    Fault(
        "latch, writer: no release fence before the copy is filled",
        "latch.rs",
        "    fence(Ordering::Release);\n    fill",
        "    fill",
        _LATCH,
        _UNEQUAL,
    ),
    Fault(
        "latch, writer: the version is stored relaxed",
        "latch.rs",
        "version.store(next, Ordering::Release);",
        "version.store(next, Ordering::Relaxed);",
        _LATCH,
        _UNEQUAL,
    ),
    Fault(
        "latch, reader: no acquire fence before the copy is read",
        "latch.rs",
        "fence(Ordering::Acquire);\n        let value",
        "let value",
        _LATCH,
        _UNEQUAL,
    ),
    Fault(
        "latch, reader: no acquire fence after the copy is read",
        "latch.rs",
        "fence(Ordering::Acquire);\n        if version",
        "if version",
        _LATCH,
        _UNEQUAL,
    ),
    Fault(
        "ring, writer: the head is stored relaxed",
        "spsc.rs",
        "self.head.store(head + needed, Ordering::Release);",
        "self.head.store(head + needed, Ordering::Relaxed);",
        _RING,
        _TORN,
    ),
    Fault(
        "ring, reader: the head is loaded relaxed",
        "spsc.rs",
        "let head = self.head.load(Ordering::Acquire);",
        "let head = self.head.load(Ordering::Relaxed);",
        _RING,
        _TORN,
    ),
    Fault(
        "moves, writer: the count is raised relaxed",
        "moves.rs",
        "moves.fetch_add(1, Ordering::Release);",
        "moves.fetch_add(1, Ordering::Relaxed);",
        _MOVES,
        _HIDDEN,
    ),
    Fault(
        "moves, reader: a move is no reason to look again",
        "moves.rs",
        "if after == before {",
        "if after >= before {",
        _MOVES,
        _HIDDEN,
    ),
    Fault(
        "bucket: look and store instead of compare-and-swap",
        "charge.rs",
        "match bucket.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {",
        "bucket.store(new, Ordering::Relaxed);\n        match Ok::<u64, u64>(seen) {",
        _BUCKET,
        r"assertion failed: stood == 2|" + _UNEQUAL,
    ),
    Fault(
        "ring, reader: the tail is stored relaxed",
        "spsc.rs",
        "self.tail.store(position, Ordering::Release);",
        "self.tail.store(position, Ordering::Relaxed);",
        _RING,
        _TORN,
    ),
    Fault(
        "ring, writer: the tail is loaded relaxed",
        "spsc.rs",
        "head.wrapping_sub(self.tail.load(Ordering::Acquire));",
        "head.wrapping_sub(self.tail.load(Ordering::Relaxed));",
        _RING,
        _TORN,
    ),
)


def checker() -> Checker:
    """cargo, with loom in the place of the real atomics."""
    command = ["cargo", "test", "--locked", "--no-default-features", "--lib", "--"]
    return Checker("loom", command, {"RUSTFLAGS": "--cfg loom"})


def main() -> int:
    """Run, write, and say with the exit code whether all holds."""
    try:
        rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"failed: the models need a Rust with cargo: {error}")
        return 1
    commit, loom = page.commit_of("flm/_native", "Cargo.toml", "Cargo.lock", "tests/gates"), checker()
    rows = as_it_is(loom, ["model"], MODELS)
    rows += [caught(loom, fault) for fault in FAULTS]
    facts = [("commit", commit), ("when", page.now()), ("Rust", rust.strip()), ("machine", page.machine())]
    head = ("model, or fault planted in a copy", "outcome", "s", "seen")
    text = page.render("The native crate's memory orderings, by loom", "gate-loom", facts, head, rows)
    page.write("loom", text)
    return page.verdict(rows)


if __name__ == "__main__":
    raise SystemExit(main())

//! How a bucket in shared memory is charged: look, compute, and change it in one compare-and-swap if nobody else has.
//!
//! A bucket is one atomic word, its time (`gcra.rs`). A bucket of an address is a pair, its owner and its time, changed
//! together: a slot is given to another owner only in the same step that charges it, so no charge can land on an owner who
//! lost the slot between look and swap. There is no state between two steps: a process killed anywhere leaves every bucket
//! as it was before its swap or after it.
//!
//! A slot whose time has passed is a full bucket, which is what an address never seen has too: forgetting its owner forgets
//! nothing. A slot that another owner still needs is not given away; the newcomer is charged to an overflow bucket, which
//! it may share with others. The overflow bucket bears the owner charged last: when that one gets a slot, it brings along
//! what it owes, else it would have two bursts. It brings nothing that only others owe: a flood of addresses that empties
//! the overflow buckets must not empty the free slots too.
//!
//! It does not know files, places in them, or clocks. All orderings are relaxed: nothing but the bucket itself is told
//! through it, and the changes of one atomic have one order that all processes agree on.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gcra::{self, Limit, Outcome};

/// A slot of an address table: an owner and a time that change together.
pub trait Slot {
    /// The owner and the time.
    fn load(&self) -> (u64, u64);
    /// Replaces what `load` gave. If something else is there now (or for no reason), leaves it and gives it back.
    fn swap(&self, seen: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)>;
}

#[cfg(not(loom))]
impl Slot for portable_atomic::AtomicU128 {
    fn load(&self) -> (u64, u64) {
        apart(self.load(Ordering::Relaxed))
    }

    fn swap(&self, seen: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
        self.compare_exchange_weak(together(seen), together(new), Ordering::Relaxed, Ordering::Relaxed)
            .map(|_| ())
            .map_err(apart)
    }
}

#[cfg(not(loom))]
fn together((owner, tat): (u64, u64)) -> u128 {
    u128::from(owner) << 64 | u128::from(tat)
}

#[cfg(not(loom))]
fn apart(both: u128) -> (u64, u64) {
    ((both >> 64) as u64, both as u64)
}

/// Takes a token from a bucket.
pub fn take(bucket: &AtomicU64, limit: Limit, now_ns: u64) -> Outcome {
    let mut seen = bucket.load(Ordering::Relaxed);
    loop {
        let (outcome, new) = gcra::take(seen, limit, now_ns);
        if new == seen {
            return outcome;
        }
        match bucket.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return outcome,
            Err(other) => seen = other,
        }
    }
}

/// Gives back what `gcra::refund` found due.
pub fn give_back(bucket: &AtomicU64, refund_ns: u64) {
    let mut seen = bucket.load(Ordering::Relaxed);
    while let Err(other) = bucket.compare_exchange_weak(
        seen,
        seen.saturating_sub(refund_ns),
        Ordering::Relaxed,
        Ordering::Relaxed,
    ) {
        seen = other;
    }
}

/// Takes a token from an owner's bucket: the slot if it is the owner's or free, else the overflow bucket. Returns too
/// whether it was the overflow.
pub fn take_owned<S: Slot>(slot: &S, overflow: &S, owner: u64, limit: Limit, now_ns: u64) -> (Outcome, bool) {
    let mut seen = slot.load();
    loop {
        let (held_by, tat) = seen;
        let owned = held_by == owner;
        if !owned && tat > now_ns {
            return (take_shared(overflow, owner, limit, now_ns), true);
        }
        let start = if owned { tat } else { owed(overflow, owner) };
        let (outcome, new) = gcra::take(start, limit, now_ns);
        // Nothing to write: refused, and a refusal is no reason to hold a slot.
        if !outcome.allowed && (!owned || new == tat) {
            return (outcome, false);
        }
        match slot.swap(seen, (owner, new)) {
            Ok(()) => return (outcome, false),
            Err(other) => seen = other,
        }
    }
}

/// Takes a token from an overflow bucket, whoever else does.
fn take_shared(overflow: &impl Slot, owner: u64, limit: Limit, now_ns: u64) -> Outcome {
    let mut seen = overflow.load();
    loop {
        let (outcome, new) = gcra::take(seen.1, limit, now_ns);
        if new == seen.1 {
            return outcome;
        }
        match overflow.swap(seen, (owner, new)) {
            Ok(()) => return outcome,
            Err(other) => seen = other,
        }
    }
}

/// The time of a newcomer's bucket: what it owes in the overflow bucket, if it was charged there last.
fn owed(overflow: &impl Slot, owner: u64) -> u64 {
    let (charged_last, tat) = overflow.load();
    if charged_last == owner {
        tat
    } else {
        0
    }
}

/// Gives back to an owner's slot, unless it is another's by now: then it was full, and nothing is due.
pub fn give_back_owned(slot: &impl Slot, owner: u64, refund_ns: u64) {
    give_back_while(slot, |held_by| held_by == owner, refund_ns);
}

/// Gives back to an overflow bucket, whoever was charged there last.
pub fn give_back_shared(overflow: &impl Slot, refund_ns: u64) {
    give_back_while(overflow, |_| true, refund_ns);
}

fn give_back_while(slot: &impl Slot, due: impl Fn(u64) -> bool, refund_ns: u64) {
    let mut seen = slot.load();
    while due(seen.0) {
        match slot.swap(seen, (seen.0, seen.1.saturating_sub(refund_ns))) {
            Ok(()) => return,
            Err(other) => seen = other,
        }
    }
}

#[cfg(test)]
#[path = "charge_tests.rs"]
mod tests;

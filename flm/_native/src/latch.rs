//! The latch: how one writer replaces a value while any number of other threads and processes read it.
//!
//! A latch is a version counter and two copies of a value. The low bit of the version names the copy in force. The
//! writer fills the other copy and then raises the version by one; a reader notes the version, copies the value it
//! names, and takes the copy only if the version is still the same. (The Linux kernel calls it `seqcount_latch_t`.)
//! Compared with a plain seqlock, whose version is odd while the writer is at work, a reader never waits for a writer
//! that was preempted or killed half-way: the copy in force stays whole, and what the dead writer left in the other
//! copy is overwritten by the next one. Nothing needs mending.
//!
//! It does not know what the value is, nor where it lies. Both copies must consist of atomics, because a reader that is
//! about to be turned away may be reading what the writer is writing. Writers must not run at once: the caller sees to
//! that (one writing process, a mutex within it).

#[cfg(loom)]
use loom::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{fence, AtomicU64, Ordering};

/// Replaces the value: calls `fill` with the index (0 or 1) of the copy not in force, to be stored with relaxed
/// atomic stores, then puts that copy in force. Returns the new version.
pub fn write(version: &AtomicU64, fill: impl FnOnce(usize)) -> u64 {
    let next = version.load(Ordering::Relaxed).wrapping_add(1);
    // Release fence: the store of the version that took this copy out of force comes before the stores in `fill`.
    // A reader that sees any of them therefore sees that version too (its acquire fence), and turns its copy down.
    fence(Ordering::Release);
    fill(copy_of(next));
    // Release: whoever sees the new version sees the whole copy.
    version.store(next, Ordering::Release);
    next
}

/// Reads a consistent value: calls `copy` with the index (0 or 1) of the copy in force, to be loaded with relaxed
/// atomic loads. Returns the version and the value, or `None` when a writer got in the way `attempts` times.
pub fn read<T>(version: &AtomicU64, attempts: usize, mut copy: impl FnMut(usize) -> T) -> Option<(u64, T)> {
    for _ in 0..attempts {
        // Relaxed load and acquire fence, not an acquire load: readers may have mapped the file read-only, where Rust
        // promises only relaxed loads to work. Together they pair with the release store in `write`.
        let before = version.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let value = copy(copy_of(before));
        // Acquire fence: pairs with the release fence in `write`, so that a load in `copy` that saw a later write makes
        // the next load see a later version.
        fence(Ordering::Acquire);
        if version.load(Ordering::Relaxed) == before {
            return Some((before, value));
        }
        std::hint::spin_loop();
    }
    None
}

fn copy_of(version: u64) -> usize {
    (version & 1) as usize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_was_written_last() {
        let version = AtomicU64::new(0);
        let copies = [AtomicU64::new(0), AtomicU64::new(0)];
        for value in 1..=5 {
            assert_eq!(write(&version, |i| copies[i].store(value, Ordering::Relaxed)), value);
            assert_eq!(
                read(&version, 1, |i| copies[i].load(Ordering::Relaxed)),
                Some((value, value))
            );
        }
    }

    #[test]
    fn a_writer_that_dies_half_way_leaves_the_old_value_in_force() {
        let version = AtomicU64::new(0);
        let copies = [AtomicU64::new(0), AtomicU64::new(0)];
        write(&version, |i| copies[i].store(1, Ordering::Relaxed));
        let died = std::panic::catch_unwind(|| {
            write(&version, |i| {
                copies[i].store(2, Ordering::Relaxed);
                panic!("killed");
            })
        });
        assert!(died.is_err());
        assert_eq!(read(&version, 1, |i| copies[i].load(Ordering::Relaxed)), Some((1, 1)));
        write(&version, |i| copies[i].store(3, Ordering::Relaxed));
        assert_eq!(read(&version, 1, |i| copies[i].load(Ordering::Relaxed)), Some((2, 3)));
    }

    #[test]
    fn a_reader_that_is_always_lapped_gives_up() {
        let version = AtomicU64::new(0);
        let mut tries = 0;
        let got = read(&version, 7, |_| {
            tries += 1;
            write(&version, |_| ());
        });
        assert_eq!((got, tries), (None, 7));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;

    struct Pair {
        version: AtomicU64,
        copies: [[AtomicU64; 2]; 2],
    }

    /// Every interleaving, and every value the memory model allows a load to see: the two words of a value belong
    /// together, and no value is older than one read before.
    #[test]
    fn latch_is_never_torn() {
        loom::model(|| {
            let pair = Arc::new(Pair {
                version: AtomicU64::new(0),
                copies: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            });
            let writer = Arc::clone(&pair);
            let thread = loom::thread::spawn(move || {
                for value in 1..=2u64 {
                    write(&writer.version, |i| {
                        writer.copies[i][0].store(value, Ordering::Relaxed);
                        writer.copies[i][1].store(value, Ordering::Relaxed);
                    });
                }
            });
            let mut newest = 0;
            for _ in 0..2 {
                let load = |i: usize| {
                    (
                        pair.copies[i][0].load(Ordering::Relaxed),
                        pair.copies[i][1].load(Ordering::Relaxed),
                    )
                };
                if let Some((version, (first, second))) = read(&pair.version, 1, load) {
                    assert_eq!((first, second), (version, version));
                    assert!(version >= newest);
                    newest = version;
                }
            }
            thread.join().unwrap();
        });
    }
}

//! The count of moves: how a reader finds a thing that the writer moves from one place to another meanwhile.
//!
//! The reader looks at both places, one after the other. The writer copies the thing to its new place, raises the count,
//! and only then overwrites the old place. A reader that passed the new place before the copy, and came to the old one
//! after it was overwritten, sees the count raised, and looks again. It takes no lock and never waits: a writer killed
//! between two of these steps has left the thing in one place at least.
//!
//! It does not know what is moved, nor where to. What is overwritten must be published with release, as a latch does.
//! Writers must not run at once.

#[cfg(loom)]
use loom::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{fence, AtomicU64, Ordering};

/// Raises the count: after a thing was copied to its new place, before its old place is overwritten.
pub fn count(moves: &AtomicU64) {
    // Release: whoever sees the raised count sees the copy.
    moves.fetch_add(1, Ordering::Release);
}

/// What `look` sees in a time without moves; after `attempts` times with one, what it saw last. Found or not found, it
/// looks again for a move alone: the time must not say which.
pub fn settled<T>(moves: &AtomicU64, attempts: usize, mut look: impl FnMut() -> T) -> T {
    let mut before = counted(moves);
    let mut seen = look();
    for _ in 1..attempts {
        let after = counted(moves);
        if after == before {
            break;
        }
        before = after;
        seen = look();
    }
    seen
}

fn counted(moves: &AtomicU64) -> u64 {
    // Relaxed load between acquire fences, not an acquire load: readers may have mapped the file read-only, where Rust
    // promises only relaxed loads to work. The first fence pairs with the release that published what was overwritten,
    // the second with `count`.
    fence(Ordering::Acquire);
    let moves = moves.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    moves
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_looks_again_as_long_as_things_move() {
        let moves = AtomicU64::new(0);
        let mut looks = 0;
        let seen = settled(&moves, 9, || {
            looks += 1;
            if looks < 4 {
                count(&moves);
            }
            looks
        });
        assert_eq!(seen, 4);
    }

    #[test]
    fn it_ends_when_things_never_rest() {
        let moves = AtomicU64::new(0);
        let mut looks = 0;
        settled(&moves, 5, || {
            looks += 1;
            count(&moves);
        });
        assert_eq!(looks, 5);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::latch;
    use loom::sync::Arc;

    const ID: u64 = 7;
    const ANOTHER: u64 = 8;

    struct Place {
        version: AtomicU64,
        copies: [AtomicU64; 2],
    }

    impl Place {
        fn with(id: u64) -> Place {
            Place {
                version: AtomicU64::new(0),
                copies: [AtomicU64::new(id), AtomicU64::new(0)],
            }
        }

        fn store(&self, id: u64) {
            latch::write(&self.version, |copy| self.copies[copy].store(id, Ordering::Relaxed));
        }

        fn load(&self) -> Option<u64> {
            let load = |copy: usize| self.copies[copy].load(Ordering::Relaxed);
            latch::read(&self.version, 2, load).map(|(_, id)| id)
        }
    }

    /// Every interleaving, and every value the memory model allows a load to see: a thing that is moved once, and whose
    /// old place another one takes, is found.
    #[test]
    fn moves_hide_nothing() {
        loom::model(|| {
            let moves = Arc::new(AtomicU64::new(0));
            let places = Arc::new([Place::with(0), Place::with(ID)]);
            let (counted, written) = (Arc::clone(&moves), Arc::clone(&places));
            let thread = loom::thread::spawn(move || {
                written[0].store(ID);
                count(&counted);
                written[1].store(ANOTHER);
            });
            // The place moved to is looked at first.
            let look = || places.iter().any(|place| place.load() == Some(ID));
            assert!(settled(&moves, 3, look));
            thread.join().unwrap();
        });
    }
}

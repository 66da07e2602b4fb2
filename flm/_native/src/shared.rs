//! Shared memory of the supervisor and its workers: the epoch, the published snapshot, and what each worker reports.
//!
//! It does not know what a snapshot says: it is bytes. Strategy: the epoch is the version of a latch (`latch.rs`) over two
//! places for a snapshot, so that one atomic load tells a worker whether anything changed, and a publisher killed half-way
//! has changed nothing. Only the supervisor publishes. Each worker slot has a block of its own, of whole cache lines:
//! a heartbeat and counters, which are statistics; nothing is published through them, so their accesses are relaxed.
//! The snapshot places are sparse until a snapshot first needs the room.
//! Layout: header (magic, layout version, length; worker slots, snapshot capacity, offsets of the sections), epoch, slot
//! blocks, two snapshot places (length, bytes).

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::latch;
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};

/// Counters of each worker slot. The first few have names in the Python module; the rest are for later.
pub const COUNTERS: usize = 32;
/// Most worker slots.
pub const WORKER_SLOTS_MAX: usize = 1024;
/// Most bytes of a snapshot: 1 GiB.
pub const SNAPSHOT_MAX: usize = 1 << 30;

const MAGIC: [u8; 8] = *b"flm-shm\0";
const WORKER_SLOTS_WORD: usize = FIRST_OWN_WORD;
const SNAPSHOT_CAPACITY_WORD: usize = FIRST_OWN_WORD + 1;
const EPOCH_OFFSET_WORD: usize = FIRST_OWN_WORD + 2;
const BLOCKS_OFFSET_WORD: usize = FIRST_OWN_WORD + 3;
const SNAPSHOTS_OFFSET_WORD: usize = FIRST_OWN_WORD + 4;

const LINE_WORDS: usize = 8;
/// Words of a worker slot's block: one cache line for the heartbeat, then the counters.
const BLOCK_WORDS: usize = LINE_WORDS + COUNTERS;
/// How often a snapshot is copied again because a publisher came by. Publishing takes longer than copying (it encodes and
/// copies), so a second try is rare; the bound makes sure that a call ends.
const ATTEMPTS: usize = 10_000;

/// The mapped memory.
pub struct Shared {
    mapping: Mapping,
    worker_slots: usize,
    capacity: usize,
    epoch: usize,
    blocks: usize,
    snapshots: [usize; 2],
    /// Bytes of each snapshot place that this process knows to exist on disk. Its lock keeps publishing threads apart.
    reserved: Mutex<[usize; 2]>,
}

impl Shared {
    /// Lays the empty file behind `fd` out for `worker_slots` workers and snapshots of up to `snapshot_capacity` bytes.
    pub fn create(fd: BorrowedFd<'_>, worker_slots: usize, snapshot_capacity: usize) -> Result<Shared> {
        if !(1..=WORKER_SLOTS_MAX).contains(&worker_slots) {
            return Err(Error::Argument("the number of worker slots must be from 1 to 1024"));
        }
        if !(1..=SNAPSHOT_MAX).contains(&snapshot_capacity) {
            return Err(Error::Argument("the snapshot capacity must be from 1 byte to 1 GiB"));
        }
        let blocks = HEADER + LINE_WORDS * WORD;
        let snapshots = (blocks + worker_slots * BLOCK_WORDS * WORD).next_multiple_of(HEADER);
        let mapping = Mapping::create(fd, snapshots + 2 * place_words(snapshot_capacity) * WORD)?;
        mapping.reserve(0, snapshots)?;
        let own = [worker_slots, snapshot_capacity, HEADER, blocks, snapshots];
        for (word, value) in mapping.words(WORKER_SLOTS_WORD, own.len()).iter().zip(own) {
            word.store(value as u64, Ordering::Relaxed);
        }
        mapping.seal(MAGIC);
        Shared::over(mapping)
    }

    /// Maps memory that another process laid out.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<Shared> {
        Shared::over(Mapping::open(fd, MAGIC, true)?)
    }

    fn over(mapping: Mapping) -> Result<Shared> {
        let own = |word: usize| usize::try_from(mapping.word(word).load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let (worker_slots, capacity) = (own(WORKER_SLOTS_WORD), own(SNAPSHOT_CAPACITY_WORD));
        let (epoch, blocks, snapshots) = (
            own(EPOCH_OFFSET_WORD),
            own(BLOCKS_OFFSET_WORD),
            own(SNAPSHOTS_OFFSET_WORD),
        );
        let bounded = worker_slots <= WORKER_SLOTS_MAX && capacity <= SNAPSHOT_MAX;
        let inside = |offset: usize, words: usize| {
            offset % WORD == 0 && offset <= mapping.len() && words * WORD <= mapping.len() - offset
        };
        if !bounded
            || !inside(epoch, 1)
            || !inside(blocks, worker_slots * BLOCK_WORDS)
            || !inside(snapshots, 2 * place_words(capacity))
        {
            return Err(Error::Layout(
                "the shared memory's header contradicts itself: damaged, a new file is needed".into(),
            ));
        }
        let first = snapshots / WORD;
        Ok(Shared {
            mapping,
            worker_slots,
            capacity,
            epoch: epoch / WORD,
            blocks: blocks / WORD,
            snapshots: [first, first + place_words(capacity)],
            reserved: Mutex::new([0; 2]),
        })
    }

    /// Puts a snapshot in force and returns its epoch. Readers see the former one or this one, whole.
    pub fn publish(&self, snapshot: &[u8]) -> Result<u64> {
        if snapshot.len() > self.capacity {
            return Err(Error::Refused(format!(
                "the snapshot has {} bytes and the shared memory was made for {}: restart with more room",
                snapshot.len(),
                self.capacity
            )));
        }
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let next = ((self.epoch().wrapping_add(1)) & 1) as usize;
        let needed = place_words(snapshot.len()) * WORD;
        if needed > reserved[next] {
            // The place is not in force: zeros in it are seen only by a reader that will be turned away.
            self.mapping
                .reserve(self.snapshots[next] * WORD + reserved[next], needed - reserved[next])?;
            reserved[next] = needed;
        }
        Ok(latch::write(self.mapping.word(self.epoch), |place| {
            let words = self.mapping.words(self.snapshots[place], place_words(snapshot.len()));
            words[0].store(snapshot.len() as u64, Ordering::Relaxed);
            for (word, bytes) in words[1..].iter().zip(snapshot.chunks(WORD)) {
                let mut padded = [0; WORD];
                padded[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
            }
        }))
    }

    /// The epoch: how many snapshots were published since the file was made.
    pub fn epoch(&self) -> u64 {
        // Acquire: what the publisher did before (a key revoked in the keyring) is seen by whoever sees the epoch.
        self.mapping.word(self.epoch).load(Ordering::Acquire)
    }

    /// The snapshot in force and its epoch; epoch 0 and no bytes before the first one.
    pub fn snapshot(&self) -> Result<(u64, Vec<u8>)> {
        latch::read(self.mapping.word(self.epoch), ATTEMPTS, |place| {
            // The length may be half of another snapshot's story: it is bounded here, and checked by the latch.
            let length = (self.mapping.word(self.snapshots[place]).load(Ordering::Relaxed) as usize).min(self.capacity);
            let words = self.mapping.words(self.snapshots[place] + 1, length.div_ceil(WORD));
            let mut bytes = Vec::with_capacity(words.len() * WORD);
            bytes.extend(words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()));
            bytes.truncate(length);
            bytes
        })
        .ok_or_else(|| {
            Error::Refused(format!(
                "the snapshot changed {ATTEMPTS} times while it was copied: something publishes without pause"
            ))
        })
    }

    /// Records that the worker in `slot` was alive at `monotonic_ms`.
    pub fn beat(&self, slot: usize, monotonic_ms: u64) -> Result<()> {
        self.block(slot)?[0].store(monotonic_ms, Ordering::Relaxed);
        Ok(())
    }

    /// The time of the last heartbeat in `slot`; 0 before the first.
    pub fn last_beat(&self, slot: usize) -> Result<u64> {
        Ok(self.block(slot)?[0].load(Ordering::Relaxed))
    }

    /// Adds to a counter, modulo 2^64; a negative `delta` subtracts.
    pub fn add(&self, slot: usize, counter: usize, delta: i64) -> Result<()> {
        self.cell(slot, counter)?.fetch_add(delta as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The value of a counter.
    pub fn counter(&self, slot: usize, counter: usize) -> Result<u64> {
        Ok(self.cell(slot, counter)?.load(Ordering::Relaxed))
    }

    /// Number of worker slots.
    pub fn worker_slots(&self) -> usize {
        self.worker_slots
    }

    fn cell(&self, slot: usize, counter: usize) -> Result<&AtomicU64> {
        self.block(slot)?[LINE_WORDS..]
            .get(counter)
            .ok_or_else(|| Error::Refused(format!("there is no counter {counter}: {COUNTERS} of a slot")))
    }

    fn block(&self, slot: usize) -> Result<&[AtomicU64]> {
        if slot >= self.worker_slots {
            return Err(Error::Refused(format!(
                "there is no worker slot {slot}: the memory was made for {}",
                self.worker_slots
            )));
        }
        Ok(self.mapping.words(self.blocks + slot * BLOCK_WORDS, BLOCK_WORDS))
    }
}

/// Words of a place for a snapshot of `bytes` bytes: its length, and the bytes.
fn place_words(bytes: usize) -> usize {
    1 + bytes.div_ceil(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::scratch;
    use std::os::fd::AsFd;

    #[test]
    fn every_size_comes_back_as_published() {
        let file = scratch();
        let writer = Shared::create(file.as_fd(), 1, 40).unwrap();
        let reader = Shared::attach(file.as_fd()).unwrap();
        assert_eq!(reader.snapshot().unwrap(), (0, vec![]));
        for (epoch, size) in (1..).zip((0..=40).chain((0..40).rev())) {
            let bytes: Vec<u8> = (0..size).map(|n| n ^ epoch as u8).collect();
            assert_eq!(writer.publish(&bytes).unwrap(), epoch);
            assert_eq!(reader.epoch(), epoch);
            assert_eq!(reader.snapshot().unwrap(), (epoch, bytes));
        }
        assert!(writer.publish(&[0; 41]).unwrap_err().to_string().contains("41 bytes"));
        assert_eq!(reader.epoch(), 81);
    }

    #[test]
    fn a_publisher_killed_half_way_changes_nothing() {
        let file = scratch();
        let killed = Shared::create(file.as_fd(), 1, 64).unwrap();
        killed.publish(b"in force").unwrap();
        let spare = killed.snapshots[0];
        killed
            .mapping
            .words(spare, 9)
            .iter()
            .for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        let heir = Shared::attach(file.as_fd()).unwrap();
        assert_eq!(heir.snapshot().unwrap(), (1, b"in force".to_vec()));
        assert_eq!(heir.publish(b"next").unwrap(), 2);
        assert_eq!(killed.snapshot().unwrap(), (2, b"next".to_vec()));
    }

    #[test]
    fn each_slot_counts_for_itself() {
        let file = scratch();
        let shared = Shared::create(file.as_fd(), 3, 1).unwrap();
        for slot in 0..3 {
            shared.beat(slot, 100 + slot as u64).unwrap();
            (0..COUNTERS).for_each(|counter| shared.add(slot, counter, (slot * COUNTERS + counter) as i64).unwrap());
        }
        let other = Shared::attach(file.as_fd()).unwrap();
        for slot in 0..3 {
            assert_eq!(other.last_beat(slot).unwrap(), 100 + slot as u64);
            (0..COUNTERS).for_each(|n| assert_eq!(other.counter(slot, n).unwrap(), (slot * COUNTERS + n) as u64));
        }
        other.add(1, 0, -(COUNTERS as i64) - 1).unwrap();
        assert_eq!(shared.counter(1, 0).unwrap(), u64::MAX);
        assert!(
            shared.beat(3, 0).is_err() && shared.counter(0, COUNTERS).is_err() && shared.add(0, COUNTERS, 1).is_err()
        );
        assert_eq!(shared.snapshot().unwrap(), (0, vec![])); // the blocks do not reach into the snapshots
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        let cases = [
            (WORKER_SLOTS_WORD, 2000),
            (WORKER_SLOTS_WORD, u64::MAX),
            (SNAPSHOT_CAPACITY_WORD, 100_000),
        ];
        for (word, value) in cases
            .into_iter()
            .chain([(EPOCH_OFFSET_WORD, 1 << 40), (BLOCKS_OFFSET_WORD, 4097)])
        {
            let file = scratch();
            let shared = Shared::create(file.as_fd(), 3, 1).unwrap();
            shared.mapping.word(word).store(value, Ordering::Relaxed);
            assert!(
                matches!(Shared::attach(file.as_fd()), Err(Error::Layout(_))),
                "{word} {value}"
            );
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (slots, capacity) in [(0, 1), (WORKER_SLOTS_MAX + 1, 1), (1, 0), (1, SNAPSHOT_MAX + 1)] {
            assert!(matches!(
                Shared::create(scratch().as_fd(), slots, capacity),
                Err(Error::Argument(_))
            ));
        }
    }
}

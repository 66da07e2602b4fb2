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

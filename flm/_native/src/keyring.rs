//! The keyring: a table of keys in a mapped file, written by one process and read by many.
//!
//! It does not know what a scope is, nor labels or a database: it says whose key was presented, if it is valid, and what
//! was put beside it.
//!
//! Strategy. A hash table in two halves, of buckets of four rooms. An id has one bucket in each half, and its record may be in
//! any of the eight rooms. A look-up reads all of them, every cache line, and picks the record without a branch: which
//! memory is read depends on the hash of the id alone, so neither the way through the code nor what happens to be in the
//! caches says whether there is such a key. (A chain of any length, or an index that leads to a record, says it: with
//! 10,000 keys one of two tries was told apart in 55 of 100 cases.) Then a check costs one HMAC once the checksum is right,
//! and compares in constant time. The hash is keyed with a seed of the file's own: nobody can choose ids that share buckets.
//!
//! Each room is a latch (`latch.rs`): a version and two copies of a record. Readers take no lock and never wait, and a
//! writer killed at any instruction leaves every room whole. A new key goes into the emptier of its buckets; if both are
//! full, which with half of the rooms in use is rare, a key in them moves to its other bucket: copied there first, then the
//! count of moves raised, then its old room overwritten; a reader during whose look the count changed looks again
//! (`moves.rs`). A writer killed between copy and overwriting leaves one key twice, alike; `open_writer` mends that.
//!
//! Layout: header (magic, layout version, length; capacity, buckets of a half, offset of the table, seed), then the rooms.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Result};
use crate::keyformat::{self, Hasher, Id};
use crate::latch;
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};
use crate::moves;
use crate::record::{id_of, is_of, pack, split, unpack, Record, Words, NONE, RECORD_WORDS};
use crate::siphash::siphash;

/// Most keys a table may be made for: 2^20, a file of 384 MiB.
pub const CAPACITY_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"flm-keys";
const CAPACITY_WORD: usize = FIRST_OWN_WORD;
const HALF_WORD: usize = FIRST_OWN_WORD + 1;
const TABLE_OFFSET_WORD: usize = FIRST_OWN_WORD + 2;
const SEED_WORD: usize = FIRST_OWN_WORD + 3;
/// How many keys were ever moved to another room. In a cache line of its own.
const MOVES_WORD: usize = 2 * FIRST_OWN_WORD;

/// Words of a room: the version, then the copies at 1 and at 11; 192 bytes, three cache lines.
const ROOM_WORDS: usize = 24;
const VERSION: usize = 0;
const COPY_AT: [usize; 2] = [1, 11];
/// The first word of each cache line of a room.
const LINES: [usize; 3] = [0, 8, 16];
/// Rooms of a bucket.
const BUCKET: usize = 4;
/// Fewest buckets of a half: in a table of few, all of its keys might meet in two.
const HALF_MIN: usize = 16;

/// How often a reader looks at one room, or for one key, again because a writer changed it under its eyes. One further
/// look is rare already; the bound makes sure that a reader ends. A key not found by then is not valid.
const ATTEMPTS: usize = 64;

/// The table, as writer or as reader.
pub struct Keyring {
    mapping: Mapping,
    /// Buckets of a half.
    half: usize,
    capacity: usize,
    seed: [u64; 2],
    /// Keys in the table, known to the writer only. Its lock keeps threads of the writing process apart.
    count: Mutex<usize>,
    hasher: Option<Hasher>,
}

impl Keyring {
    /// Makes a table for up to `capacity` keys in the empty file behind `fd`, as its writer.
    pub fn create(fd: BorrowedFd<'_>, capacity: usize) -> Result<Keyring> {
        if !(1..=CAPACITY_MAX).contains(&capacity) {
            return Err(Error::Argument("the capacity must be from 1 to 1048576 keys"));
        }
        let mut seed = [[0; WORD]; 2];
        for half in &mut seed {
            getrandom::fill(half).map_err(|e| Error::Io("draw the seed of the keyring", e.into()))?;
        }
        let [first, second] = seed.map(u64::from_le_bytes);
        let half = half_for(capacity);
        let mapping = Mapping::create(fd, length(half))?;
        mapping.reserve(0, length(half))?;
        let own = [capacity as u64, half as u64, HEADER as u64, first, second];
        for (number, value) in own.into_iter().enumerate() {
            mapping.word(CAPACITY_WORD + number).store(value, Ordering::Relaxed);
        }
        mapping.seal(MAGIC);
        Keyring::over(mapping, None)
    }

    /// Maps an existing table read-only, to check keys against it under `pepper`.
    pub fn attach(fd: BorrowedFd<'_>, pepper: &[u8]) -> Result<Keyring> {
        let hasher = Hasher::new(pepper)?;
        Keyring::over(Mapping::open(fd, MAGIC, false)?, Some(hasher))
    }

    /// Takes an existing table over as its writer, after the former one ended, however it ended.
    pub fn open_writer(fd: BorrowedFd<'_>) -> Result<Keyring> {
        let keyring = Keyring::over(Mapping::open(fd, MAGIC, true)?, None)?;
        keyring.mend();
        *keyring.lock() = keyring.ids().len();
        Ok(keyring)
    }

    fn over(mapping: Mapping, hasher: Option<Hasher>) -> Result<Keyring> {
        let own = |word: usize| mapping.word(word).load(Ordering::Relaxed);
        let capacity = usize::try_from(own(CAPACITY_WORD)).unwrap_or(usize::MAX);
        if !(1..=CAPACITY_MAX).contains(&capacity)
            || own(HALF_WORD) != half_for(capacity) as u64
            || own(TABLE_OFFSET_WORD) != HEADER as u64
            || mapping.len() != length(half_for(capacity))
        {
            return Err(Error::Layout(
                "the keyring's header contradicts itself: damaged, a new file is needed".into(),
            ));
        }
        let seed = [own(SEED_WORD), own(SEED_WORD + 1)];
        Ok(Keyring {
            mapping,
            half: half_for(capacity),
            capacity,
            seed,
            count: Mutex::new(0),
            hasher,
        })
    }

    /// Adds a key or replaces what is known of it. Readers see the old record or the new one, nothing between.
    pub fn upsert(&self, record: &Record) -> Result<()> {
        let mut count = self.write_access()?;
        if let Some(room) = self.find(&record.id) {
            self.store(room, &pack(record));
            return Ok(());
        }
        let room = (*count < self.capacity).then(|| self.make_room(&record.id)).flatten();
        let room = room.ok_or_else(|| {
            Error::Refused(format!(
                "the keyring is full: it holds {count} keys and was made for {}",
                self.capacity
            ))
        })?;
        self.store(room, &pack(record));
        *count += 1;
        Ok(())
    }

    /// Takes a key out of the table. False if it was not there.
    pub fn remove(&self, id: &Id) -> Result<bool> {
        let mut count = self.write_access()?;
        let Some(room) = self.find(id) else {
            return Ok(false);
        };
        self.store(room, &NONE);
        *count -= 1;
        Ok(true)
    }

    /// The ids of all keys in the table, revoked and expired ones too, sorted.
    pub fn ids(&self) -> Vec<Id> {
        let look = || self.all_rooms().filter_map(|room| id_of(&self.load(room))).collect();
        let mut ids: Vec<Id> = moves::settled(self.mapping.word(MOVES_WORD), ATTEMPTS, look);
        ids.sort_unstable();
        ids.dedup(); // a key that was being moved
        ids
    }

    /// Whose key was presented, that key's slot and its scopes. `None` for every cause why it is not valid: malformed, unknown,
    /// wrong secret, revoked, expired at `now_ms`. An error only if this object has no pepper.
    pub fn verify(&self, presented: &[u8], now_ms: u64) -> Result<Option<(Id, u32, u32)>> {
        let Some(hasher) = &self.hasher else {
            return Err(Error::Refused(
                "keys are checked by a keyring that was attached with a pepper, not by the writer's".into(),
            ));
        };
        let Some(key) = keyformat::parse(presented) else {
            return Ok(None);
        };
        // An unknown id has the words of no record, which are a record too: one path for every cause, to the same cost.
        let record = unpack(&self.look_up(&key.id));
        let same = hasher.digest(&record.salt, &key).ct_eq(&record.digest);
        let expired = (record.expires_at_ms != 0) & (now_ms >= record.expires_at_ms);
        let valid = std::hint::black_box(bool::from(same) & !record.revoked & !expired);
        Ok(valid.then_some((record.id, record.slot, record.scopes)))
    }

    /// What the table knows of a key.
    pub fn record(&self, id: &Id) -> Option<Record> {
        let words = self.look_up(id);
        id_of(&words).map(|_| unpack(&words))
    }

    /// Whether the table has this key and it is not revoked.
    pub fn holds(&self, id: &Id) -> bool {
        self.record(id).is_some_and(|record| !record.revoked)
    }

    /// The words of a key's record; of none if it is not there. It reads the same and does the same in both cases.
    fn look_up(&self, id: &Id) -> Words {
        let (low, high) = split(id);
        let buckets = self.buckets(id);
        moves::settled(self.mapping.word(MOVES_WORD), ATTEMPTS, || {
            let mut found = NONE;
            for room in buckets.into_iter().flat_map(rooms) {
                let words = self.load(room);
                let same = is_of(&words, low, high);
                for (word, its) in found.iter_mut().zip(&words) {
                    word.conditional_assign(its, same);
                }
            }
            found
        })
    }

    /// Keys in the table. Counted by walking it, when this is a reader.
    pub fn len(&self) -> usize {
        if self.mapping.writable() {
            *self.lock()
        } else {
            self.ids().len()
        }
    }

    /// Whether no key is in the table.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write_access(&self) -> Result<MutexGuard<'_, usize>> {
        if !self.mapping.writable() {
            return Err(Error::Refused(
                "this keyring was attached for reading: only its writer changes it".into(),
            ));
        }
        Ok(self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A thread that panicked with the lock held left the count right: it changes with nothing that can panic between.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key's room. For the writer.
    fn find(&self, id: &Id) -> Option<usize> {
        let mut rooms = self.buckets(id).into_iter().flat_map(rooms);
        rooms.find(|room| id_of(&self.load(*room)).as_ref() == Some(id))
    }

    /// A room a new key may have: a free one, else that of a key which moves to its other bucket. `None` if none of them can,
    /// which up to the capacity does not happen: eight full buckets more would have to meet.
    fn make_room(&self, id: &Id) -> Option<usize> {
        self.free_room(self.buckets(id)).or_else(|| {
            let moved = self
                .buckets(id)
                .into_iter()
                .flat_map(rooms)
                .find(|room| self.relocate(*room));
            moved.inspect(|_| moves::count(self.mapping.word(MOVES_WORD)))
        })
    }

    /// Copies a room's key into its other bucket, if that is not full.
    fn relocate(&self, room: usize) -> bool {
        let words = self.load(room);
        let to = id_of(&words).and_then(|id| self.free_room(self.buckets(&id)));
        if let Some(to) = to {
            self.store(to, &words);
        }
        to.is_some()
    }

    /// A free room in the emptier of two buckets.
    fn free_room(&self, buckets: [usize; 2]) -> Option<usize> {
        let free = |bucket| rooms(bucket).filter(|room| id_of(&self.load(*room)).is_none());
        let emptier = buckets.into_iter().max_by_key(|bucket| free(*bucket).count())?;
        free(emptier).next()
    }

    /// Finishes the move during which a former writer was killed: of a key that is there twice, one goes.
    fn mend(&self) {
        for room in self.all_rooms() {
            let twice = id_of(&self.load(room)).is_some_and(|id| self.find(&id) != Some(room));
            if twice {
                moves::count(self.mapping.word(MOVES_WORD)); // the former writer may not have come to it
                self.store(room, &NONE);
            }
        }
    }

    fn load(&self, room: usize) -> Words {
        let room = self.room(room);
        // All cache lines of the room are asked for: which of the copies is in force must not show in the time.
        std::hint::black_box(LINES.map(|line| room[line].load(Ordering::Relaxed)));
        let read = latch::read(&room[VERSION], ATTEMPTS, |copy| {
            let words = &room[COPY_AT[copy]..][..RECORD_WORDS];
            std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
        });
        read.map_or(NONE, |(_, words)| words)
    }

    fn store(&self, room: usize, words: &Words) {
        let room = self.room(room);
        latch::write(&room[VERSION], |copy| {
            for (place, word) in room[COPY_AT[copy]..].iter().zip(words) {
                place.store(*word, Ordering::Relaxed);
            }
        });
    }

    fn room(&self, room: usize) -> &[AtomicU64] {
        self.mapping.words(HEADER / WORD + room * ROOM_WORDS, ROOM_WORDS)
    }

    fn all_rooms(&self) -> std::ops::Range<usize> {
        0..2 * self.half * BUCKET
    }

    /// The buckets of an id, one in each half.
    fn buckets(&self, id: &Id) -> [usize; 2] {
        let (low, high) = split(id);
        let hash = siphash(self.seed, siphash(self.seed, low) ^ u64::from(high));
        let [left, right] = [hash, hash >> 32].map(|bits| bits as usize & (self.half - 1));
        [left, self.half + right]
    }
}

/// The rooms of a bucket.
fn rooms(bucket: usize) -> std::ops::Range<usize> {
    bucket * BUCKET..(bucket + 1) * BUCKET
}

/// Buckets of a half, for so many keys: a full table has half of its rooms in use, or fewer.
fn half_for(capacity: usize) -> usize {
    capacity.div_ceil(BUCKET).next_power_of_two().max(HALF_MIN)
}

/// Bytes of a file with so many buckets in a half.
fn length(half: usize) -> usize {
    HEADER + 2 * half * BUCKET * ROOM_WORDS * WORD
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;

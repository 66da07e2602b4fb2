//! The keyring: a table of keys in a mapped file, written by one process and read by many.
//!
//! It does not know what a scope is, nor labels or a database: it says whose key was presented, if it is valid, and what
//! was put beside it.
//!
//! Strategy. An open-addressing hash table with linear probing, of at least twice as many entries as keys it may hold.
//! Each entry is a latch (`latch.rs`): a version and two copies of a record. Readers take no lock and never wait, and a
//! writer killed at any instruction leaves every entry whole. Removing a key closes the gap in its chain by moving later
//! keys down (tombstones would pile up until an unknown id costs a walk over the whole table). A key is copied to its new
//! entry, then the count of moves is raised, then the old entry is overwritten; a reader that found nothing while the count
//! changed looks again. A writer killed between copy and overwriting leaves one key twice, alike; `open_writer` mends that.
//!
//! A check costs one HMAC once the checksum is right, whether the id is known or not, and compares in constant time.
//! Layout: header (magic, layout version, length; capacity, entries, offset of the table), then the entries.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;

use crate::error::{Error, Result};
use crate::keyformat::{self, Hasher, Id};
use crate::latch;
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};
use crate::record::{join, pack, split, unpack, Record, EMPTY, RECORD_WORDS};

/// Most keys a table may be made for: 2^20, a file of 512 MiB.
pub const CAPACITY_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"flm-keys";
const CAPACITY_WORD: usize = FIRST_OWN_WORD;
const ENTRIES_WORD: usize = FIRST_OWN_WORD + 1;
const TABLE_OFFSET_WORD: usize = FIRST_OWN_WORD + 2;
/// How many keys were ever moved to another entry. In a cache line of its own.
const MOVES_WORD: usize = 2 * FIRST_OWN_WORD;

/// Words of an entry: the version, then a record at 8 and one at 20; 256 bytes, four cache lines.
const ENTRY_WORDS: usize = 32;
const VERSION: usize = 0;
const RECORD_AT: [usize; 2] = [8, 20];
/// The first word of each cache line of an entry.
const LINES: [usize; 4] = [0, 8, 16, 24];

/// How often a reader looks at one entry, or at one chain, again because a writer changed it under its eyes. One further
/// look is rare already; the bound makes sure that a reader ends. A key not found by then is not valid.
const ATTEMPTS: usize = 64;

/// Where a key is, or where it may be put.
enum Place {
    At(usize),
    Free(usize),
}

/// The table, as writer or as reader.
pub struct Keyring {
    mapping: Mapping,
    table: usize,
    entries: usize,
    capacity: usize,
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
        let entries = (capacity * 2).next_power_of_two();
        let length = HEADER + entries * ENTRY_WORDS * WORD;
        let mapping = Mapping::create(fd, length)?;
        mapping.reserve(0, length)?;
        mapping.word(CAPACITY_WORD).store(capacity as u64, Ordering::Relaxed);
        mapping.word(ENTRIES_WORD).store(entries as u64, Ordering::Relaxed);
        mapping.word(TABLE_OFFSET_WORD).store(HEADER as u64, Ordering::Relaxed);
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
        keyring.mend()?;
        *keyring.lock() = keyring.ids().len();
        Ok(keyring)
    }

    fn over(mapping: Mapping, hasher: Option<Hasher>) -> Result<Keyring> {
        let own = |word: usize| usize::try_from(mapping.word(word).load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let (capacity, entries, table) = (own(CAPACITY_WORD), own(ENTRIES_WORD), own(TABLE_OFFSET_WORD));
        let end = entries
            .checked_mul(ENTRY_WORDS * WORD)
            .and_then(|bytes| bytes.checked_add(table));
        if !entries.is_power_of_two()
            || capacity >= entries
            || table % WORD != 0
            || end.is_none_or(|end| end > mapping.len())
        {
            return Err(Error::Layout(
                "the keyring's header contradicts itself: damaged, a new file is needed".into(),
            ));
        }
        Ok(Keyring {
            mapping,
            table: table / WORD,
            entries,
            capacity,
            count: Mutex::new(0),
            hasher,
        })
    }

    /// Adds a key or replaces what is known of it. Readers see the old record or the new one, nothing between.
    pub fn upsert(&self, record: &Record) -> Result<()> {
        let mut count = self.write_access()?;
        let at = match self.find(&record.id)? {
            Place::At(at) => at,
            Place::Free(at) if *count < self.capacity => {
                *count += 1;
                at
            }
            _ => {
                return Err(Error::Refused(format!(
                    "the keyring is full: it holds {count} keys and was made for {}",
                    self.capacity
                )))
            }
        };
        self.store(at, &pack(record));
        Ok(())
    }

    /// Takes a key out of the table. False if it was not there.
    pub fn remove(&self, id: &Id) -> Result<bool> {
        let mut count = self.write_access()?;
        let Place::At(at) = self.find(id)? else {
            return Ok(false);
        };
        *count -= 1;
        self.close_gap(at);
        Ok(true)
    }

    /// The ids of all keys in the table, revoked and expired ones too, sorted.
    pub fn ids(&self) -> Vec<Id> {
        let mut ids = Vec::new();
        for _ in 0..ATTEMPTS {
            let moves = self.moves();
            ids = (0..self.entries).filter_map(|at| self.id_at(at)).collect();
            if self.moves() == moves {
                break;
            }
        }
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
        // An unknown id ends at an empty entry, whose words are a record too: one path for every cause, to the same cost.
        let words = self.look_up(&key.id);
        let known = words[0] != EMPTY;
        let record = unpack(&words);
        let same = hasher.digest(&record.salt, &key).ct_eq(&record.digest);
        let expired = (record.expires_at_ms != 0) & (now_ms >= record.expires_at_ms);
        let valid = std::hint::black_box(bool::from(same) & known & !record.revoked & !expired);
        Ok(valid.then_some((record.id, record.slot, record.scopes)))
    }

    /// What the table knows of a key.
    pub fn record(&self, id: &Id) -> Option<Record> {
        let words = self.look_up(id);
        (words[0] != EMPTY).then(|| unpack(&words))
    }

    /// Whether the table has this key and it is not revoked.
    pub fn holds(&self, id: &Id) -> bool {
        self.record(id).is_some_and(|record| !record.revoked)
    }

    /// The words of a key's record; of an empty entry if it is not there.
    fn look_up(&self, id: &Id) -> [u64; RECORD_WORDS] {
        let (low, high) = split(id);
        for _ in 0..ATTEMPTS {
            let moves = self.moves();
            let words = self.walk(low, high);
            let settled = self.moves() == moves;
            if std::hint::black_box(settled | (words[0] != EMPTY)) {
                return words;
            }
        }
        [EMPTY; RECORD_WORDS]
    }

    /// One walk along the chain of an id. Whole records are copied, so that an empty entry costs what a key's costs.
    fn walk(&self, low: u64, high: u32) -> [u64; RECORD_WORDS] {
        let mut at = self.home(low, high);
        for _ in 0..self.entries {
            if let Some(words) = self.load(at, copy_words) {
                let same = (words[1] == low) & (words[2] as u32 == high);
                // One branch for both, whatever the compiler would rather have.
                if std::hint::black_box(same | (words[0] == EMPTY)) {
                    return words;
                }
            }
            at = self.after(at);
        }
        [EMPTY; RECORD_WORDS]
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

    /// The key's entry, else the empty one at the end of its chain. For the writer.
    fn find(&self, id: &Id) -> Result<Place> {
        let (low, high) = split(id);
        let mut at = self.home(low, high);
        for _ in 0..self.entries {
            match self.id_at(at) {
                Some(found) if found == *id => return Ok(Place::At(at)),
                Some(_) => at = self.after(at),
                None => return Ok(Place::Free(at)),
            }
        }
        Err(Error::Layout(
            "the keyring has no empty entry, which its writer never lets happen: damaged".into(),
        ))
    }

    /// Empties an entry so that no chain is broken: every later key of the chain that may stand nearer to its home moves
    /// into the gap, and leaves the next one. Each store is whole, so a reader sees the key at one place at least.
    fn close_gap(&self, mut gap: usize) {
        let mut at = gap;
        for _ in 0..self.entries {
            at = self.after(at);
            let Some(words) = self.load(at, copy_words).filter(|words| words[0] != EMPTY) else {
                break;
            };
            let home = self.home(words[1], words[2] as u32);
            let from_home = |entry: usize| entry.wrapping_sub(home) & (self.entries - 1);
            if from_home(gap) < from_home(at) {
                self.store(gap, &words);
                self.count_move();
                gap = at;
            }
        }
        self.store(gap, &[EMPTY; RECORD_WORDS]);
    }

    /// Finishes the removal during which a former writer was killed: of a key that is there twice, the later one goes.
    fn mend(&self) -> Result<()> {
        for at in 0..self.entries {
            let Some(id) = self.id_at(at) else { continue };
            if !matches!(self.find(&id)?, Place::At(first) if first == at) {
                self.count_move(); // the former writer may not have come to it
                self.close_gap(at);
                break; // one call is in the making at a time, and it leaves one key twice at most
            }
        }
        Ok(())
    }

    /// Raises the count of moves, after a key was copied and before its old entry is overwritten.
    fn count_move(&self) {
        // Release: whoever sees the raised count sees the copy.
        self.mapping.word(MOVES_WORD).fetch_add(1, Ordering::Release);
    }

    /// The count of moves. A reader that passed an entry before a key was copied into it, and came to the key's old entry
    /// after that was overwritten, sees the count raised: the fences pair with the release orderings of
    /// `count_move` and of the latch.
    fn moves(&self) -> u64 {
        fence(Ordering::Acquire);
        let moves = self.mapping.word(MOVES_WORD).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        moves
    }

    fn id_at(&self, at: usize) -> Option<Id> {
        let words = self.load(at, copy_words)?;
        (words[0] != EMPTY).then(|| join(words[1], words[2] as u32))
    }

    fn load<T>(&self, at: usize, look: impl Fn(&[AtomicU64]) -> T) -> Option<T> {
        let entry = self.entry(at);
        // All cache lines of the entry are asked for at once: which of the copies is in force must not show in the time.
        std::hint::black_box(LINES.map(|line| entry[line].load(Ordering::Relaxed)));
        latch::read(&entry[VERSION], ATTEMPTS, |copy| {
            look(&entry[RECORD_AT[copy]..][..RECORD_WORDS])
        })
        .map(|(_, value)| value)
    }

    fn store(&self, at: usize, words: &[u64; RECORD_WORDS]) {
        let entry = self.entry(at);
        latch::write(&entry[VERSION], |copy| {
            for (place, word) in entry[RECORD_AT[copy]..].iter().zip(words) {
                place.store(*word, Ordering::Relaxed);
            }
        });
    }

    fn entry(&self, at: usize) -> &[AtomicU64] {
        self.mapping.words(self.table + at * ENTRY_WORDS, ENTRY_WORDS)
    }

    fn home(&self, low: u64, high: u32) -> usize {
        // Two rounds of xor-shift and multiplication let every bit of the id reach the low bits. Not keyed: only ids that FLM
        // drew at random come into the table.
        let mut mixed = low ^ u64::from(high).rotate_left(32);
        for _ in 0..2 {
            mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        (mixed >> 32) as usize & (self.entries - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.entries - 1)
    }
}

fn copy_words(words: &[AtomicU64]) -> [u64; RECORD_WORDS] {
    std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;

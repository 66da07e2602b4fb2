//! The keyring: a table of keys in a mapped file, written by one process and read by many.
//!
//! It does not know scopes, labels or a database: it says whose key was presented, if it is valid, and no more.
//!
//! Strategy. An open-addressing hash table with linear probing, of twice as many entries as keys it may hold. Each entry
//! is a latch (`latch.rs`): a version and two copies of a record. Readers take no lock and never wait. A writer killed at
//! any instruction leaves every entry as it was before its last call, so taking a table over needs only a check and a
//! count. An entry in use is never moved, so a reader that walks a chain cannot miss a key that stays in the table. A removed
//! entry becomes a tombstone that a later key fills; tombstones at the end of a chain become empty again.
//!
//! A check costs one HMAC once the checksum is right, whether the id is known or not, and compares in constant time.
//! Layout: header (magic, layout version, length; capacity, entries, offset of the table), then the entries.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;

use crate::error::{Error, Result};
use crate::keyformat::{self, Hasher, Id, DIGEST_LEN, SALT_LEN};
use crate::latch;
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};

/// Most keys a table may be made for: 2^20, a file of 512 MiB.
pub const CAPACITY_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"flm-keys";
const CAPACITY_WORD: usize = FIRST_OWN_WORD;
const ENTRIES_WORD: usize = FIRST_OWN_WORD + 1;
const TABLE_OFFSET_WORD: usize = FIRST_OWN_WORD + 2;

/// Words of an entry: the version, then a record at 8 and one at 20; 256 bytes, four cache lines.
const ENTRY_WORDS: usize = 32;
const VERSION: usize = 0;
const RECORD_AT: [usize; 2] = [8, 20];
const RECORD_WORDS: usize = 12;

/// How often a reader looks at one entry again because a writer changed it twice under its eyes. One further look is
/// next to impossible already; the bound only makes sure that a reader ends.
const ATTEMPTS: usize = 64;

const EMPTY: u64 = 0;
const LIVE: u64 = 1;
const REVOKED: u64 = 2;
const TOMBSTONE: u64 = 3;

/// What the table knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The public part of the key.
    pub id: Id,
    /// The caller's dense number of the key.
    pub slot: u32,
    /// Random bytes hashed before the secret.
    pub salt: [u8; SALT_LEN],
    /// HMAC-SHA256(pepper, salt || secret).
    pub digest: [u8; DIGEST_LEN],
    /// Unix milliseconds from which on the key is no longer valid; 0: never.
    pub expires_at_ms: u64,
    /// A revoked key is known and not valid.
    pub revoked: bool,
}

enum State {
    Empty,
    Tombstone,
    Occupied(Id),
}

/// Where a key is, or where it may be put.
enum Place {
    At(usize),
    Free(usize),
    Nowhere,
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
        let at = match self.find(&record.id) {
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
        let Place::At(mut at) = self.find(id) else {
            return Ok(false);
        };
        *count -= 1;
        self.store(at, &tagged(TOMBSTONE));
        // No chain leads past a tombstone before an empty entry: from the end of the chain backwards they become empty.
        while matches!(self.state(at), State::Tombstone) && matches!(self.state(self.after(at)), State::Empty) {
            self.store(at, &tagged(EMPTY));
            at = at.wrapping_sub(1) & (self.entries - 1);
        }
        Ok(true)
    }

    /// The ids of all keys in the table, revoked and expired ones too, in no order.
    pub fn ids(&self) -> Vec<Id> {
        let occupied = |at| match self.state(at) {
            State::Occupied(id) => Some(id),
            _ => None,
        };
        (0..self.entries).filter_map(occupied).collect()
    }

    /// Whose key was presented, and that key's slot. `None` for every cause why it is not valid: malformed, unknown,
    /// wrong secret, revoked, expired at `now_ms`. An error only if this object has no pepper.
    pub fn verify(&self, presented: &[u8], now_ms: u64) -> Result<Option<(Id, u32)>> {
        let Some(hasher) = &self.hasher else {
            return Err(Error::Refused(
                "keys are checked by a keyring that was attached with a pepper, not by the writer's".into(),
            ));
        };
        let Some(key) = keyformat::parse(presented) else {
            return Ok(None);
        };
        let found = self.record(&key.id);
        let known = found.is_some();
        let record = found.unwrap_or(DUMMY);
        let same = hasher.digest(&record.salt, &key).ct_eq(&record.digest);
        let expired = record.expires_at_ms != 0 && now_ms >= record.expires_at_ms;
        let valid = bool::from(same) & known & !record.revoked & !expired;
        Ok(valid.then_some((record.id, record.slot)))
    }

    /// What the table knows of a key.
    pub fn record(&self, id: &Id) -> Option<Record> {
        let (low, high) = split(id);
        let mut at = self.home(low, high);
        for _ in 0..self.entries {
            let entry = self.entry(at);
            let look = |copy: usize| {
                let words = &entry[RECORD_AT[copy]..][..RECORD_WORDS];
                let tag = words[0].load(Ordering::Relaxed);
                let same = words[1].load(Ordering::Relaxed) == low && words[2].load(Ordering::Relaxed) as u32 == high;
                (
                    tag,
                    (same && holds_key(tag)).then(|| std::array::from_fn(|i| words[i].load(Ordering::Relaxed))),
                )
            };
            match latch::read(&entry[VERSION], ATTEMPTS, look) {
                Some((_, (EMPTY, _))) => return None,
                Some((_, (_, Some(words)))) => return Some(unpack(&words)),
                _ => at = self.after(at),
            }
        }
        None
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

    /// The key's entry, else the first entry of its chain that may take it. For the writer.
    fn find(&self, id: &Id) -> Place {
        let (low, high) = split(id);
        let mut at = self.home(low, high);
        let mut free = None;
        for _ in 0..self.entries {
            match self.state(at) {
                State::Occupied(found) if found == *id => return Place::At(at),
                State::Occupied(_) => (),
                State::Tombstone => free = free.or(Some(at)),
                State::Empty => return Place::Free(free.unwrap_or(at)),
            }
            at = self.after(at);
        }
        free.map_or(Place::Nowhere, Place::Free)
    }

    fn state(&self, at: usize) -> State {
        let entry = self.entry(at);
        let look =
            |copy: usize| std::array::from_fn::<u64, 3, _>(|i| entry[RECORD_AT[copy] + i].load(Ordering::Relaxed));
        match latch::read(&entry[VERSION], ATTEMPTS, look) {
            Some((_, [EMPTY, ..])) => State::Empty,
            Some((_, [tag, low, high])) if holds_key(tag) => State::Occupied(join(low, high as u32)),
            _ => State::Tombstone,
        }
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
        // Ids are random, and only FLM's own come into the table: the multiplication spreads base62 over all bits.
        let mixed = (low ^ u64::from(high).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 32) as usize & (self.entries - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.entries - 1)
    }
}

/// Stands in for an unknown id, so that its check takes as long as any other.
const DUMMY: Record = Record {
    id: [0; 12],
    slot: 0,
    salt: [0; SALT_LEN],
    digest: [0; DIGEST_LEN],
    expires_at_ms: 0,
    revoked: true,
};

fn holds_key(tag: u64) -> bool {
    tag == LIVE || tag == REVOKED
}

fn split(id: &Id) -> (u64, u32) {
    let (low, high) = id.split_at(8);
    (
        u64::from_le_bytes(low.try_into().unwrap_or_default()),
        u32::from_le_bytes(high.try_into().unwrap_or_default()),
    )
}

fn join(low: u64, high: u32) -> Id {
    let mut id = [0; 12];
    id[..8].copy_from_slice(&low.to_le_bytes());
    id[8..].copy_from_slice(&high.to_le_bytes());
    id
}

fn tagged(tag: u64) -> [u64; RECORD_WORDS] {
    let mut words = [0; RECORD_WORDS];
    words[0] = tag;
    words
}

/// Words of a record: tag, id (8 + 4 bytes), slot, expiry, salt (2), digest (4), one spare.
fn pack(record: &Record) -> [u64; RECORD_WORDS] {
    let (low, high) = split(&record.id);
    let mut words = tagged(if record.revoked { REVOKED } else { LIVE });
    words[1..5].copy_from_slice(&[low, u64::from(high), u64::from(record.slot), record.expires_at_ms]);
    for (word, bytes) in words[5..11]
        .iter_mut()
        .zip(record.salt.chunks_exact(WORD).chain(record.digest.chunks_exact(WORD)))
    {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

fn unpack(words: &[u64; RECORD_WORDS]) -> Record {
    let mut record = Record {
        id: join(words[1], words[2] as u32),
        slot: words[3] as u32,
        expires_at_ms: words[4],
        revoked: words[0] != LIVE,
        ..DUMMY
    };
    for (bytes, word) in record
        .salt
        .chunks_exact_mut(WORD)
        .chain(record.digest.chunks_exact_mut(WORD))
        .zip(&words[5..11])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    record
}

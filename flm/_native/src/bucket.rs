//! The token buckets: a mapped file that the supervisor makes and all workers charge.
//!
//! It knows places: one global bucket, a bucket for each key's slot, and for client addresses and for failed authentication
//! a table each. It does not know what a request, an address or a policy is (an owner is a number), and reads no clock. How a
//! bucket is charged is in `charge.rs`, the arithmetic in `gcra.rs`.
//!
//! Strategy. Times are of the monotonic clock, so they mean something until the next boot: the file bears the boot's id, and
//! another boot's file is refused. Key buckets are a plain array. An address has one place in its table, by a keyed hash:
//! who does not know the seed cannot choose addresses that meet there. It has one only, because with two it could be in both.
//! Who finds the place taken is charged to an overflow bucket, likewise by the hash: a full table means buckets shared with
//! strangers, never none. All room on disk is taken at the start: a store to a page of a sparse file on a full disk would be
//! a SIGBUS. Neighbouring slots lie in different cache lines, as the first keys are the busiest: two workers that serve
//! two keys do not pass one line to and fro.
//! Layout: header (magic, layout version, length; boot id, seed, sizes, offsets of the sections), the global bucket, key
//! buckets, address tables, overflow buckets of each table (both of pairs: time, owner).

use std::collections::BinaryHeap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use portable_atomic::AtomicU128;

use crate::charge::{self, Slot};
use crate::error::{Error, Result};
use crate::gcra::{self, Limit, Outcome};
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};
use crate::siphash::siphash;

/// What kind of bucket: the one of all requests, a key's, an address's, and those that addresses share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bucket of all requests.
    Global,
    /// A key's; its number is the key's slot.
    Key,
    /// An address's; its number is the owner.
    Address(Table),
    /// Shared by addresses whose place in the table was taken; its number is the owner charged last.
    Overflow(Table),
}

/// What is counted by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Requests.
    Requests,
    /// Requests whose key was bad.
    Failures,
}

/// Bytes of a boot id.
pub const BOOT_ID_LEN: usize = 16;

const MAGIC: [u8; 8] = *b"flm-bkts";
const BOOT_WORD: usize = FIRST_OWN_WORD;
const SEED_WORD: usize = FIRST_OWN_WORD + 2;
const SIZES_WORD: usize = FIRST_OWN_WORD + 4;
const OFFSETS_WORD: usize = FIRST_OWN_WORD + 7;

const LINE_WORDS: usize = 8;
/// Tables by address, in the order of `Table`.
const TABLES: usize = 2;
/// Least and most buckets of a section: 8 fill a cache line; 2^24 are 128 MiB of keys.
const SIZE_MIN: usize = LINE_WORDS;
const SIZE_MAX: usize = 1 << 24;

/// How many buckets of each kind a file has. Powers of two from 8 to 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Key buckets: slots 0 to `keys` - 1.
    pub keys: usize,
    /// Slots of each address table.
    pub addresses: usize,
    /// Overflow buckets of each address table.
    pub overflow: usize,
}

/// Word offsets of the sections, and the end, in the file's order.
struct Sections {
    global: usize,
    keys: usize,
    addresses: usize,
    overflow: usize,
    end: usize,
}

impl Sizes {
    fn checked(self) -> Option<Sizes> {
        let fits = |size: usize| size.is_power_of_two() && (SIZE_MIN..=SIZE_MAX).contains(&size);
        (fits(self.keys) && fits(self.addresses) && fits(self.overflow)).then_some(self)
    }

    /// Where this layout version puts the sections. Every size is a multiple of a cache line.
    fn sections(self) -> Sections {
        let global = HEADER / WORD;
        let keys = global + LINE_WORDS;
        let addresses = keys + self.keys;
        let overflow = addresses + TABLES * 2 * self.addresses;
        Sections {
            global,
            keys,
            addresses,
            overflow,
            end: overflow + TABLES * 2 * self.overflow,
        }
    }
}

/// The buckets, for whoever charges them.
pub struct Buckets {
    mapping: Mapping,
    sizes: Sizes,
    at: Sections,
    seed: [u64; 2],
}

/// A bucket that is not full: its kind, its number among those, and when it will be full.
pub type Live = (Kind, u64, u64);

impl Buckets {
    /// Lays out full buckets in the empty file behind `fd`, for the boot with this id.
    pub fn create(fd: BorrowedFd<'_>, boot_id: [u8; BOOT_ID_LEN], sizes: Sizes) -> Result<Buckets> {
        let sizes = sizes.checked().ok_or(Error::Argument(
            "the numbers of buckets must be powers of two from 8 to 16777216",
        ))?;
        lock_free(AtomicU128::is_lock_free())?;
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|e| Error::Io("draw the seed of the buckets", e.into()))?;
        let at = sizes.sections();
        let length = at.end * WORD;
        let mapping = Mapping::create(fd, length)?;
        mapping.reserve(0, length)?;
        let ids = [halves(boot_id), halves(seed)].concat();
        let numbers = [sizes.keys, sizes.addresses, sizes.overflow];
        let offsets = [at.global, at.keys, at.addresses, at.overflow].map(|word| word * WORD);
        let own = ids
            .into_iter()
            .chain(numbers.into_iter().chain(offsets).map(|n| n as u64));
        for (index, value) in own.enumerate() {
            mapping.word(FIRST_OWN_WORD + index).store(value, Ordering::Relaxed);
        }
        mapping.seal(MAGIC);
        Buckets::over(mapping, boot_id)
    }

    /// Maps buckets that were laid out in this boot.
    pub fn attach(fd: BorrowedFd<'_>, boot_id: [u8; BOOT_ID_LEN]) -> Result<Buckets> {
        lock_free(AtomicU128::is_lock_free())?;
        Buckets::over(Mapping::open(fd, MAGIC, true)?, boot_id)
    }

    fn over(mapping: Mapping, boot_id: [u8; BOOT_ID_LEN]) -> Result<Buckets> {
        let own = |word: usize| mapping.word(word).load(Ordering::Relaxed);
        if [own(BOOT_WORD), own(BOOT_WORD + 1)] != halves(boot_id) {
            return Err(Error::Refused(
                "the buckets are of another boot, whose clock says nothing now: a new file is needed".into(),
            ));
        }
        let size = |index: usize| usize::try_from(own(SIZES_WORD + index)).unwrap_or(usize::MAX);
        let sizes = Sizes {
            keys: size(0),
            addresses: size(1),
            overflow: size(2),
        };
        let at = sizes.checked().map(Sizes::sections).filter(|at| {
            let offsets = [at.global, at.keys, at.addresses, at.overflow];
            let as_written = |(index, word): (usize, &usize)| own(OFFSETS_WORD + index) == (word * WORD) as u64;
            at.end * WORD == mapping.len() && offsets.iter().enumerate().all(as_written)
        });
        let at = at.ok_or_else(|| {
            Error::Layout("the buckets' header contradicts itself: damaged, a new file is needed".into())
        })?;
        let seed = [own(SEED_WORD), own(SEED_WORD + 1)];
        Ok(Buckets {
            mapping,
            sizes,
            at,
            seed,
        })
    }

    /// Takes a token from the bucket of all requests.
    pub fn take_global(&self, limit: Limit, now_ns: u64) -> Outcome {
        charge::take(self.global(), limit, now_ns)
    }

    /// Takes a token from the bucket of the key in `slot`.
    pub fn take_key(&self, slot: usize, limit: Limit, now_ns: u64) -> Result<Outcome> {
        Ok(charge::take(self.key(slot)?, limit, now_ns))
    }

    /// Takes a token from an owner's bucket, and says whether that was an overflow bucket.
    pub fn take_address(&self, table: Table, owner: u64, limit: Limit, now_ns: u64) -> (Outcome, bool) {
        let (slot, overflow) = self.places(table, owner);
        charge::take_owned(slot, overflow, owner, limit, now_ns)
    }

    /// Gives a token back that was taken at `taken_ns` and not used.
    pub fn give_back_global(&self, interval_ns: u64, taken_ns: u64, now_ns: u64) {
        charge::give_back(self.global(), gcra::refund(interval_ns, taken_ns, now_ns));
    }

    /// Gives a token back to the bucket of the key in `slot`.
    pub fn give_back_key(&self, slot: usize, interval_ns: u64, taken_ns: u64, now_ns: u64) -> Result<()> {
        charge::give_back(self.key(slot)?, gcra::refund(interval_ns, taken_ns, now_ns));
        Ok(())
    }

    /// Gives a token back to an owner's bucket, or to its overflow bucket if it was taken there.
    pub fn give_back_address(&self, table: Table, owner: u64, shared: bool, interval_ns: u64, times: (u64, u64)) {
        let (slot, overflow) = self.places(table, owner);
        let refund = gcra::refund(interval_ns, times.0, times.1);
        if shared {
            charge::give_back_shared(overflow, refund);
        } else {
            charge::give_back_owned(slot, owner, refund);
        }
    }

    /// The buckets that are not full at `now_ns`: of each kind the `most` ones that take longest, those first. Looks at
    /// every bucket. One that changes meanwhile is given as it was before or after.
    pub fn live(&self, now_ns: u64, most: usize) -> Vec<Live> {
        let words = |start: usize, count: usize| {
            let words = self.mapping.words(start, count).iter().enumerate();
            words.map(|(place, word)| (place as u64, word.load(Ordering::Relaxed)))
        };
        let longest = |buckets: &mut dyn Iterator<Item = (u64, u64)>| longest(buckets, now_ns, most);
        let mut found = vec![(Kind::Global, longest(&mut words(self.at.global, 1)))];
        let mut keys = words(self.at.keys, self.sizes.keys).map(|(place, tat)| (self.slot_at(place as usize), tat));
        found.push((Kind::Key, longest(&mut keys)));
        for table in [Table::Requests, Table::Failures] {
            let (slots, overflow) = self.table(table);
            found.push((Kind::Address(table), longest(&mut slots.iter().map(Slot::load))));
            found.push((Kind::Overflow(table), longest(&mut overflow.iter().map(Slot::load))));
        }
        let rows = |(kind, buckets): (Kind, Vec<(u64, u64)>)| buckets.into_iter().map(move |(n, tat)| (kind, n, tat));
        found.into_iter().flat_map(rows).collect()
    }

    /// How many buckets of each kind there are.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn global(&self) -> &AtomicU64 {
        self.mapping.word(self.at.global)
    }

    fn key(&self, slot: usize) -> Result<&AtomicU64> {
        if slot >= self.sizes.keys {
            return Err(Error::Refused(format!(
                "there is no bucket for key slot {slot}: the buckets were made for {}",
                self.sizes.keys
            )));
        }
        Ok(self.mapping.word(self.at.keys + self.place_of(slot)))
    }

    /// Where a slot's bucket is among the key buckets: one slot in each cache line, then a second one in each.
    fn place_of(&self, slot: usize) -> usize {
        let lines = self.sizes.keys / LINE_WORDS;
        (slot % lines) * LINE_WORDS + slot / lines
    }

    /// The inverse of `place_of`.
    fn slot_at(&self, place: usize) -> u64 {
        let lines = self.sizes.keys / LINE_WORDS;
        (place / LINE_WORDS + place % LINE_WORDS * lines) as u64
    }

    /// The slots of a table, and its overflow buckets.
    fn table(&self, table: Table) -> (&[AtomicU128], &[AtomicU128]) {
        let section = |start: usize, size: usize| self.mapping.pairs(start + table as usize * 2 * size, size);
        (
            section(self.at.addresses, self.sizes.addresses),
            section(self.at.overflow, self.sizes.overflow),
        )
    }

    /// An owner's slot and its overflow bucket, by different halves of the hash: who meets in one need not meet in the other.
    fn places(&self, table: Table, owner: u64) -> (&AtomicU128, &AtomicU128) {
        let (slots, overflow) = self.table(table);
        let hash = siphash(self.seed, owner);
        (
            &slots[hash as usize & (slots.len() - 1)],
            &overflow[(hash >> 32) as usize & (overflow.len() - 1)],
        )
    }
}

/// Refuses to work where the processor has no 128-bit compare-and-swap: what stands in for it is a lock of one process.
fn lock_free(has_it: bool) -> Result<()> {
    if has_it {
        return Ok(());
    }
    Err(Error::Refused(
        "this processor cannot change 16 bytes in one step (x86-64 needs cmpxchg16b): limits cannot be shared by processes"
            .into(),
    ))
}

/// The `most` buckets that are full last, those first.
fn longest(buckets: &mut dyn Iterator<Item = (u64, u64)>, now_ns: u64, most: usize) -> Vec<(u64, u64)> {
    // A heap whose top is the one to drop next.
    let mut kept = BinaryHeap::new();
    for (number, tat) in buckets.filter(|(_, tat)| *tat > now_ns) {
        kept.push(std::cmp::Reverse((tat, number)));
        if kept.len() > most {
            kept.pop();
        }
    }
    let rows = kept.into_sorted_vec().into_iter();
    rows.map(|std::cmp::Reverse((tat, number))| (number, tat)).collect()
}

fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    [both as u64, (both >> 64) as u64]
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;

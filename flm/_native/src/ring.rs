//! The mapped file through which workers hand rows to the supervisor: a ring for each worker slot.
//!
//! It does not know what a row says: it is bytes. Strategy: each slot has one writer, the worker in it, and all have one
//! reader, the supervisor; how a row crosses is in `spsc.rs`. The file outlives both, so that rows of a killed worker, and
//! of a proxy whose supervisor was killed, are read by whoever comes next. A row that finds no room is counted and
//! forgotten: the writer never waits. Most slots are never used, so a ring's disk blocks are written only when its slot is
//! first given to a worker (`prepare`); until then its rows are counted as dropped, as on a disk that is full.
//! Layout: header (slots, words of a ring, offsets of the sections), a block of three cache lines for each slot (the
//! writer's, the reader's, whether the ring is prepared), the rings.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::mapping::{Mapping, FIRST_OWN_WORD, HEADER, WORD};
use crate::spsc::{Ring, Taken};

/// Most worker slots.
pub const SLOTS_MAX: usize = 1024;
/// Least and most bytes of a ring.
pub const RING_BYTES: std::ops::RangeInclusive<usize> = 64..=1 << 30;

const MAGIC: [u8; 8] = *b"flm-ring";
const SLOTS_WORD: usize = FIRST_OWN_WORD;
const RING_WORDS_WORD: usize = FIRST_OWN_WORD + 1;
const BLOCKS_OFFSET_WORD: usize = FIRST_OWN_WORD + 2;
const RINGS_OFFSET_WORD: usize = FIRST_OWN_WORD + 3;

const LINE_WORDS: usize = 8;
const BLOCK_WORDS: usize = 3 * LINE_WORDS;
/// Words of a slot's block. The writer's line, the reader's line, and one that is hardly ever written.
const HEAD: usize = 0;
const DROPPED: usize = 1;
const TAIL: usize = LINE_WORDS;
const LOST: usize = LINE_WORDS + 1;
const PREPARED: usize = 2 * LINE_WORDS;

/// The mapped rings.
pub struct Rings {
    mapping: Mapping,
    slots: usize,
    ring_words: usize,
    blocks: usize,
    rings: usize,
}

impl Rings {
    /// Lays the empty file behind `fd` out for `slots` rings of `ring_bytes` bytes, a power of two.
    pub fn create(fd: BorrowedFd<'_>, slots: usize, ring_bytes: usize) -> Result<Rings> {
        if !(1..=SLOTS_MAX).contains(&slots) {
            return Err(Error::Argument("the number of worker slots must be from 1 to 1024"));
        }
        if !RING_BYTES.contains(&ring_bytes) || !ring_bytes.is_power_of_two() {
            return Err(Error::Argument("a ring has 64 bytes to 1 GiB, a power of two"));
        }
        let rings = (HEADER + slots * BLOCK_WORDS * WORD).next_multiple_of(HEADER);
        let mapping = Mapping::create(fd, rings + slots * ring_bytes)?;
        mapping.reserve(0, rings)?;
        let own = [slots, ring_bytes / WORD, HEADER, rings];
        for (word, value) in mapping.words(SLOTS_WORD, own.len()).iter().zip(own) {
            word.store(value as u64, Ordering::Relaxed);
        }
        mapping.seal(MAGIC);
        Rings::over(mapping)
    }

    /// Maps rings that another process laid out.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<Rings> {
        Rings::over(Mapping::open(fd, MAGIC, true)?)
    }

    fn over(mapping: Mapping) -> Result<Rings> {
        let own = |word: usize| usize::try_from(mapping.word(word).load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let (slots, ring_words) = (own(SLOTS_WORD), own(RING_WORDS_WORD));
        let (blocks, rings) = (own(BLOCKS_OFFSET_WORD), own(RINGS_OFFSET_WORD));
        let bounded = (1..=SLOTS_MAX).contains(&slots)
            && ring_words <= RING_BYTES.end() / WORD
            && ring_words >= RING_BYTES.start() / WORD
            && ring_words.is_power_of_two();
        let inside = |offset: usize, words: usize| {
            offset % WORD == 0 && offset <= mapping.len() && words * WORD <= mapping.len() - offset
        };
        if !bounded || !inside(blocks, slots * BLOCK_WORDS) || !inside(rings, slots * ring_words) {
            return Err(Error::Layout(
                "the rings' header contradicts itself: damaged, a new file is needed".into(),
            ));
        }
        Ok(Rings {
            mapping,
            slots,
            ring_words,
            blocks: blocks / WORD,
            rings: rings / WORD,
        })
    }

    /// Gives a slot's ring its disk blocks, the first time. Until that succeeds its rows are dropped, and counted.
    pub fn prepare(&self, slot: usize) -> Result<()> {
        let prepared = &self.block(slot)?[PREPARED];
        if prepared.load(Ordering::Relaxed) == 0 {
            let bytes = self.ring_words * WORD;
            self.mapping.reserve(self.rings * WORD + slot * bytes, bytes)?;
            // Release: the zeros were written before anybody writes rows.
            prepared.store(1, Ordering::Release);
        }
        Ok(())
    }

    /// Adds a row to a slot's ring; false if there was no room and it was counted as dropped.
    pub fn push(&self, slot: usize, row: &[u8]) -> Result<bool> {
        let block = self.block(slot)?;
        let added = block[PREPARED].load(Ordering::Acquire) == 1 && self.ring(slot, block).push(row);
        if !added {
            block[DROPPED].fetch_add(1, Ordering::Relaxed);
        }
        Ok(added)
    }

    /// At most `most` rows of a slot, oldest first, to be given back by `release`.
    pub fn take(&self, slot: usize, most: usize) -> Result<Taken> {
        Ok(self.ring(slot, self.block(slot)?).take(most))
    }

    /// Gives back the room of the rows before `position`; `lost` of them could not be used.
    pub fn release(&self, slot: usize, position: u64, lost: u64) -> Result<()> {
        let block = self.block(slot)?;
        block[LOST].fetch_add(lost, Ordering::Relaxed);
        self.ring(slot, block).release(position);
        Ok(())
    }

    /// Slots that have rows.
    pub fn waiting(&self) -> Vec<usize> {
        (0..self.slots)
            .filter(|slot| self.block(*slot).is_ok_and(|block| self.ring(*slot, block).waiting()))
            .collect()
    }

    /// Rows of all slots that were dropped or lost since the file was made.
    pub fn dropped(&self) -> u64 {
        let of =
            |word: usize| move |slot: usize| self.block(slot).map_or(0, |block| block[word].load(Ordering::Relaxed));
        (0..self.slots)
            .map(of(DROPPED))
            .chain((0..self.slots).map(of(LOST)))
            .sum()
    }

    fn ring<'a>(&'a self, slot: usize, block: &'a [AtomicU64]) -> Ring<'a> {
        Ring {
            head: &block[HEAD],
            tail: &block[TAIL],
            words: self.mapping.words(self.rings + slot * self.ring_words, self.ring_words),
        }
    }

    fn block(&self, slot: usize) -> Result<&[AtomicU64]> {
        if slot >= self.slots {
            return Err(Error::Refused(format!(
                "there is no worker slot {slot}: the rings were made for {}",
                self.slots
            )));
        }
        Ok(self.mapping.words(self.blocks + slot * BLOCK_WORDS, BLOCK_WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::scratch;
    use std::os::fd::AsFd;

    fn text(rings: &Rings, slot: usize) -> Vec<String> {
        let taken = rings.take(slot, 100).unwrap();
        rings.release(slot, taken.position, 0).unwrap();
        taken
            .rows
            .into_iter()
            .map(|row| String::from_utf8(row).unwrap())
            .collect()
    }

    #[test]
    fn each_slot_has_a_ring_of_its_own_and_the_file_outlives_all() {
        let file = scratch();
        let reader = Rings::create(file.as_fd(), 3, 64).unwrap();
        for slot in 0..3 {
            reader.prepare(slot).unwrap();
            let writer = Rings::attach(file.as_fd()).unwrap();
            assert!(writer.push(slot, format!("row of {slot}").as_bytes()).unwrap());
        }
        drop(reader);
        let heir = Rings::attach(file.as_fd()).unwrap();
        assert_eq!(heir.waiting(), [0, 1, 2]);
        heir.prepare(1).unwrap(); // again: nothing happens to what is there
        for slot in 0..3 {
            assert_eq!(text(&heir, slot), [format!("row of {slot}")]);
        }
        assert_eq!((heir.waiting(), heir.dropped()), (vec![], 0));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let file = scratch();
        let rings = Rings::create(file.as_fd(), 2, 64).unwrap();
        assert!(!rings.push(0, b"not prepared").unwrap());
        rings.prepare(0).unwrap();
        assert!(rings.push(0, &[1; 40]).unwrap() && !rings.push(0, &[2; 40]).unwrap() && !rings.push(1, b"").unwrap());
        assert_eq!(Rings::attach(file.as_fd()).unwrap().dropped(), 3);
        let taken = rings.take(0, 9).unwrap();
        rings.release(0, taken.position, 1).unwrap(); // its reader could not make sense of it
        assert_eq!((taken.rows, rings.dropped()), (vec![vec![1; 40]], 4));
        assert!(rings.push(2, b"").is_err() && rings.take(2, 1).is_err() && rings.prepare(2).is_err());
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        let cases = [
            (SLOTS_WORD, 0),
            (SLOTS_WORD, 2000),
            (RING_WORDS_WORD, 7),
            (RING_WORDS_WORD, 1 << 20),
        ];
        for (word, value) in cases.into_iter().chain([
            (RING_WORDS_WORD, 4),
            (BLOCKS_OFFSET_WORD, 1 << 40),
            (RINGS_OFFSET_WORD, 4097),
        ]) {
            let file = scratch();
            let rings = Rings::create(file.as_fd(), 2, 64).unwrap();
            rings.mapping.word(word).store(value, Ordering::Relaxed);
            assert!(
                matches!(Rings::attach(file.as_fd()), Err(Error::Layout(_))),
                "{word} {value}"
            );
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (slots, bytes) in [(0, 64), (SLOTS_MAX + 1, 64), (1, 32), (1, 65), (1, 1 << 31)] {
            assert!(matches!(
                Rings::create(scratch().as_fd(), slots, bytes),
                Err(Error::Argument(_))
            ));
        }
    }
}

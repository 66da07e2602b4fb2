//! Rows of bytes from one writing process to one reading process, through a ring of words, without a lock.
//!
//! Positions count words since the ring was made; a word's place is its position modulo the ring's size. The writer owns
//! `head`, the reader `tail`. A row is a header word (the low half of its position, and its length) and its bytes, padded
//! to a word; it counts from the one store of `head` behind it. A writer killed before that store has written nothing, one
//! killed after it everything: there is no third case, and the next writer goes on at `head`.
//!
//! The reader takes rows without giving their room back; it does that with `release`, when it has them safe. So a reader
//! killed in between reads them again, and none is lost. The header's half of a position tells a row from what an earlier
//! round left there, should a machine have lost power with half of the file on disk.
//!
//! It does not know what a row says, nor where the words lie. Two writers at once, or two readers, would damage it: the
//! caller sees to that.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

const BYTES: usize = 8;

/// One ring. `words` are a power of two, at most 2^31.
pub struct Ring<'a> {
    /// Position behind the last complete row. Written by the writer.
    pub head: &'a AtomicU64,
    /// Position of the first row whose room has not been given back. Written by the reader.
    pub tail: &'a AtomicU64,
    /// The rows' place.
    pub words: &'a [AtomicU64],
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The rows, oldest first.
    pub rows: Vec<Vec<u8>>,
    /// What to give to `release` when they are safe.
    pub position: u64,
    /// Whether the words after the rows contradict themselves: then `position` is behind them.
    pub damaged: bool,
}

impl Ring<'_> {
    /// Adds a row; false if there is no room for it. For the one writer.
    pub fn push(&self, row: &[u8]) -> bool {
        let head = self.head.load(Ordering::Relaxed); // its own
                                                      // Acquire: pairs with the release in `release`; the reader has copied what is overwritten now.
        let used = head.wrapping_sub(self.tail.load(Ordering::Acquire));
        let needed = words_of(row.len());
        if used > self.size() || needed > self.size() - used || row.len() > u32::MAX as usize {
            return false;
        }
        self.word(head).store(header(head, row.len()), Ordering::Relaxed);
        for (place, bytes) in (head + 1..).zip(row.chunks(BYTES)) {
            let mut padded = [0; BYTES];
            padded[..bytes.len()].copy_from_slice(bytes);
            self.word(place).store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        // Release: whoever sees the new head sees the whole row.
        self.head.store(head + needed, Ordering::Release);
        true
    }

    /// Copies at most `most` rows. For the one reader.
    pub fn take(&self, most: usize) -> Taken {
        // Acquire: pairs with the release in `push`.
        let head = self.head.load(Ordering::Acquire);
        let mut position = self.tail.load(Ordering::Relaxed); // its own
        let mut rows = Vec::new();
        let sound = head.wrapping_sub(position) <= self.size();
        while sound && position != head && rows.len() < most {
            let found = self.read(position);
            let length = (found & u64::from(u32::MAX)) as usize;
            if found != header(position, length) || words_of(length) > head - position {
                return damaged(rows, head);
            }
            let mut row = Vec::with_capacity(length.next_multiple_of(BYTES));
            for place in position + 1..position + words_of(length) {
                row.extend(self.read(place).to_le_bytes());
            }
            row.truncate(length);
            rows.push(row);
            position += words_of(length);
        }
        if sound {
            let damaged = false;
            Taken {
                rows,
                position,
                damaged,
            }
        } else {
            damaged(rows, head)
        }
    }

    /// Gives back the room of all rows before `position`, which `take` returned. For the one reader.
    pub fn release(&self, position: u64) {
        // Release: the copies were made before; whoever sees the room may write there.
        self.tail.store(position, Ordering::Release);
    }

    /// Whether there is a row that has not been given back.
    pub fn waiting(&self) -> bool {
        self.head.load(Ordering::Relaxed) != self.tail.load(Ordering::Relaxed)
    }

    fn size(&self) -> u64 {
        self.words.len() as u64
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        &self.words[(position & (self.size() - 1)) as usize]
    }

    #[cfg(not(loom))]
    fn read(&self, position: u64) -> u64 {
        self.word(position).load(Ordering::Relaxed)
    }

    /// For the model: it never lets a load see a store that is made after it, as the machine may, so it is asked as well
    /// whether every write of the word comes before this read or after it.
    #[cfg(loom)]
    fn read(&self, position: u64) -> u64 {
        let value = self.word(position).load(Ordering::Relaxed);
        // SAFETY: the model ends with a failure, not with undefined behaviour, where a write is not ordered with this.
        unsafe { self.word(position).unsync_load() };
        value
    }
}

fn damaged(rows: Vec<Vec<u8>>, head: u64) -> Taken {
    Taken {
        rows,
        position: head,
        damaged: true,
    }
}

fn header(position: u64, length: usize) -> u64 {
    position << 32 | length as u64
}

fn words_of(bytes: usize) -> u64 {
    1 + bytes.div_ceil(BYTES) as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    struct Memory(AtomicU64, AtomicU64, Vec<AtomicU64>);

    impl Memory {
        fn new(words: usize) -> Memory {
            Memory(
                AtomicU64::new(0),
                AtomicU64::new(0),
                (0..words).map(|_| AtomicU64::new(0)).collect(),
            )
        }

        fn ring(&self) -> Ring<'_> {
            Ring {
                head: &self.0,
                tail: &self.1,
                words: &self.2,
            }
        }
    }

    fn row(number: usize, length: usize) -> Vec<u8> {
        (0..length).map(|byte| (byte * 7 + number) as u8).collect()
    }

    #[test]
    fn rows_of_every_length_come_back_round_after_round() {
        const ROWS: usize = if cfg!(miri) { 250 } else { 2000 };
        let memory = Memory::new(16);
        let ring = memory.ring();
        for number in 0..ROWS {
            let sent = row(number, number % 121);
            assert!(ring.push(&sent), "{number}");
            let taken = ring.take(9);
            assert_eq!((taken.rows, taken.damaged), (vec![sent], false));
            ring.release(taken.position);
        }
        assert!(memory.0.load(Ordering::Relaxed) > 100 * 16); // many rounds
    }

    #[test]
    fn a_full_ring_refuses_and_keeps_what_it_has() {
        let memory = Memory::new(8);
        let ring = memory.ring();
        assert!(ring.push(&row(1, 8)) && ring.push(&row(2, 8)) && ring.push(&row(3, 24)));
        assert!(!ring.push(b"") && !ring.push(&row(4, 100)));
        let first = ring.take(1);
        assert_eq!(first.rows, vec![row(1, 8)]);
        assert!(!ring.push(b"")); // taken, and not given back
        ring.release(first.position);
        assert!(ring.push(&row(5, 5)));
        assert_eq!(ring.take(9).rows, vec![row(2, 8), row(3, 24), row(5, 5)]);
    }

    #[test]
    fn a_row_is_read_again_until_its_room_is_given_back() {
        let memory = Memory::new(8);
        assert!(memory.ring().push(b"once"));
        assert_eq!(memory.ring().take(9), memory.ring().take(9));
        memory.ring().release(memory.ring().take(9).position);
        assert_eq!(memory.ring().take(9).rows, Vec::<Vec<u8>>::new());
        assert!(!memory.ring().waiting());
    }

    /// The writer's only stores before `head` go to words that nobody reads: whatever of them a killed writer has made,
    /// the reader sees the rows before, and the next writer's row comes whole.
    #[test]
    fn a_writer_killed_at_any_store_leaves_no_torn_row() {
        let late = row(9, 30);
        for stores in 0..=4 {
            let memory = Memory::new(16);
            let ring = memory.ring();
            assert!(ring.push(b"before"));
            let head = memory.0.load(Ordering::Relaxed);
            let padded: Vec<u8> = late.iter().copied().chain([0, 0]).collect();
            let mut words = vec![header(head, late.len())];
            words.extend(
                padded
                    .chunks(8)
                    .map(|word| u64::from_le_bytes(word.try_into().unwrap())),
            );
            for (place, word) in (head..).zip(&words[..stores]) {
                ring.word(place).store(*word, Ordering::Relaxed);
            }
            assert_eq!(ring.take(9).rows, vec![b"before".to_vec()], "{stores}");
            assert!(ring.push(b"after"));
            assert_eq!(
                ring.take(9).rows,
                vec![b"before".to_vec(), b"after".to_vec()],
                "{stores}"
            );
        }
    }

    #[test]
    fn words_of_an_earlier_round_are_not_taken_for_rows() {
        let memory = Memory::new(8);
        let ring = memory.ring();
        for _ in 0..5 {
            assert!(ring.push(b"12345678"));
            ring.release(ring.take(1).position);
        }
        memory.0.fetch_add(4, Ordering::Relaxed); // the head reached the disk, the rows did not
        let taken = ring.take(9);
        assert_eq!((taken.rows.len(), taken.damaged, taken.position), (0, true, 14));
        ring.release(taken.position);
        assert!(ring.push(b"whole"));
        assert_eq!(ring.take(9).rows, vec![b"whole".to_vec()]);
    }

    #[test]
    fn positions_and_lengths_that_cannot_be_are_damage_and_no_panic() {
        for (head, tail, word) in [
            (9, 0, 0),
            (0, 1, 0),
            (u64::MAX, 3, 0),
            (2, 0, u64::from(u32::MAX)),
            (2, 0, 9),
        ] {
            let memory = Memory::new(8);
            memory.0.store(head, Ordering::Relaxed);
            memory.1.store(tail, Ordering::Relaxed);
            memory.2[0].store(word, Ordering::Relaxed);
            let taken = memory.ring().take(9);
            assert_eq!((taken.rows.len(), taken.damaged, taken.position), (0, true, head));
        }
    }

    #[test]
    fn a_writer_and_a_reader_at_once_lose_and_tear_nothing() {
        const ROWS: usize = if cfg!(miri) { 200 } else { 200_000 };
        let memory = Memory::new(64);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..ROWS {
                    while !memory.ring().push(&row(number, number % 97)) {
                        std::hint::spin_loop();
                    }
                }
                done.store(true, Ordering::Release);
            });
            let mut next = 0;
            while next < ROWS {
                let taken = memory.ring().take(5);
                assert!(!taken.damaged);
                for found in taken.rows {
                    assert_eq!(found, row(next, next % 97), "{next}");
                    next += 1;
                }
                memory.ring().release(taken.position);
            }
        });
        assert!(done.load(Ordering::Acquire) && !memory.ring().waiting());
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;

    /// Every interleaving, and every value the memory model allows a load to see: rows come whole, in order, once, and the
    /// writer overwrites no word before the reader has read it and given it back.
    #[test]
    fn rows_are_never_torn() {
        loom::model(|| {
            let memory = Arc::new((
                AtomicU64::new(0),
                AtomicU64::new(0),
                [AtomicU64::new(0), AtomicU64::new(0)],
            ));
            let writer = Arc::clone(&memory);
            let thread = loom::thread::spawn(move || {
                let ring = Ring {
                    head: &writer.0,
                    tail: &writer.1,
                    words: &writer.2,
                };
                (1..=2u8).map(|number| ring.push(&[number; 8])).collect::<Vec<_>>()
            });
            let ring = Ring {
                head: &memory.0,
                tail: &memory.1,
                words: &memory.2,
            };
            let mut seen = Vec::new();
            for _ in 0..2 {
                let taken = ring.take(1);
                assert!(!taken.damaged);
                seen.extend(taken.rows);
                ring.release(taken.position);
            }
            let pushed = thread.join().unwrap();
            seen.extend(ring.take(9).rows);
            let sent: Vec<_> = (1..=2u8)
                .zip(pushed)
                .filter(|(_, sent)| *sent)
                .map(|(n, _)| vec![n; 8])
                .collect();
            assert_eq!(seen, sent);
        });
    }
}

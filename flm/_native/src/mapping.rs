//! A file mapped into memory as a row of 64-bit atomics, or 128-bit ones, and the header that says what is in it.
//!
//! It does not know what the sections behind the header mean. Strategy: the header fills the first page; its first
//! words are magic, layout version, length of the file, and then parameters of the file's kind and the place of each
//! section, so that a later section only adds a word. The magic is stored last: a file whose making was cut short is
//! not taken for one. Everything shared goes through `AtomicU64` (or `AtomicU128`, two words), never through a Rust reference to plain bytes,
//! because other processes change them.
//!
//! Bytes are written to the file (`reserve`) before a page is first stored to: a store to a page of a sparse file on a
//! full disk is a SIGBUS, a write is an error that can be reported. Nobody may shorten a mapped file, for the same reason.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{fence, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use portable_atomic::AtomicU128;

use crate::error::{Error, Result};
use crate::LAYOUT_VERSION;

/// Bytes in one word of a mapping.
pub const WORD: usize = 8;
/// Bytes of the header; sections start behind it. One page of x86; a section need not be page-aligned.
pub const HEADER: usize = 4096;
/// Index of the first header word that belongs to the kind of file.
pub const FIRST_OWN_WORD: usize = 8;

const MAGIC_WORD: usize = 0;
const VERSION_WORD: usize = 1;
const LENGTH_WORD: usize = 2;
static ZEROS: [u8; 65536] = [0; 65536];

/// A mapped file. Its descriptor is a duplicate: the caller keeps and closes their own.
pub struct Mapping {
    file: File,
    map: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Gives the empty file behind `fd` its length (sparse) and maps it. The caller fills it and then calls `seal`.
    pub fn create(fd: BorrowedFd<'_>, length: usize) -> Result<Mapping> {
        let file = duplicate(fd)?;
        if file_length(&file)? != 0 {
            return Err(Error::Refused(
                "the file is not empty, so other processes may have it mapped: hand over a new file, or open_writer/attach this one".into(),
            ));
        }
        file.set_len(length as u64).map_err(|e| Error::Io("size the file", e))?;
        Mapping::map(file, length, true)
    }

    /// Maps an existing file, read-only or not, after its header was found to be of this `magic` and layout version.
    pub fn open(fd: BorrowedFd<'_>, magic: [u8; 8], writable: bool) -> Result<Mapping> {
        let file = duplicate(fd)?;
        let length = usize::try_from(file_length(&file)?).unwrap_or(usize::MAX);
        if length < HEADER {
            return Err(Error::Layout(format!(
                "the file holds {length} bytes, less than a header: it was never completed"
            )));
        }
        let mapping = Mapping::map(file, length, writable)?;
        mapping.check_header(magic)?;
        Ok(mapping)
    }

    fn map(file: File, length: usize, writable: bool) -> Result<Mapping> {
        let mut options = MmapOptions::new();
        options.len(length);
        let map = if writable {
            options.map_raw(&file)
        } else {
            options.map_raw_read_only(&file)
        };
        let map = map.map_err(|e| Error::Io("map the file", e))?;
        Ok(Mapping { file, map, writable })
    }

    fn check_header(&self, magic: [u8; 8]) -> Result<()> {
        let found = self.word(MAGIC_WORD).load(Ordering::Relaxed);
        // Acquire fence: pairs with the release store of the magic in `seal`; the rest of the header is then complete.
        fence(Ordering::Acquire);
        if found != u64::from_le_bytes(magic) {
            return Err(Error::Layout(format!(
                "the file is not a {}: another magic",
                String::from_utf8_lossy(&magic)
            )));
        }
        let version = self.word(VERSION_WORD).load(Ordering::Relaxed);
        if version != LAYOUT_VERSION {
            return Err(Error::Layout(format!(
                "the file has layout version {version}, this build reads {LAYOUT_VERSION}: a new file is needed"
            )));
        }
        let declared = self.word(LENGTH_WORD).load(Ordering::Relaxed);
        if declared != self.map.len() as u64 {
            return Err(Error::Layout(format!(
                "the file holds {} bytes and should hold {declared}: damaged",
                self.map.len()
            )));
        }
        Ok(())
    }

    /// Completes a new file: from now on `open` accepts it.
    pub fn seal(&self, magic: [u8; 8]) {
        self.word(VERSION_WORD).store(LAYOUT_VERSION, Ordering::Relaxed);
        self.word(LENGTH_WORD).store(self.map.len() as u64, Ordering::Relaxed);
        // Release: whoever sees the magic sees the header and everything stored before.
        self.word(MAGIC_WORD)
            .store(u64::from_le_bytes(magic), Ordering::Release);
    }

    /// Makes the disk blocks of a range exist, by writing zeros over it.
    pub fn reserve(&self, offset: usize, length: usize) -> Result<()> {
        let mut done = 0;
        while done < length {
            let chunk = ZEROS.len().min(length - done);
            self.file
                .write_all_at(&ZEROS[..chunk], (offset + done) as u64)
                .map_err(|e| Error::Io("reserve space for the file", e))?;
            done += chunk;
        }
        Ok(())
    }

    /// The word at `index`. Panics outside the file, as indexing a slice does.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        &self.words(index, 1)[0]
    }

    /// `count` words from `index` on. Panics outside the file, as indexing a slice does.
    pub fn words(&self, index: usize, count: usize) -> &[AtomicU64] {
        let end = index.checked_add(count).and_then(|words| words.checked_mul(WORD));
        assert!(
            end.is_some_and(|end| end <= self.map.len()),
            "word {index}+{count} is outside the mapping"
        );
        // SAFETY: the range lies inside the mapping (asserted) and lives as long as `self`; the mapping is page-aligned,
        // so a word is 8-aligned; AtomicU64 has the layout of u64, and any bits are a value; concurrent changes by other
        // processes are what atomics are for.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>().add(index), count) }
    }

    /// `count` pairs of words from the word at `index` on, which is even. Panics otherwise, or outside the file. Words
    /// that are used as a pair are not used as words.
    pub fn pairs(&self, index: usize, count: usize) -> &[AtomicU128] {
        assert!(index % 2 == 0, "a pair of words starts at an even word, not at {index}");
        let words = self.words(index, count.saturating_mul(2));
        // SAFETY: the words lie inside the mapping, live as long as `self` and are twice as many; the mapping is
        // page-aligned and `index` even, so a pair is 16-aligned, which is what AtomicU128 needs (its layout is that of a
        // 16-aligned u128), and any bits are a value.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<AtomicU128>(), count) }
    }

    /// Bytes in the file.
    #[allow(clippy::len_without_is_empty)] // a mapping is never empty
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether stores are allowed. A store to a read-only mapping would be a SIGSEGV: callers ask first.
    pub fn writable(&self) -> bool {
        self.writable
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<File> {
    fd.try_clone_to_owned()
        .map(File::from)
        .map_err(|e| Error::Io("duplicate the descriptor", e))
}

fn file_length(file: &File) -> Result<u64> {
    file.metadata()
        .map(|data| data.len())
        .map_err(|e| Error::Io("read the file's length", e))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicUsize;

    const KIND: [u8; 8] = *b"testfile";

    /// An empty file that has no name any more.
    pub(crate) fn scratch() -> File {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("flm-native-{}-{number}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn refusal(file: &File) -> String {
        Mapping::open(file.as_fd(), KIND, false)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_one_mapping_stores_another_loads() {
        let file = scratch();
        let writer = Mapping::create(file.as_fd(), HEADER + WORD).unwrap();
        writer.seal(KIND);
        let reader = Mapping::open(file.as_fd(), KIND, false).unwrap();
        writer.word(HEADER / WORD).store(7, Ordering::Relaxed);
        assert_eq!(reader.word(HEADER / WORD).load(Ordering::Relaxed), 7);
        assert!(writer.writable() && !reader.writable());
    }

    #[test]
    fn a_file_in_use_is_not_laid_out_again() {
        let file = scratch();
        Mapping::create(file.as_fd(), HEADER).unwrap();
        let again = Mapping::create(file.as_fd(), HEADER).map(|_| ()).unwrap_err();
        assert!(again.to_string().contains("not empty"), "{again}");
    }

    #[test]
    fn each_kind_of_wrong_file_is_refused_by_name() {
        let file = scratch();
        assert!(refusal(&file).contains("never completed"));
        let mapping = Mapping::create(file.as_fd(), HEADER).unwrap();
        assert!(refusal(&file).contains("magic")); // the maker died before `seal`
        mapping.seal(KIND);
        mapping.word(VERSION_WORD).store(LAYOUT_VERSION + 1, Ordering::Relaxed);
        assert!(refusal(&file).contains(&format!("layout version {}", LAYOUT_VERSION + 1)));
        mapping.word(VERSION_WORD).store(LAYOUT_VERSION, Ordering::Relaxed);
        file.set_len((HEADER * 2) as u64).unwrap();
        assert!(refusal(&file).contains("damaged"));
    }

    #[test]
    fn a_descriptor_that_cannot_write_is_an_error() {
        let file = scratch();
        let read_only = File::open(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
        if let Ok(read_only) = read_only {
            assert!(matches!(Mapping::create(read_only.as_fd(), HEADER), Err(Error::Io(..))));
        }
    }

    #[test]
    #[should_panic(expected = "outside the mapping")]
    fn a_word_behind_the_end_is_a_panic() {
        let file = scratch();
        Mapping::create(file.as_fd(), HEADER).unwrap().word(HEADER / WORD);
    }
}

//! What the keyring knows of one key, and how that is laid out in words. It does not know rooms, versions or buckets.
//!
//! Words of a record: id (8 bytes), the rest of the id (4 bytes) and slot, scopes and tag, expiry, salt (2), digest (4). A
//! tag of 0 is no record, so that a new file of zeros is an empty table.

use subtle::{Choice, ConstantTimeEq};

use crate::keyformat::{Id, DIGEST_LEN, SALT_LEN};
use crate::mapping::WORD;

/// Words of a record.
pub const RECORD_WORDS: usize = 10;
/// A record as words.
pub type Words = [u64; RECORD_WORDS];
/// The words of no record.
pub const NONE: Words = [0; RECORD_WORDS];
const TAG: usize = 2;
const SALT: usize = 4;
const LIVE: u64 = 1 << 32;
const REVOKED: u64 = 2 << 32;
const TAGS: u64 = LIVE | REVOKED;

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
    /// The caller's bits for what the key may do.
    pub scopes: u32,
}

/// What no record reads as: it accepts nothing, and its check takes as long as any other.
pub const DUMMY: Record = Record {
    id: [0; 12],
    slot: 0,
    salt: [0; SALT_LEN],
    digest: [0; DIGEST_LEN],
    expires_at_ms: 0,
    revoked: true,
    scopes: 0,
};

/// An id as two words' content.
pub fn split(id: &Id) -> (u64, u32) {
    let (low, high) = id.split_at(8);
    (
        u64::from_le_bytes(low.try_into().unwrap_or_default()),
        u32::from_le_bytes(high.try_into().unwrap_or_default()),
    )
}

/// Whose record these words are; `None`: of nobody.
pub fn id_of(words: &Words) -> Option<Id> {
    let mut id = [0; 12];
    id[..8].copy_from_slice(&words[0].to_le_bytes());
    id[8..].copy_from_slice(&(words[1] as u32).to_le_bytes());
    (words[TAG] & TAGS != 0).then_some(id)
}

/// Whether these words are the record of the id that was split into `low` and `high`, without a branch.
pub fn is_of(words: &Words, low: u64, high: u32) -> Choice {
    let differs = (words[0] ^ low) | u64::from(words[1] as u32 ^ high);
    differs.ct_eq(&0) & !(words[TAG] & TAGS).ct_eq(&0)
}

/// A record as words.
pub fn pack(record: &Record) -> Words {
    let (low, high) = split(&record.id);
    let mut words = NONE;
    words[0] = low;
    words[1] = u64::from(record.slot) << 32 | u64::from(high);
    words[TAG] = u64::from(record.scopes) | if record.revoked { REVOKED } else { LIVE };
    words[3] = record.expires_at_ms;
    for (word, bytes) in words[SALT..]
        .iter_mut()
        .zip(record.salt.chunks_exact(WORD).chain(record.digest.chunks_exact(WORD)))
    {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

/// Words as a record; those of none as `DUMMY`.
pub fn unpack(words: &Words) -> Record {
    let mut record = Record {
        slot: (words[1] >> 32) as u32,
        expires_at_ms: words[3],
        revoked: words[TAG] & TAGS != LIVE,
        scopes: words[TAG] as u32,
        ..DUMMY
    };
    record.id[..8].copy_from_slice(&words[0].to_le_bytes());
    record.id[8..].copy_from_slice(&(words[1] as u32).to_le_bytes());
    for (bytes, word) in record
        .salt
        .chunks_exact_mut(WORD)
        .chain(record.digest.chunks_exact_mut(WORD))
        .zip(&words[SALT..])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_packing() {
        let digest = std::array::from_fn(|i| i as u8);
        let record = Record {
            id: *b"abcdefghijkl",
            slot: u32::MAX,
            salt: *b"0123456789abcdef",
            digest,
            expires_at_ms: u64::MAX,
            revoked: true,
            scopes: 1 << 31 | 1,
        };
        assert_eq!(unpack(&pack(&record)), record);
        let live = Record {
            revoked: false,
            ..record
        };
        assert_eq!(unpack(&pack(&live)), live);
        assert_eq!(
            (unpack(&NONE), id_of(&NONE), id_of(&pack(&live))),
            (DUMMY, None, Some(live.id))
        );
    }

    #[test]
    fn a_record_is_of_its_id_alone() {
        let (low, high) = split(b"abcdefghijkl");
        let words = pack(&Record {
            id: *b"abcdefghijkl",
            ..DUMMY
        });
        let is = |words, low, high| bool::from(is_of(words, low, high));
        assert!(is(&words, low, high));
        assert!(!is(&words, low ^ 1, high) && !is(&words, low, high ^ 1 << 31));
        assert!(!is(&NONE, 0, 0) && is(&pack(&DUMMY), 0, 0));
    }
}

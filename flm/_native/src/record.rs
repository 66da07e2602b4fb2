//! What the keyring knows of one key, and how that is laid out in words. It does not know entries, versions or chains.
//!
//! Words of a record: tag, id (8 bytes, 4 bytes), slot, expiry, salt (2), digest (4), scopes. A tag of 0 is no record,
//! so that a new file of zeros is an empty table.

use crate::keyformat::{Id, DIGEST_LEN, SALT_LEN};
use crate::mapping::WORD;

/// Words of a record.
pub const RECORD_WORDS: usize = 12;
/// Tag of an entry without a key.
pub const EMPTY: u64 = 0;
const LIVE: u64 = 1;
const REVOKED: u64 = 2;

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

/// What an entry without a key reads as, but for its tag: it accepts nothing, and its check takes as long as any other.
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

/// The inverse of `split`.
pub fn join(low: u64, high: u32) -> Id {
    let mut id = [0; 12];
    id[..8].copy_from_slice(&low.to_le_bytes());
    id[8..].copy_from_slice(&high.to_le_bytes());
    id
}

/// A record as words.
pub fn pack(record: &Record) -> [u64; RECORD_WORDS] {
    let (low, high) = split(&record.id);
    let mut words = [0; RECORD_WORDS];
    words[0] = if record.revoked { REVOKED } else { LIVE };
    words[1..5].copy_from_slice(&[low, u64::from(high), u64::from(record.slot), record.expires_at_ms]);
    for (word, bytes) in words[5..11]
        .iter_mut()
        .zip(record.salt.chunks_exact(WORD).chain(record.digest.chunks_exact(WORD)))
    {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    words[11] = u64::from(record.scopes);
    words
}

/// Words as a record.
pub fn unpack(words: &[u64; RECORD_WORDS]) -> Record {
    let mut record = Record {
        id: join(words[1], words[2] as u32),
        slot: words[3] as u32,
        expires_at_ms: words[4],
        revoked: words[0] != LIVE,
        scopes: words[11] as u32,
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
        assert_ne!(pack(&DUMMY)[0], EMPTY);
    }
}

//! The text of an API key: `flm_` + id (12) + `_` + secret (43) + checksum (6), 66 characters in all.
//!
//! Id, secret and checksum are base62 (`0-9A-Za-z`, in this order). The secret is 43 characters drawn uniformly, which
//! is 256.03 bits; the id is 71 bits, so that ids do not collide. The checksum is the CRC-32 (the one of zlib and PNG)
//! of all 60 characters before it, as a base62 number with leading zeros: a mistyped or made-up key is turned down
//! without a hash, and secret scanners find keys by `PATTERN` without false alarms (GitHub's token format does the
//! same). It finds every change of a single character, since CRC-32 finds every burst of up to 32 bits; it is no
//! protection against somebody who can compute it.
//!
//! What is stored of a secret is HMAC-SHA256(pepper, salt || secret). A slow hash would add nothing to 256 random bits,
//! and would be a way to exhaust the processor. This file knows no table, no file and no time.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::error::{Error, Result};

/// The key as a regular expression, to be matched whole (Python `re.fullmatch`). A key that matches may still be wrong:
/// its checksum decides.
pub const PATTERN: &str = "flm_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}";
/// Characters of a key id.
pub const ID_LEN: usize = 12;
/// Bytes of a salt.
pub const SALT_LEN: usize = 16;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 32;
/// Least bytes of a pepper: the strength of the secrets it is mixed with.
pub const PEPPER_MIN: usize = 32;

const PREFIX: &[u8] = b"flm_";
const SECRET_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;
const ID_AT: usize = PREFIX.len();
const SEPARATOR_AT: usize = ID_AT + ID_LEN;
const SECRET_AT: usize = SEPARATOR_AT + 1;
const CHECKSUM_AT: usize = SECRET_AT + SECRET_LEN;
const KEY_LEN: usize = CHECKSUM_AT + CHECKSUM_LEN;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key id: always `ID_LEN` characters of base62.
pub type Id = [u8; ID_LEN];

/// A key whose length, characters and checksum are right. Not printable, so that it does not reach a log.
pub struct Parsed<'a> {
    /// The public part, by which the key is looked up.
    pub id: Id,
    secret: &'a [u8],
}

/// Takes a presented key apart. `None` if length, prefix, characters or checksum are wrong; never panics.
pub fn parse(presented: &[u8]) -> Option<Parsed<'_>> {
    if presented.len() != KEY_LEN || !presented.starts_with(PREFIX) || presented[SEPARATOR_AT] != b'_' {
        return None;
    }
    let id: Id = presented[ID_AT..SEPARATOR_AT].try_into().ok()?;
    let secret = &presented[SECRET_AT..CHECKSUM_AT];
    let alphanumeric = is_base62(&id) && is_base62(secret);
    (alphanumeric && presented[CHECKSUM_AT..] == checksum(&presented[..CHECKSUM_AT])).then_some(Parsed { id, secret })
}

/// An id as given by a caller, checked.
pub fn parse_id(text: &str) -> Result<Id> {
    let id: Id = text
        .as_bytes()
        .try_into()
        .map_err(|_| Error::Argument("a key id has 12 characters"))?;
    if !is_base62(&id) {
        return Err(Error::Argument("a key id consists of letters and digits"));
    }
    Ok(id)
}

/// An id as text.
pub fn id_text(id: &Id) -> &str {
    std::str::from_utf8(id).unwrap_or_default()
}

/// Makes a new key from the system's random source: the whole key, and its id.
pub fn generate() -> Result<(String, Id)> {
    let mut key = [0u8; KEY_LEN];
    key[..ID_AT].copy_from_slice(PREFIX);
    random_base62(&mut key[ID_AT..SEPARATOR_AT])?;
    key[SEPARATOR_AT] = b'_';
    random_base62(&mut key[SECRET_AT..CHECKSUM_AT])?;
    let sum = checksum(&key[..CHECKSUM_AT]);
    key[CHECKSUM_AT..].copy_from_slice(&sum);
    let mut id: Id = [0; ID_LEN];
    id.copy_from_slice(&key[ID_AT..SEPARATOR_AT]);
    Ok((key.iter().copied().map(char::from).collect(), id))
}

/// Hashes secrets under one pepper. The pepper's part of the HMAC is computed once, here.
#[derive(Clone)]
pub struct Hasher(Hmac<Sha256>);

impl Hasher {
    /// A hasher under `pepper`, which must have at least `PEPPER_MIN` bytes.
    pub fn new(pepper: &[u8]) -> Result<Hasher> {
        if pepper.len() < PEPPER_MIN {
            return Err(Error::Argument("the pepper must have at least 32 bytes"));
        }
        Hmac::new_from_slice(pepper)
            .map(Hasher)
            .map_err(|_| Error::Argument("the pepper has a length HMAC does not take"))
    }

    /// HMAC-SHA256(pepper, salt || secret).
    pub fn digest(&self, salt: &[u8; SALT_LEN], key: &Parsed<'_>) -> [u8; DIGEST_LEN] {
        let mut mac = self.0.clone();
        mac.update(salt);
        mac.update(key.secret);
        mac.finalize().into_bytes().into()
    }
}

fn is_base62(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_alphanumeric)
}

/// Fills `out` with uniform base62: of 256 byte values the low six bits are taken, and 62 and 63 are drawn again.
fn random_base62(out: &mut [u8]) -> Result<()> {
    let mut pool = [0u8; 64];
    let mut filled = 0;
    while filled < out.len() {
        getrandom::fill(&mut pool).map_err(|e| Error::Io("get random bytes from the system", e.into()))?;
        for byte in pool {
            if let (Some(digit), Some(place)) = (ALPHABET.get(usize::from(byte & 63)), out.get_mut(filled)) {
                *place = *digit;
                filled += 1;
            }
        }
    }
    Ok(())
}

fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32(text);
    let mut digits = [0u8; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

fn crc32(text: &[u8]) -> u32 {
    !text
        .iter()
        .fold(!0, |crc, byte| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// CRC-32 of each byte value, polynomial 0x04C11DB7 bit-reversed (RFC 1952 §8).
const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut value = 0;
    while value < 256 {
        let mut crc = value as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                0xEDB8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[value] = crc;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926); // the check value of CRC-32/ISO-HDLC
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn checksum_has_leading_zeros() {
        assert_eq!(&checksum(b""), b"000000");
    }

    #[test]
    fn a_generated_key_parses_to_its_id() {
        let (key, id) = generate().unwrap();
        assert_eq!(key.len(), 66);
        assert_eq!(parse(key.as_bytes()).unwrap().id, id);
        assert_eq!(parse_id(id_text(&id)).unwrap(), id);
    }

    #[test]
    fn every_change_of_one_byte_is_caught() {
        let (key, _) = generate().unwrap();
        let mut bytes = key.into_bytes();
        for at in 0..bytes.len() {
            let right = bytes[at];
            for wrong in (0..=255).filter(|wrong| *wrong != right) {
                bytes[at] = wrong;
                assert!(parse(&bytes).is_none(), "byte {at} changed to {wrong}");
            }
            bytes[at] = right;
        }
        assert!(parse(&bytes).is_some());
    }

    #[test]
    fn lengths_but_the_right_one_are_refused() {
        let (key, _) = generate().unwrap();
        let longer = format!("{key}0");
        assert!((0..66).all(|n| parse(&key.as_bytes()[..n]).is_none()));
        assert!(parse(longer.as_bytes()).is_none());
    }

    #[test]
    fn random_digits_cover_the_alphabet_evenly() {
        let mut text = [0u8; 62 * 400];
        random_base62(&mut text).unwrap();
        for digit in ALPHABET {
            let count = text.iter().filter(|c| *c == digit).count();
            assert!((250..550).contains(&count), "{count} of 400 expected"); // 7.5 standard deviations either way
        }
    }

    #[test]
    fn digest_is_hmac_of_salt_and_secret() {
        let (key, _) = generate().unwrap();
        let parsed = parse(key.as_bytes()).unwrap();
        let mut plain = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
        plain.update(&[[1u8; 16].as_slice(), &key.as_bytes()[17..60]].concat());
        assert_eq!(
            Hasher::new(&[7; 32]).unwrap().digest(&[1; 16], &parsed),
            *plain.finalize().into_bytes()
        );
        assert!(Hasher::new(&[7; 31]).is_err());
    }
}

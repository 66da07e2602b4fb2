//! SipHash-2-4 of one 64-bit number: where an owner's bucket lies, in an order nobody can foresee who lacks the seed. Only
//! that: the standard library's hashers have either a seed of their own or none, and every process must find the same place.

/// The hash of `number`'s eight bytes, least significant first, under the key `seed`.
pub fn siphash(seed: [u64; 2], number: u64) -> u64 {
    let mut state = [
        seed[0] ^ 0x736f_6d65_7073_6575,
        seed[1] ^ 0x646f_7261_6e64_6f6d,
        seed[0] ^ 0x6c79_6765_6e65_7261,
        seed[1] ^ 0x7465_6462_7974_6573,
    ];
    // The message, then its length in the last byte of a block of its own.
    for block in [number, 8 << 56] {
        state[3] ^= block;
        (0..2).for_each(|_| round(&mut state));
        state[0] ^= block;
    }
    state[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hasher;

    #[test]
    fn the_published_vector() {
        let seed = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash(seed, 0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
    }

    #[test]
    #[allow(deprecated)] // the standard library's SipHash-2-4, which cannot be named otherwise
    fn as_the_standard_library_hashes() {
        for number in (0..1000).map(|n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            let mut hasher = std::hash::SipHasher::new_with_keys(number ^ 5, !number);
            hasher.write(&number.to_le_bytes());
            assert_eq!(siphash([number ^ 5, !number], number), hasher.finish());
        }
    }
}

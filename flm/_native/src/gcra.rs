//! The arithmetic of a rate limit: a token bucket told by one number (GCRA, the generic cell rate algorithm).
//!
//! A bucket is its theoretical arrival time (TAT): the time at which it will be full again, in nanoseconds. A time that has
//! passed is a full bucket, so zeros in a new file are full buckets. A request that is let through moves it one interval
//! further; one that would move it beyond the bucket's size is refused and moves nothing. It knows no clock (time is an
//! argument), no memory and no owner. Every function is total: whatever numbers come in, nothing panics, wraps, or lets
//! through more than the size; sums that do not fit stop at the end of time.

use crate::error::{Error, Result};

/// How late a take may come after its clock was read (a worker stopped in between), before its time is taken for wrong. A
/// TAT further ahead than the bucket's size and this is what a larger limit, now replaced, left behind.
pub const LATE_NS: u64 = 10_000_000_000;

/// A rate and a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    interval_ns: u64,
    size_ns: u64,
}

impl Limit {
    /// One token each `interval_ns`, at most `burst` at once. No limit at all is not a limit: neither may be 0. A bucket
    /// that takes over 584 years to fill (2^64 ns) is taken for one of 584 years.
    pub fn new(interval_ns: u64, burst: u32) -> Result<Limit> {
        if interval_ns == 0 || burst == 0 {
            return Err(Error::Argument("a limit has an interval and a burst of 1 at least"));
        }
        Ok(Limit {
            interval_ns,
            size_ns: interval_ns.saturating_mul(u64::from(burst)),
        })
    }
}

/// What a take found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Whole tokens left.
    pub remaining: u32,
    /// Nanoseconds until the bucket is full, if nobody takes.
    pub full_in_ns: u64,
    /// Nanoseconds until a take would be let through; 0 while tokens are left.
    pub next_in_ns: u64,
}

/// Takes a token from a bucket whose time is `tat`, at `now_ns`: what was found, and the bucket's new time.
pub fn take(tat: u64, limit: Limit, now_ns: u64) -> (Outcome, u64) {
    let Limit { interval_ns, size_ns } = limit;
    // The time of an empty bucket.
    let empty = now_ns.saturating_add(size_ns);
    let tat = if tat > empty.saturating_add(LATE_NS) {
        empty
    } else {
        tat
    };
    let start = tat.max(now_ns);
    let room = empty.saturating_sub(start);
    let allowed = room >= interval_ns;
    let (left, full_at) = if allowed {
        (room - interval_ns, start + interval_ns) // at most `empty`
    } else {
        (room, start)
    };
    let outcome = Outcome {
        allowed,
        remaining: u32::try_from(left / interval_ns).unwrap_or(u32::MAX),
        full_in_ns: full_at - now_ns,
        next_in_ns: interval_ns
            .saturating_sub(left)
            .saturating_add(full_at.saturating_sub(empty)),
    };
    (outcome, if allowed { full_at } else { tat })
}

/// What is given back of a token taken at `taken_ns`. The bucket may have filled since, and the token with it, so what has
/// refilled meanwhile is not given a second time.
pub fn refund(interval_ns: u64, taken_ns: u64, now_ns: u64) -> u64 {
    interval_ns.saturating_sub(now_ns.saturating_sub(taken_ns))
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use super::*;

    /// Numbers of all sizes, the extreme ones often: xorshift, shifted by a random width.
    pub(crate) struct Numbers(pub(crate) u64);

    impl Numbers {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            match self.0 % 11 {
                0 => 0,
                1 => u64::MAX - (self.0 >> 60),
                _ => self.0.rotate_left(31) >> (self.0 >> 58),
            }
        }

        pub(crate) fn limit(&mut self) -> (Limit, u64, u32) {
            let (interval, burst) = (self.next().max(1), (self.next() as u32).max(1));
            (Limit::new(interval, burst).unwrap(), interval, burst)
        }
    }

    /// Any state, limit and time, also backwards: tokens stay in [0, burst], and the sums are those of exact arithmetic.
    #[test]
    fn any_numbers_give_what_exact_arithmetic_gives() {
        let mut numbers = Numbers(0x2545_F491_4F6C_DD1D);
        let mut seen = [0; 2];
        for _ in 0..300_000 {
            let (tat, now) = (numbers.next(), numbers.next());
            let (limit, interval, burst) = numbers.limit();
            let (found, after) = take(tat, limit, now);
            seen[usize::from(found.allowed)] += 1;
            assert!(found.remaining <= burst - u32::from(found.allowed));
            assert_eq!(found.next_in_ns == 0, found.remaining > 0);
            let wide = |n: u64| i128::from(n);
            let empty = (wide(now) + wide(interval) * i128::from(burst)).min(wide(u64::MAX));
            let found_tat = if wide(tat) > empty + wide(LATE_NS) {
                empty
            } else {
                wide(tat)
            };
            let start = found_tat.max(wide(now));
            assert_eq!(found.allowed, start + wide(interval) <= empty);
            assert_eq!(
                wide(after),
                if found.allowed {
                    start + wide(interval)
                } else {
                    found_tat
                }
            );
            if found.allowed {
                assert_eq!(wide(found.full_in_ns), wide(after) - wide(now));
                assert_eq!(i128::from(found.remaining), (empty - wide(after)) / wide(interval));
            } else {
                assert_eq!(found.remaining, 0);
                assert_eq!(
                    wide(found.next_in_ns),
                    (start + wide(interval) - empty).min(wide(u64::MAX))
                );
            }
        }
        assert!(seen.iter().all(|count| *count > 30_000), "{seen:?}");
    }

    /// A bucket against one that counts tokens, in steps of time of all kinds.
    #[test]
    fn a_long_use_grants_the_burst_and_the_rate_and_no_more() {
        let mut numbers = Numbers(7);
        for round in 0..300 {
            let (interval, burst) = (1 + numbers.next() % 1000, 1 + (numbers.next() % 9) as u32);
            let limit = Limit::new(interval, burst).unwrap();
            // What a bucket holds, in parts of a token: `interval` of them are one.
            let size = interval * u64::from(burst);
            let (mut tat, mut now, mut parts) = (0, size + round, size);
            for _ in 0..400 {
                let step = match numbers.next() % 4 {
                    0 | 1 => 0,
                    2 => numbers.next() % (2 * interval),
                    _ => numbers.next() % (2 * size),
                };
                now += step;
                parts = (parts + step).min(size);
                let (found, after) = take(tat, limit, now);
                assert_eq!(found.allowed, parts >= interval);
                parts -= if found.allowed { interval } else { 0 };
                assert_eq!(u64::from(found.remaining), parts / interval);
                assert_eq!(found.full_in_ns, size - parts);
                assert_eq!(found.next_in_ns, interval.saturating_sub(parts));
                tat = after;
            }
        }
    }

    #[test]
    fn a_refused_request_passes_exactly_when_it_was_told_to_come_again() {
        let mut numbers = Numbers(3);
        let mut refused = 0;
        for _ in 0..50_000 {
            let (limit, ..) = numbers.limit();
            let (tat, now) = (numbers.next(), numbers.next());
            let (found, after) = take(tat, limit, now);
            let Some(then) = now.checked_add(found.next_in_ns).filter(|then| *then < u64::MAX >> 1) else {
                continue;
            };
            if !found.allowed && limit.size_ns < u64::MAX >> 1 {
                refused += 1;
                assert!(!take(after, limit, then - 1).0.allowed);
                assert!(take(after, limit, then).0.allowed);
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_grants_nothing() {
        let limit = Limit::new(1_000_000, 5).unwrap();
        let mut tat = 0;
        let granted = |tat: &mut u64, now| {
            (0..20)
                .filter(|_| {
                    let (found, after) = take(*tat, limit, now);
                    *tat = after;
                    found.allowed
                })
                .count()
        };
        assert_eq!(granted(&mut tat, 50_000_000_000), 5);
        for now in [50_000_000_000, 49_999_999_999, 45_000_000_000, 40_000_000_001] {
            assert_eq!(granted(&mut tat, now), 0, "{now}");
        }
        assert_eq!(granted(&mut tat, 50_002_000_000), 2); // and nothing was forgotten
    }

    /// A minute's limit with a large burst is replaced by a second's with a small one: what the old one left behind must
    /// not lock anybody out.
    #[test]
    fn a_smaller_limit_holds_at_once() {
        let (large, small) = (
            Limit::new(60_000_000_000, 100).unwrap(),
            Limit::new(1_000_000_000, 3).unwrap(),
        );
        let now = 1_000_000_000_000_000;
        let mut tat = 0;
        (0..100).for_each(|_| tat = take(tat, large, now).1);
        let (found, after) = take(tat, small, now);
        assert_eq!(
            (found.allowed, found.next_in_ns, found.full_in_ns),
            (false, 1_000_000_000, 3_000_000_000)
        );
        assert!(take(after, small, now + 1_000_000_000).0.allowed);
    }

    /// What is given back never makes more of the requests that stood than the limit grants without the one given back.
    #[test]
    fn a_token_given_back_late_is_not_given_twice() {
        let limit = Limit::new(1000, 1).unwrap();
        let (first, tat) = take(0, limit, 10_000);
        let (second, tat) = take(tat, limit, 11_000);
        assert!(first.allowed && second.allowed);
        let tat = tat - refund(1000, 10_000, 11_000);
        assert!(!take(tat, limit, 11_000).0.allowed);
        assert_eq!(refund(1000, 10_000, 10_000), 1000);
        assert_eq!(refund(1000, 10_000, 9_000), 1000);
        assert_eq!(refund(1000, 0, u64::MAX), 0);
    }

    #[test]
    fn no_limit_is_not_a_limit() {
        assert!(Limit::new(0, 1).is_err() && Limit::new(1, 0).is_err());
        assert_eq!(Limit::new(u64::MAX, u32::MAX).unwrap().size_ns, u64::MAX);
    }
}

//! Tests of the buckets' file that need to see its places. Several processes at once: tests/native/.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use super::*;
use crate::gcra::tests::Numbers;
use crate::mapping::tests::scratch;

const BOOT: [u8; BOOT_ID_LEN] = *b"boot id 16 bytes";
const SMALL: Sizes = Sizes {
    keys: 64,
    addresses: 16,
    overflow: 8,
};

fn made(sizes: Sizes) -> (File, Buckets) {
    let file = scratch();
    let buckets = Buckets::create(file.as_fd(), BOOT, sizes).unwrap();
    (file, buckets)
}

fn limit(interval_ns: u64, burst: u32) -> Limit {
    Limit::new(interval_ns, burst).unwrap()
}

fn refusal(attached: Result<Buckets>) -> String {
    attached.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn every_key_slot_has_a_bucket_of_its_own_and_neighbours_lie_apart() {
    let (_file, buckets) = made(SMALL);
    let places: Vec<usize> = (0..64).map(|slot| buckets.place_of(slot)).collect();
    assert!((0..64).all(|slot| buckets.slot_at(places[slot]) == slot as u64));
    assert!((1..64).all(|slot| places[slot] / LINE_WORDS != places[slot - 1] / LINE_WORDS));
    for slot in 0..64 {
        let found = buckets.take_key(slot, limit(10, 100), 5).unwrap();
        assert_eq!((found.allowed, found.remaining), (true, 99));
    }
    for slot in [64, 65, usize::MAX] {
        let refused = buckets.take_key(slot, limit(10, 100), 5).unwrap_err().to_string();
        assert!(refused.contains("made for 64"), "{refused}");
        assert!(buckets.give_back_key(slot, 1, 1, 1).is_err());
    }
}

/// Every bucket charged once: none of them lies upon another, whichever section it is in.
#[test]
fn no_two_buckets_share_a_word() {
    let (_file, buckets) = made(SMALL);
    let one = limit(10, 1);
    assert!(buckets.take_global(one, 5).allowed);
    assert!((0..64).all(|slot| buckets.take_key(slot, one, 5).unwrap().allowed));
    let mut charged = BTreeMap::new();
    for table in [Table::Requests, Table::Failures] {
        let mut granted = 0;
        for owner in 0..1000 {
            granted += usize::from(buckets.take_address(table, owner, one, 5).0.allowed);
        }
        assert_eq!(granted, SMALL.addresses + SMALL.overflow);
        charged.insert(table as usize, granted);
    }
    let live = buckets.live(5, usize::MAX);
    assert_eq!(live.len(), 1 + 64 + charged.values().sum::<usize>());
    assert!(live.iter().all(|(_, _, tat)| *tat == 15));
    assert!(buckets.live(15, usize::MAX).is_empty());
}

#[test]
fn what_is_listed_is_what_was_charged_the_longest_first() {
    let (_file, buckets) = made(SMALL);
    for (slot, times) in [(3, 2), (40, 5), (9, 1), (63, 3)] {
        (0..times).for_each(|_| assert!(buckets.take_key(slot, limit(10, 9), 100).unwrap().allowed));
    }
    buckets.take_address(Table::Failures, u64::MAX, limit(10, 9), 100);
    buckets.take_global(limit(10, 9), 100);
    let keys = [(40, 150), (63, 130), (3, 120), (9, 110)].map(|(slot, tat)| (Kind::Key, slot, tat));
    let failed = (Kind::Address(Table::Failures), u64::MAX, 110);
    let all = [&[(Kind::Global, 0, 110)], &keys[..], &[failed]].concat();
    assert_eq!(buckets.live(100, 100), all);
    assert_eq!(buckets.live(100, 2), [&all[..3], &all[5..]].concat());
    assert_eq!(buckets.live(110, 100), keys[..3].to_vec());
    assert!(buckets.live(100, 0).is_empty());
}

/// A full table shares a few buckets out among all who found their place taken.
#[test]
fn a_full_table_lets_no_more_through_than_its_buckets_hold() {
    let (_file, buckets) = made(SMALL);
    let (burst, places) = (5, (SMALL.addresses + SMALL.overflow) as u64);
    let mut granted = 0;
    for step in 0..100 {
        for owner in 0..400 {
            let (found, _) = buckets.take_address(Table::Requests, owner, limit(1000, burst), 1_000_000 + step * 10);
            granted += u64::from(found.allowed);
        }
    }
    assert_eq!(granted, places * u64::from(burst)); // 990 of 1000 ns: no token yet
                                                    // Nor later, when the slots change hands.
    for step in 0..1000 {
        for owner in 0..400 {
            let (found, _) = buckets.take_address(Table::Requests, owner, limit(1000, burst), 1_001_000 + step * 100);
            granted += u64::from(found.allowed);
        }
    }
    assert!(granted <= places * (u64::from(burst) + 101), "{granted}");
}

/// Many owners on few places, against each one's own ledger: from its slot an owner gets what it has not taken itself,
/// whoever had the slot in between.
#[test]
fn an_owner_pays_for_itself_alone() {
    let (_file, buckets) = made(SMALL);
    let (interval, burst) = (50, 4);
    let mut numbers = Numbers(11);
    let mut now = 1_000_000;
    // When each owner's bucket will be full, by what it took itself.
    let mut ledger: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut seen, mut moved) = ([0; 3], 0);
    for _ in 0..100_000 {
        now += numbers.next() % 7;
        let owner = numbers.next() % 40;
        let (slot, overflow) = buckets.places(Table::Requests, owner);
        let (held_by, (charged_last, owed)) = (Slot::load(slot).0, Slot::load(overflow));
        let (found, shared) = buckets.take_address(Table::Requests, owner, limit(interval, burst), now);
        if shared {
            assert_ne!(held_by, owner);
            seen[2] += 1;
            continue;
        }
        let brought = if held_by != owner && charged_last == owner {
            owed
        } else {
            0
        };
        let start = ledger.get(&owner).copied().unwrap_or(0).max(brought).max(now);
        assert_eq!(found.allowed, start + interval <= now + interval * u64::from(burst));
        seen[usize::from(found.allowed)] += 1;
        if found.allowed {
            moved += usize::from(held_by != owner);
            assert_eq!(Slot::load(slot), (owner, start + interval));
            ledger.insert(owner, start + interval);
        }
    }
    assert!(seen.iter().all(|count| *count > 500) && moved > 500, "{seen:?} {moved}");
}

#[test]
fn a_token_given_back_goes_where_it_was_taken() {
    let (_file, buckets) = made(SMALL);
    let one = limit(100, 1);
    let (table, now) = (Table::Requests, 1_000);
    let (first, second) = (0..)
        .flat_map(|a| (0..a).map(move |b| (a, b)))
        .find(|(a, b)| std::ptr::eq(buckets.places(table, *a).0, buckets.places(table, *b).0))
        .unwrap();
    assert!(!buckets.take_address(table, first, one, now).1);
    assert!(buckets.take_address(table, second, one, now).1);
    assert!(!buckets.take_address(table, second, one, now).0.allowed);
    buckets.give_back_address(table, second, true, 100, (now, now));
    assert!(!buckets.take_address(table, first, one, now).0.allowed);
    assert!(buckets.take_address(table, second, one, now).0.allowed);
    buckets.give_back_address(table, first, false, 100, (now, now));
    assert!(buckets.take_address(table, first, one, now).0.allowed);
    assert!(buckets.take_global(one, now).allowed);
    buckets.give_back_global(100, now, now + 99); // all but one nanosecond of it has come back by itself
    assert!(!buckets.take_global(one, now + 98).allowed);
    assert!(buckets.take_global(one, now + 99).allowed);
}

#[test]
fn an_owners_place_is_spread_and_depends_on_the_seed() {
    let sizes = Sizes {
        addresses: 1024,
        ..SMALL
    };
    let ((_a, one), (_b, other)) = (made(sizes), made(sizes));
    assert_ne!(one.seed, other.seed);
    let place = |buckets: &Buckets, owner| {
        let (slots, _) = buckets.table(Table::Requests);
        (std::ptr::from_ref(buckets.places(Table::Requests, owner).0) as usize - slots.as_ptr() as usize) / 16
    };
    let mut filled = vec![0; 1024];
    // Neighbouring IPv4 addresses, as callers number them.
    let owners = (0..4096).map(|n| 0x0000_ffff_0000_0000 | n);
    owners.clone().for_each(|owner| filled[place(&one, owner)] += 1);
    assert!(filled.iter().all(|count| *count < 20), "{:?}", filled.iter().max());
    let same = owners
        .filter(|owner| place(&one, *owner) == place(&other, *owner))
        .count();
    assert!(same < 40, "{same}");
}

#[test]
fn buckets_of_another_boot_are_refused_by_name() {
    let (file, buckets) = made(SMALL);
    buckets.take_key(1, limit(10, 1), 5).unwrap();
    let again = Buckets::attach(file.as_fd(), BOOT).unwrap();
    assert!(!again.take_key(1, limit(10, 1), 5).unwrap().allowed);
    assert_eq!((again.sizes(), again.seed), (SMALL, buckets.seed));
    for byte in 0..BOOT_ID_LEN {
        let mut other = BOOT;
        other[byte] ^= 1;
        assert!(refusal(Buckets::attach(file.as_fd(), other)).contains("another boot"));
    }
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let cases = [
        (0, 32),
        (0, 65),
        (1, 0),
        (1, u64::MAX),
        (2, 1 << 40),
        (3, 4104),
        (4, 4096),
        (5, 1),
        (6, u64::MAX),
    ];
    for (word, value) in cases {
        let (file, buckets) = made(SMALL);
        buckets.mapping.word(SIZES_WORD + word).store(value, Ordering::Relaxed);
        assert!(
            matches!(Buckets::attach(file.as_fd(), BOOT), Err(Error::Layout(_))),
            "{word} {value}"
        );
    }
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    for wrong in [0, 1, 4, 12, SIZE_MAX * 2, usize::MAX] {
        for sizes in [
            Sizes { keys: wrong, ..SMALL },
            Sizes {
                addresses: wrong,
                ..SMALL
            },
            Sizes {
                overflow: wrong,
                ..SMALL
            },
        ] {
            let made = Buckets::create(scratch().as_fd(), BOOT, sizes);
            assert!(matches!(made, Err(Error::Argument(_))), "{sizes:?}");
        }
    }
}

#[test]
fn a_processor_that_cannot_is_refused() {
    assert!(lock_free(true).is_ok());
    assert!(lock_free(false).unwrap_err().to_string().contains("cmpxchg16b"));
}

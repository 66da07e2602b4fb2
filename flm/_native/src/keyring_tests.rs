//! Tests of the keyring that need to see its entries. Several processes at once: tests/native/.

use std::fs::File;
use std::os::fd::AsFd;

use super::*;
use crate::keyformat::SALT_LEN;
use crate::mapping::tests::scratch;
use crate::record::DUMMY;

const PEPPER: [u8; 32] = [9; 32];

/// A record whose id is made from a number.
fn numbered(number: u64) -> Record {
    let text = format!("{number:012}");
    Record {
        id: text.as_bytes().try_into().unwrap(),
        slot: number as u32,
        revoked: false,
        ..DUMMY
    }
}

fn made(capacity: usize) -> (File, Keyring) {
    let file = scratch();
    let keyring = Keyring::create(file.as_fd(), capacity).unwrap();
    (file, keyring)
}

/// A key in the ring, and its record.
fn key_in(keyring: &Keyring) -> (String, Record) {
    let (key, id) = keyformat::generate().unwrap();
    let salt = [3; SALT_LEN];
    let digest = Hasher::new(&PEPPER)
        .unwrap()
        .digest(&salt, &keyformat::parse(key.as_bytes()).unwrap());
    let record = Record {
        id,
        slot: 5,
        salt,
        digest,
        expires_at_ms: 0,
        revoked: false,
        scopes: 9,
    };
    keyring.upsert(&record).unwrap();
    (key, record)
}

/// Entries a reader looks at for an id that is not there.
fn chain(keyring: &Keyring, mut at: usize) -> usize {
    let mut length = 1;
    while keyring.id_at(at).is_some() {
        at = keyring.after(at);
        length += 1;
    }
    length
}

fn longest_chain(keyring: &Keyring) -> usize {
    (0..keyring.entries).map(|at| chain(keyring, at)).max().unwrap()
}

#[test]
fn only_the_valid_key_is_accepted() {
    let (file, writer) = made(4);
    let (key, record) = key_in(&writer);
    let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
    let verify = |key: &str, now| reader.verify(key.as_bytes(), now).unwrap();
    assert_eq!(verify(&key, u64::MAX), Some((record.id, 5, 9)));
    writer
        .upsert(&Record {
            expires_at_ms: 1000,
            ..record.clone()
        })
        .unwrap();
    assert_eq!(verify(&key, 999), Some((record.id, 5, 9)));
    assert_eq!(verify(&key, 1000), None);
    writer
        .upsert(&Record {
            revoked: true,
            ..record.clone()
        })
        .unwrap();
    assert_eq!(verify(&key, 0), None);
    writer
        .upsert(&Record {
            digest: [0; 32],
            ..record.clone()
        })
        .unwrap();
    assert_eq!(verify(&key, 0), None);
    writer.upsert(&record).unwrap();
    assert_eq!(verify(&key, 0), Some((record.id, 5, 9)));
    assert!(writer.remove(&record.id).unwrap());
    assert_eq!(verify(&key, 0), None);
    assert!(Keyring::attach(file.as_fd(), &[8; 32])
        .unwrap()
        .verify(key.as_bytes(), 0)
        .unwrap()
        .is_none());
}

#[test]
fn the_stand_in_for_an_unknown_id_accepts_nothing() {
    let (file, writer) = made(1);
    // An id of zeros cannot be presented; were it, it would not be known.
    assert!(!writer.remove(&DUMMY.id).unwrap());
    let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
    let (key, _) = keyformat::generate().unwrap();
    assert_eq!(reader.verify(key.as_bytes(), 0).unwrap(), None);
}

#[test]
fn a_full_ring_still_changes_and_frees() {
    let (_file, ring) = made(3);
    (0..3).for_each(|n| ring.upsert(&numbered(n)).unwrap());
    assert!(ring
        .upsert(&numbered(3))
        .unwrap_err()
        .to_string()
        .contains("holds 3 keys"));
    ring.upsert(&Record {
        slot: 77,
        ..numbered(1)
    })
    .unwrap();
    assert_eq!(ring.record(&numbered(1).id).unwrap().slot, 77);
    assert!(ring.remove(&numbered(0).id).unwrap());
    assert!(!ring.remove(&numbered(0).id).unwrap());
    ring.upsert(&numbered(3)).unwrap();
    assert_eq!(ring.len(), 3);
}

#[test]
fn capacities_out_of_bounds_are_refused() {
    for capacity in [0, CAPACITY_MAX + 1, usize::MAX] {
        assert!(
            matches!(Keyring::create(scratch().as_fd(), capacity), Err(Error::Argument(_))),
            "{capacity}"
        );
    }
}

#[test]
fn only_a_writer_writes_and_only_a_reader_verifies() {
    let (file, writer) = made(1);
    let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
    assert!(reader.upsert(&numbered(1)).is_err() && reader.remove(&numbered(1).id).is_err());
    assert!(writer.verify(b"", 0).is_err());
}

/// The table against a plain map, under adds, changes and removals that keep it near full; then its chains are still short.
#[test]
fn long_use_neither_loses_a_key_nor_lengthens_the_chains() {
    let (_file, ring) = made(512);
    let mut model = std::collections::BTreeMap::new();
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    for step in 0..60_000u64 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = if model.len() == 512 || random % 3 == 0 {
            let nth = random as usize % model.len().max(1);
            model.keys().nth(nth).copied().unwrap_or(step)
        } else {
            step
        };
        if model.len() == 512 || (model.contains_key(&number) && random & 64 == 0) {
            assert!(ring.remove(&numbered(number).id).unwrap());
            model.remove(&number);
        } else {
            let record = Record {
                slot: step as u32,
                ..numbered(number)
            };
            ring.upsert(&record).unwrap();
            model.insert(number, record);
        }
    }
    assert_eq!(ring.len(), model.len());
    assert_eq!(ring.ids().len(), model.len());
    assert!(model
        .iter()
        .all(|(number, record)| ring.record(&numbered(*number).id).as_ref() == Some(record)));
    assert!(longest_chain(&ring) < 60, "{}", longest_chain(&ring));
}

#[test]
fn a_writer_killed_anywhere_leaves_the_record_before_its_last_call() {
    let (file, writer) = made(8);
    let (key, record) = key_in(&writer);
    let Place::At(at) = writer.find(&record.id).unwrap() else {
        panic!("the key is there")
    };
    let entry = writer.entry(at);
    let spare = 1 - (entry[VERSION].load(Ordering::Relaxed) & 1) as usize;
    let revoked = pack(&Record {
        revoked: true,
        slot: 9,
        ..record.clone()
    });
    for (place, word) in entry[RECORD_AT[spare]..].iter().zip(revoked) {
        place.store(word, Ordering::Relaxed); // killed after this word
        let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
        assert_eq!(reader.verify(key.as_bytes(), 0).unwrap(), Some((record.id, 5, 9)));
    }
    let heir = Keyring::open_writer(file.as_fd()).unwrap();
    assert_eq!(heir.len(), 1);
    heir.upsert(&Record {
        revoked: true,
        ..record
    })
    .unwrap();
    assert_eq!(
        Keyring::attach(file.as_fd(), &PEPPER)
            .unwrap()
            .verify(key.as_bytes(), 0)
            .unwrap(),
        None
    );
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    for (word, value) in [
        (ENTRIES_WORD, 3),
        (ENTRIES_WORD, 1 << 40),
        (CAPACITY_WORD, 1 << 30),
        (TABLE_OFFSET_WORD, 4100),
        (TABLE_OFFSET_WORD, u64::MAX),
    ] {
        let (file, writer) = made(8);
        writer.mapping.word(word).store(value, Ordering::Relaxed);
        assert!(
            matches!(Keyring::open_writer(file.as_fd()), Err(Error::Layout(_))),
            "{word} {value}"
        );
    }
}

/// Keys whose chains overlap, and the words of every entry: enough to replay a removal that was cut short.
fn crowded() -> (File, Keyring, Vec<Record>) {
    let (file, ring) = made(64);
    let records: Vec<Record> = (0..64).map(numbered).collect();
    records.iter().for_each(|record| ring.upsert(record).unwrap());
    (file, ring, records)
}

#[test]
fn a_key_that_a_killed_writer_left_twice_is_mended() {
    let mut moved = 0;
    for victim in 0..64 {
        let (file, ring, records) = crowded();
        let Place::At(gap) = ring.find(&records[victim].id).unwrap() else {
            panic!("the key is there")
        };
        let next = ring.after(gap);
        let Some(words) = ring.load(next, copy_words).filter(|words| words[0] != EMPTY) else {
            continue;
        };
        if ring.home(words[1], words[2] as u32) == next {
            continue; // it stands at its home and does not move
        }
        moved += 1;
        ring.store(gap, &words); // the writer is killed here, before it overwrites `next`
        let heir = Keyring::open_writer(file.as_fd()).unwrap();
        assert_eq!(heir.len(), 63);
        for record in &records {
            let expected = (record.id != records[victim].id).then_some(record);
            assert_eq!(heir.record(&record.id).as_ref(), expected);
            assert_eq!(heir.remove(&record.id).unwrap(), expected.is_some());
            assert_eq!(heir.record(&record.id), None);
        }
        assert!((0..heir.entries).all(|at| heir.id_at(at).is_none()));
    }
    assert!(moved > 0);
}

#[test]
fn readers_find_every_key_while_others_are_removed_around_it() {
    let (file, ring, records) = crowded();
    let (stay, go) = records.split_at(16);
    let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                go.iter().for_each(|record| assert!(ring.remove(&record.id).unwrap()));
                go.iter().for_each(|record| ring.upsert(record).unwrap());
            }
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            stay.iter()
                .for_each(|record| assert_eq!(reader.record(&record.id).as_ref(), Some(record)));
        }
    });
    assert!(ring.moves() > 0);
}

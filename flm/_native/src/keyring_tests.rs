//! Tests of the keyring that need to see its rooms. Several processes at once: tests/native/.

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

fn moved(ring: &Keyring) -> u64 {
    ring.mapping.word(MOVES_WORD).load(Ordering::Relaxed)
}

/// Exactly these keys are in the ring, each once.
fn holds_exactly(ring: &Keyring, records: &[Record]) -> bool {
    let used = ring.all_rooms().filter(|room| id_of(&ring.load(*room)).is_some());
    [ring.len(), ring.ids().len(), used.count()] == [records.len(); 3]
        && records
            .iter()
            .all(|record| ring.record(&record.id).as_ref() == Some(record))
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

/// The table against a plain map, under adds, changes and removals that keep it near full.
#[test]
fn long_use_neither_loses_a_key_nor_doubles_one() {
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
    assert!(holds_exactly(&ring, &model.into_values().collect::<Vec<_>>()));
}

#[test]
fn a_writer_killed_anywhere_leaves_the_record_before_its_last_call() {
    let (file, writer) = made(8);
    let (key, record) = key_in(&writer);
    let room = writer.room(writer.find(&record.id).unwrap());
    let spare = 1 - (room[VERSION].load(Ordering::Relaxed) & 1) as usize;
    let revoked = pack(&Record {
        revoked: true,
        slot: 9,
        ..record.clone()
    });
    for (place, word) in room[COPY_AT[spare]..].iter().zip(revoked) {
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
        (CAPACITY_WORD, 0),
        (CAPACITY_WORD, 65),
        (CAPACITY_WORD, 1 << 30),
        (CAPACITY_WORD, u64::MAX),
        (HALF_WORD, 32),
        (HALF_WORD, u64::MAX),
        (TABLE_OFFSET_WORD, 4100),
    ] {
        let (file, writer) = made(8);
        writer.mapping.word(word).store(value, Ordering::Relaxed);
        assert!(
            matches!(Keyring::open_writer(file.as_fd()), Err(Error::Layout(_))),
            "{word} {value}"
        );
    }
}

/// Keys with the same two buckets: as many as have room there, and one more.
fn meeting(ring: &Keyring) -> Vec<Record> {
    let at = ring.buckets(&numbered(0).id);
    let there = |record: &Record| ring.buckets(&record.id) == at;
    (0..).map(numbered).filter(there).take(2 * BUCKET + 1).collect()
}

/// A ring in which the two buckets of the last of the records are full, of keys that may all move away.
fn crowded() -> (File, Keyring, Vec<Record>) {
    let (file, ring) = made(64);
    let last = numbered(0);
    let mut records: Vec<Record> = Vec::new();
    for bucket in ring.buckets(&last.id) {
        let neighbour = |record: &Record| {
            let buckets = ring.buckets(&record.id);
            buckets != ring.buckets(&last.id) && buckets.contains(&bucket)
        };
        for (record, room) in (1..).map(numbered).filter(neighbour).zip(rooms(bucket)) {
            ring.store(room, &pack(&record));
            records.push(record);
        }
    }
    drop(ring);
    let ring = Keyring::open_writer(file.as_fd()).unwrap();
    assert!(holds_exactly(&ring, &records));
    records.push(last);
    (file, ring, records)
}

#[test]
fn a_key_moves_to_make_room() {
    let (_file, ring, records) = crowded();
    let new = records.last().unwrap();
    assert_eq!((ring.free_room(ring.buckets(&new.id)), moved(&ring)), (None, 0));
    ring.upsert(new).unwrap();
    assert_eq!(moved(&ring), 1);
    assert!(holds_exactly(&ring, &records));
}

#[test]
fn a_move_that_was_cut_short_is_mended() {
    for counted in [false, true] {
        let (file, ring, records) = crowded();
        let (new, there) = records.split_last().unwrap();
        let of_new = ring.buckets(&new.id).into_iter().flat_map(rooms);
        for room in of_new {
            assert!(ring.relocate(room)); // the writer is killed here, before it overwrites `room`
            if counted {
                moves::count(ring.mapping.word(MOVES_WORD));
            }
            assert!(there
                .iter()
                .all(|record| ring.record(&record.id).as_ref() == Some(record)));
            let before = moved(&ring);
            let heir = Keyring::open_writer(file.as_fd()).unwrap();
            assert!(holds_exactly(&heir, there) && moved(&heir) > before);
        }
        let heir = Keyring::open_writer(file.as_fd()).unwrap();
        heir.upsert(new).unwrap();
        assert!(there.iter().all(|record| heir.remove(&record.id).unwrap()));
        assert!(holds_exactly(&heir, std::slice::from_ref(new)));
    }
}

#[test]
fn more_keys_than_two_buckets_hold_are_refused() {
    let (_file, ring) = made(64);
    let records = meeting(&ring);
    let (last, first) = records.split_last().unwrap();
    first.iter().for_each(|record| ring.upsert(record).unwrap());
    assert!(ring.upsert(last).unwrap_err().to_string().contains("holds 8 keys"));
    assert!(holds_exactly(&ring, first));
}

#[test]
fn every_table_takes_as_many_keys_as_it_was_made_for() {
    for capacity in [1, 16, 17, 64, 1024, 1 << 14] {
        let (_file, ring) = made(capacity);
        (0..capacity as u64).for_each(|number| ring.upsert(&numbered(number)).unwrap());
        assert_eq!(ring.len(), capacity);
        assert!(moved(&ring) < capacity as u64 / 500 + 3, "{}", moved(&ring));
    }
}

/// Both halves are used evenly, and where an id belongs is not foreseen without the seed.
#[test]
fn buckets_are_spread_and_depend_on_the_seed() {
    let ((_, ring), (_, other)) = (made(64), made(64));
    let mut ids = vec![0; 32];
    (0..3200).for_each(|number| {
        ring.buckets(&numbered(number).id)
            .into_iter()
            .for_each(|bucket| ids[bucket] += 1)
    });
    assert!(ids.iter().all(|count| (120..290).contains(count)), "{ids:?}"); // 200 expected, standard deviation 14
    let alike = (0..3200).filter(|number| ring.buckets(&numbered(*number).id) == other.buckets(&numbered(*number).id));
    assert!(alike.count() < 50); // 13 expected
}

#[test]
fn readers_find_every_key_while_it_moves() {
    let (file, ring) = made(64);
    let records: Vec<Record> = (0..24).map(numbered).collect();
    records.iter().for_each(|record| ring.upsert(record).unwrap());
    let reader = Keyring::attach(file.as_fd(), &PEPPER).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for record in records.iter().cycle().take(20_000) {
                let room = ring.find(&record.id).unwrap();
                assert!(ring.relocate(room));
                moves::count(ring.mapping.word(MOVES_WORD));
                ring.store(room, &NONE);
            }
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            records
                .iter()
                .for_each(|record| assert_eq!(reader.record(&record.id).as_ref(), Some(record)));
        }
    });
    assert!(holds_exactly(&ring, &records));
}

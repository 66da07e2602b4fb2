//! Tests of charging: on threads, at the worst moment, and, under cfg(loom), in every order the memory model allows. Several
//! processes at once: tests/native/. Each is also held against `Split`, a slot whose owner and time change one after the
//! other, which must be caught.

use super::*;

const INTERVAL: u64 = 100;
const NOW: u64 = 10;

/// Two tokens, one each `INTERVAL`.
fn limit() -> Limit {
    Limit::new(INTERVAL, 2).unwrap()
}

/// The wrong way: who wins the owner then writes the time.
struct Split {
    owner: AtomicU64,
    tat: AtomicU64,
    /// What another process does between the two; once.
    #[cfg(not(loom))]
    between: plain::Between<Split>,
}

impl Split {
    fn new(owner: u64, tat: u64) -> Split {
        Split {
            owner: AtomicU64::new(owner),
            tat: AtomicU64::new(tat),
            #[cfg(not(loom))]
            between: plain::Between::default(),
        }
    }
}

impl Slot for Split {
    fn load(&self) -> (u64, u64) {
        (self.owner.load(Ordering::Relaxed), self.tat.load(Ordering::Relaxed))
    }

    fn swap(&self, seen: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
        let won = self
            .owner
            .compare_exchange(seen.0, new.0, Ordering::Relaxed, Ordering::Relaxed);
        if won.is_err() {
            return Err(self.load());
        }
        #[cfg(not(loom))]
        self.between.happen(self);
        self.tat.store(new.1, Ordering::Relaxed);
        Ok(())
    }
}

/// One owner, its own overflow bucket, and how many requests were let through from each of its buckets.
struct Owner<S> {
    number: u64,
    overflow: S,
}

impl<S: Slot> Owner<S> {
    fn new(number: u64, overflow: S) -> Owner<S> {
        Owner { number, overflow }
    }

    /// Takes so many times; how often it was let through from the slot, and from the overflow bucket.
    fn takes(&self, slot: &S, times: usize) -> [u64; 2] {
        let mut granted = [0, 0];
        for _ in 0..times {
            let (found, shared) = take_owned(slot, &self.overflow, self.number, limit(), NOW);
            granted[usize::from(shared)] += u64::from(found.allowed);
        }
        granted
    }
}

/// At one time nobody's bucket runs full, so each holds exactly what its owner was granted from it.
fn assert_ledger<S: Slot>(slot: &S, owners: &[(&Owner<S>, [u64; 2])]) {
    let (holder, tat) = slot.load();
    let owed = |granted: u64| if granted == 0 { 0 } else { NOW + granted * INTERVAL };
    for (owner, [from_slot, from_overflow]) in owners {
        let held = if owner.number == holder { tat } else { 0 };
        assert_eq!(held, owed(*from_slot), "slot of owner {}", owner.number);
        let (_, overflow) = owner.overflow.load();
        assert_eq!(overflow, owed(*from_overflow), "overflow of owner {}", owner.number);
    }
}

#[cfg(not(loom))]
mod plain {
    use super::*;
    use portable_atomic::AtomicU128;
    use std::cell::RefCell;

    type Deed<S> = Box<dyn FnOnce(&S)>;

    /// What happens once, in the middle of a swap.
    pub(super) struct Between<S>(RefCell<Option<Deed<S>>>);

    impl<S> Default for Between<S> {
        fn default() -> Self {
            Between(RefCell::new(None))
        }
    }

    impl<S> Between<S> {
        pub(super) fn happen(&self, slot: &S) {
            let deed = self.0.borrow_mut().take();
            if let Some(deed) = deed {
                deed(slot);
            }
        }
    }

    /// The real slot, with somebody else at work between look and swap.
    struct Whole {
        pair: AtomicU128,
        between: Between<Whole>,
    }

    impl Slot for Whole {
        fn load(&self) -> (u64, u64) {
            Slot::load(&self.pair)
        }

        fn swap(&self, seen: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
            self.between.happen(self);
            Slot::swap(&self.pair, seen, new)
        }
    }

    fn pair(owner: u64, tat: u64) -> AtomicU128 {
        AtomicU128::new(together((owner, tat)))
    }

    /// A newcomer takes over a slot whose time has passed; in the middle of that another one does the same, and is charged
    /// twice.
    fn reclaimed_in_the_middle<S: Slot + 'static>(slot: &S, between: &Between<S>, fresh: impl Fn() -> S) {
        let (late, early) = (Owner::new(2, fresh()), std::rc::Rc::new(Owner::new(3, fresh())));
        let granted = std::rc::Rc::new(RefCell::new([0, 0]));
        let (other, count) = (early.clone(), granted.clone());
        *between.0.borrow_mut() = Some(Box::new(move |slot| *count.borrow_mut() = other.takes(slot, 2)));
        let got = late.takes(slot, 1);
        assert_ledger(slot, &[(&late, got), (&early, *granted.borrow())]);
        assert_eq!((got, *granted.borrow()), ([0, 1], [2, 0]));
    }

    #[test]
    fn a_slot_reclaimed_in_the_middle_charges_each_for_itself() {
        let fresh = |owner, tat| Whole {
            pair: pair(owner, tat),
            between: Between::default(),
        };
        let slot = fresh(1, NOW - 5);
        reclaimed_in_the_middle(&slot, &slot.between, || fresh(0, 0));
    }

    #[test]
    #[should_panic(expected = "slot of owner")]
    fn owner_and_time_changed_separately_are_caught() {
        let slot = Split::new(1, NOW - 5);
        reclaimed_in_the_middle(&slot, &slot.between, || Split::new(0, 0));
    }

    #[test]
    fn a_slot_is_the_owners_until_its_time_has_passed() {
        let (slot, first, second) = (pair(0, 0), Owner::new(7, pair(0, 0)), Owner::new(8, pair(0, 0)));
        assert_eq!(first.takes(&slot, 3), [2, 0]);
        assert_eq!(second.takes(&slot, 3), [0, 2]);
        let full = NOW + 2 * INTERVAL;
        assert_eq!(Slot::load(&slot), (7, full));
        let (found, shared) = take_owned(&slot, &second.overflow, 8, limit(), full);
        assert!(found.allowed && !shared);
        assert_eq!(Slot::load(&slot), (8, full + INTERVAL));
    }

    /// Else whoever is pushed off its place and gets it back would have two bursts.
    #[test]
    fn a_newcomer_to_a_slot_brings_what_it_owes() {
        let (slot, owner) = (pair(1, NOW + 1), Owner::new(2, pair(0, 0)));
        assert_eq!(owner.takes(&slot, 3), [0, 2]);
        let later = NOW + 1;
        let (found, shared) = take_owned(&slot, &owner.overflow, 2, limit(), later);
        assert_eq!((found.allowed, found.next_in_ns, shared), (false, INTERVAL - 1, false));
        assert_eq!(Slot::load(&slot).0, 1); // refused, and so holds nothing
        let (found, shared) = take_owned(&slot, &owner.overflow, 2, limit(), NOW + INTERVAL);
        assert!(found.allowed && !shared);
        assert_eq!(Slot::load(&slot), (2, NOW + 3 * INTERVAL));
    }

    /// Else a flood that empties the overflow buckets would lock out everybody who has a free slot.
    #[test]
    fn a_newcomer_to_a_slot_does_not_bring_what_others_owe() {
        let (taken, overflow) = (pair(1, NOW + 1), pair(0, 0));
        let takes = |slot, owner| take_owned(slot, &overflow, owner, limit(), NOW);
        assert!((0..2).all(|_| takes(&taken, 2).0.allowed) && !takes(&taken, 3).0.allowed);
        let (found, shared) = takes(&pair(0, 0), 3);
        assert_eq!((found.allowed, found.remaining, shared), (true, 1, false));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_by_its_owner_only() {
        let (slot, owner) = (pair(0, 0), Owner::new(2, pair(0, 0)));
        owner.takes(&slot, 2);
        give_back_owned(&slot, 3, INTERVAL);
        assert_eq!(Slot::load(&slot), (2, NOW + 2 * INTERVAL));
        give_back_owned(&slot, 2, INTERVAL);
        assert_eq!(owner.takes(&slot, 2), [1, 0]);
        let bucket = AtomicU64::new(0);
        assert!((0..2).all(|_| take(&bucket, limit(), NOW).allowed) && !take(&bucket, limit(), NOW).allowed);
        give_back(&bucket, INTERVAL);
        assert!(take(&bucket, limit(), NOW).allowed && !take(&bucket, limit(), NOW).allowed);
        give_back(&bucket, u64::MAX);
        assert_eq!(bucket.load(Ordering::Relaxed), 0);
    }

    /// Threads take twice each for ever new owners at one moment, on one slot whose time runs out all the time: the second
    /// take finds one token less than the first, so nobody else charged the bucket and nobody undid its charge.
    #[test]
    fn threads_that_reclaim_one_slot_charge_each_for_itself() {
        let rounds = if cfg!(miri) { 100 } else { 100_000 };
        let (slot, clock, claims) = (pair(0, 0), AtomicU64::new(1), AtomicU64::new(0));
        let limit = Limit::new(3, 5).unwrap();
        let work = |thread: u64| {
            let overflow = pair(0, 0);
            for round in 0..rounds {
                let owner = thread << 32 | round;
                let now = clock.fetch_add(1, Ordering::Relaxed);
                let (first, apart) = take_owned(&slot, &overflow, owner, limit, now);
                let (second, apart_too) = take_owned(&slot, &overflow, owner, limit, now);
                if first.allowed && !apart && !apart_too {
                    claims.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(
                        (second.allowed, second.remaining),
                        (first.remaining > 0, first.remaining.max(1) - 1)
                    );
                }
            }
        };
        std::thread::scope(|scope| (1..=4).for_each(|thread| drop(scope.spawn(move || work(thread)))));
        assert!(claims.load(Ordering::Relaxed) > rounds / 50);
    }

    /// Every take of these changes the bucket, so one that is lost lets one more through.
    #[test]
    fn threads_at_one_moment_get_the_burst_and_not_one_more() {
        let burst = if cfg!(miri) { 100 } else { 400_000 };
        let (bucket, slot, taken, overflow) = (AtomicU64::new(0), pair(0, 0), pair(1, NOW + 1), pair(0, 0));
        let (granted, gate) = (AtomicU64::new(0), std::sync::Barrier::new(4));
        let limit = Limit::new(7, burst).unwrap();
        let drain = |take: &dyn Fn() -> bool| {
            gate.wait();
            granted.fetch_add((0..).take_while(|_: &u64| take()).count() as u64, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    drain(&|| take(&bucket, limit, NOW).allowed);
                    drain(&|| take_owned(&slot, &taken, 2, limit, NOW).0.allowed);
                    drain(&|| take_owned(&taken, &overflow, 3, limit, NOW).0.allowed);
                });
            }
        });
        assert_eq!(granted.load(Ordering::Relaxed), 3 * u64::from(burst));
    }

    /// Threads share a bucket at times of their own: together they get the burst and the rate, and not one more or less.
    #[test]
    fn threads_that_share_a_bucket_get_exactly_what_it_holds() {
        let end = if cfg!(miri) { 300 } else { 200_000 };
        let (bucket, clock, granted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let limit = Limit::new(7, 50).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| loop {
                    let now = clock.fetch_add(1, Ordering::Relaxed);
                    if now >= end {
                        break;
                    }
                    granted.fetch_add(u64::from(take(&bucket, limit, now).allowed), Ordering::Relaxed);
                });
            }
        });
        let due = (50 + (end - 1) / 7).min(end);
        assert!(
            granted.load(Ordering::Relaxed).abs_diff(due) <= 1,
            "{granted:?} of {due}"
        );
    }
}

#[cfg(loom)]
mod model {
    use super::*;
    use loom::sync::Arc;

    /// A whole slot in one atomic that loom knows: the owner in the top byte.
    struct Packed(AtomicU64);

    fn unpack(both: u64) -> (u64, u64) {
        (both >> 56, both & (u64::MAX >> 8))
    }

    fn pack((owner, tat): (u64, u64)) -> u64 {
        owner << 56 | tat
    }

    impl Slot for Packed {
        fn load(&self) -> (u64, u64) {
            unpack(self.0.load(Ordering::Relaxed))
        }

        fn swap(&self, seen: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
            self.0
                .compare_exchange_weak(pack(seen), pack(new), Ordering::Relaxed, Ordering::Relaxed)
                .map(|_| ())
                .map_err(unpack)
        }
    }

    /// Two newcomers at a slot whose time has passed, one of them taking twice.
    fn reclaim<S: Slot + Send + Sync + 'static>(fresh: impl Fn(u64, u64) -> S) {
        let shared = Arc::new((
            fresh(1, NOW - 5),
            Owner::new(2, fresh(0, 0)),
            Owner::new(3, fresh(0, 0)),
        ));
        let other = Arc::clone(&shared);
        let thread = loom::thread::spawn(move || other.2.takes(&other.0, 2));
        let granted = shared.1.takes(&shared.0, 1);
        let others = thread.join().unwrap();
        assert_eq!(granted.iter().sum::<u64>(), 1);
        assert_eq!(others.iter().sum::<u64>(), 2);
        assert_ledger(&shared.0, &[(&shared.1, granted), (&shared.2, others)]);
    }

    #[test]
    fn a_reclaimed_slot_charges_each_for_itself() {
        loom::model(|| reclaim(|owner, tat| Packed(AtomicU64::new(pack((owner, tat))))));
    }

    #[test]
    #[should_panic(expected = "slot of owner")]
    fn owner_and_time_changed_separately_are_caught() {
        loom::model(|| reclaim(Split::new));
    }

    /// Three takes of two tokens, and one token given back: never lost, never doubled.
    #[test]
    fn a_shared_bucket_is_exact() {
        loom::model(|| {
            let bucket = Arc::new(AtomicU64::new(0));
            let other = Arc::clone(&bucket);
            let thread = loom::thread::spawn(move || (0..2).filter(|_| take(&other, limit(), NOW).allowed).count());
            let mine = take(&bucket, limit(), NOW).allowed;
            if mine {
                give_back(&bucket, INTERVAL);
            }
            let stood = thread.join().unwrap() as u64;
            assert!(stood == 2 || (stood == 1 && mine));
            assert_eq!(bucket.load(Ordering::Relaxed), NOW + stood * INTERVAL);
        });
    }
}

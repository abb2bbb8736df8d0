//! What happens on the exit path: find the counters of a reason, count, and take the time.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, bucket};

/// Codes outside the manuals' tables that a vCPU keeps apart; further ones share the overflow counters.
pub const EXTRA_CODES: usize = 8;
/// Places in a vCPU's [`Table`].
pub const SLOTS: usize = MAX_REASONS + EXTRA_CODES;

/// Where a vCPU keeps its counters: [`SLOTS`] places, each empty until its reason is first seen.
pub trait Table<'a> {
    /// The counters at a place; `None` where there are none or no such place.
    fn get(&self, place: usize) -> Option<&'a Counters>;
}

/// What [`locate`] found.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// These counters.
    Found(&'a Counters),
    /// None yet, and this is where they belong.
    Empty(usize),
    /// None, and no place is left: the overflow counters take it.
    Full,
}

/// Finds the counters of an exit reason, or where they belong.
#[inline]
pub fn locate<'a>(table: &impl Table<'a>, isa: Isa, code: u32) -> Place<'a> {
    match isa.dense(code) {
        Some(place) => match table.get(place) {
            Some(counters) => Place::Found(counters),
            None => Place::Empty(place),
        },
        None => locate_extra(table, code),
    }
}

#[cold]
fn locate_extra<'a>(table: &impl Table<'a>, code: u32) -> Place<'a> {
    for place in MAX_REASONS..SLOTS {
        match table.get(place) {
            None => return Place::Empty(place),
            Some(counters) if counters.code.load(Relaxed) == u64::from(code) => {
                return Place::Found(counters);
            }
            Some(_) => {}
        }
    }
    Place::Full
}

/// The clock of one vCPU: at most one exit is open, between its exit event and its entry event.
#[derive(Debug, Default)]
pub struct Timer<'a> {
    open: Option<Open<'a>>,
}

/// An exit whose entry has not come yet.
#[derive(Clone, Copy, Debug)]
pub struct Open<'a> {
    counters: &'a Counters,
    since: u64,
}

impl<'a> Timer<'a> {
    /// A clock with no exit open.
    pub const fn new() -> Self {
        Self { open: None }
    }

    /// The vCPU left the guest for a reason whose counters these are, at tick `now`.
    ///
    /// An exit that was still open stays without a duration: KVM has re-entered without an entry event.
    #[inline]
    pub fn exit(&mut self, counters: &'a Counters, now: u64) {
        add(&counters.exits, 1);
        self.open = Some(Open { counters, since: now });
    }

    /// The vCPU goes back into the guest at tick `now`. False when no exit is open: the first event of a vCPU may
    /// be an entry. Where the clock went backwards, the exit stays without a duration.
    #[inline]
    pub fn entry(&mut self, now: u64) -> bool {
        let Some(Open { counters, since }) = self.open else { return false };
        self.open = None;
        let cycles = now.wrapping_sub(since);
        if (cycles as i64) < 0 {
            return true;
        }
        add(&counters.cycles, cycles);
        if cycles < counters.min.load(Relaxed) {
            counters.min.store(cycles, Relaxed);
        }
        if cycles > counters.max.load(Relaxed) {
            counters.max.store(cycles, Relaxed);
        }
        if let Some(count) = counters.histogram.get(bucket(cycles)) {
            add(count, 1);
        }
        true
    }

    /// Takes the open exit away, so that the next [`Timer::entry`] says that there is none.
    pub fn suspend(&mut self) -> Option<Open<'a>> {
        self.open.take()
    }

    /// Puts a suspended exit back.
    pub fn resume(&mut self, open: Open<'a>) {
        self.open = Some(open);
    }
}

/// Adds the account `from`, which has no writer any more, to `into`.
pub fn absorb(into: &Counters, from: &Counters) {
    add(&into.exits, from.exits.load(Relaxed));
    add(&into.cycles, from.cycles.load(Relaxed));
    into.min.store(into.min.load(Relaxed).min(from.min.load(Relaxed)), Relaxed);
    into.max.store(into.max.load(Relaxed).max(from.max.load(Relaxed)), Relaxed);
    for (into, from) in into.histogram.iter().zip(&from.histogram) {
        add(into, from.load(Relaxed));
    }
}

/// One writer only, so no locked instruction; readers see the old or the new value.
#[inline]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec::Vec;

    use exitscope_abi::region::bucket_low;
    use proptest::prelude::*;

    use super::*;
    use crate::Sum;

    /// A table whose counters live as long as the test program.
    #[derive(Default)]
    struct Grown(Vec<Option<&'static Counters>>);

    impl Table<'static> for Grown {
        fn get(&self, place: usize) -> Option<&'static Counters> {
            self.0.get(place).copied().flatten()
        }
    }

    /// A vCPU as the kernel module has it, over heap memory.
    struct Vcpu {
        isa: Isa,
        table: Grown,
        overflow: &'static Counters,
        timer: Timer<'static>,
    }

    impl Vcpu {
        fn new(isa: Isa) -> Self {
            let table = Grown(std::vec![None; SLOTS]);
            Self { isa, table, overflow: Box::leak(Box::default()), timer: Timer::default() }
        }

        fn exit(&mut self, code: u32, now: u64) {
            let counters = match locate(&self.table, self.isa, code) {
                Place::Found(counters) => counters,
                Place::Empty(place) => {
                    let counters: &'static Counters = Box::leak(Box::default());
                    counters.code.store(code.into(), Relaxed);
                    self.table.0[place] = Some(counters);
                    counters
                }
                Place::Full => self.overflow,
            };
            self.timer.exit(counters, now);
        }

        fn counters(&self) -> impl Iterator<Item = &'static Counters> {
            self.table.0.iter().flatten().copied().chain([self.overflow])
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Exit { code: u32, now: u64 },
        Entry { now: u64 },
    }

    /// Events in any order, at any time, with known, unknown and many unknown codes.
    fn event() -> impl Strategy<Value = Event> {
        let code = prop_oneof![0..0x100_u32, 0x400..0x404_u32, Just(u32::MAX), any::<u32>()];
        let now = prop_oneof![0..10_000_u64, Just(u64::MAX), any::<u64>()];
        prop_oneof![
            (code, now.clone()).prop_map(|(code, now)| Event::Exit { code, now }),
            now.prop_map(|now| Event::Entry { now }),
        ]
    }

    proptest! {
        #[test]
        fn the_sum_over_reasons_is_the_total_whatever_the_order(
            events in prop::collection::vec(event(), 0..200),
            svm: bool,
        ) {
            let mut vcpu = Vcpu::new(if svm { Isa::Svm } else { Isa::Vmx });
            let (mut exits, mut timed) = (0, 0);
            let mut open = None;
            for event in events {
                match event {
                    Event::Exit { code, now } => {
                        vcpu.exit(code, now);
                        exits += 1;
                        open = Some(now);
                    }
                    Event::Entry { now } => {
                        prop_assert_eq!(vcpu.timer.entry(now), open.is_some());
                        timed += u64::from(open.take().is_some_and(|since| now.wrapping_sub(since) >> 63 == 0));
                    }
                }
            }

            let mut sum = Sum::default();
            let mut in_histograms = 0;
            for counters in vcpu.counters() {
                sum.add(counters);
                let here: u64 = counters.histogram.iter().map(|count| count.load(Relaxed)).sum();
                prop_assert!(here <= counters.exits.load(Relaxed));
                let (min, max) = (counters.min.load(Relaxed), counters.max.load(Relaxed));
                let ordered = if here == 0 { (min, max) == (u64::MAX, 0) } else { min <= max };
                prop_assert!(ordered, "min {min}, max {max} of {here}");
                in_histograms += here;
            }
            prop_assert_eq!((sum.figures().exits, in_histograms), (exits, timed));
        }

        #[test]
        fn an_exit_and_its_entry_give_its_cycles(start: u64, cycles in 0..1_u64 << 63) {
            let mut vcpu = Vcpu::new(Isa::Vmx);
            vcpu.exit(10, start);
            vcpu.timer.entry(start.wrapping_add(cycles));
            let counters = vcpu.table.get(Isa::Vmx.dense(10).unwrap()).unwrap();
            let sees = |counter: &AtomicU64| counter.load(Relaxed);
            prop_assert_eq!([&counters.cycles, &counters.min, &counters.max].map(sees), [cycles; 3]);
            let found = counters.histogram.iter().position(|count| sees(count) == 1).unwrap();
            prop_assert!(bucket_low(found) <= cycles && cycles < bucket_low(found + 1));
        }
    }

    #[test]
    fn a_clock_that_goes_backwards_leaves_the_exit_untimed() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.exit(0x72, 1_000);
        vcpu.timer.entry(999);
        let counters = vcpu.table.get(Isa::Svm.dense(0x72).unwrap()).unwrap();
        assert_eq!((counters.exits.load(Relaxed), counters.cycles.load(Relaxed)), (1, 0));
        assert!(counters.histogram.iter().all(|count| count.load(Relaxed) == 0));
    }

    #[test]
    fn a_first_event_may_be_an_entry_and_an_entry_may_come_twice() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.timer.entry(5);
        vcpu.exit(0x72, 10);
        vcpu.timer.entry(15);
        vcpu.timer.entry(1_000);
        let counters = vcpu.table.get(Isa::Svm.dense(0x72).unwrap()).unwrap();
        assert_eq!((counters.exits.load(Relaxed), counters.cycles.load(Relaxed)), (1, 5));
    }

    #[test]
    fn a_suspended_exit_is_timed_when_it_is_back() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.exit(0x72, 10);
        let open = vcpu.timer.suspend().unwrap();
        assert!(!vcpu.timer.entry(20));
        vcpu.timer.resume(open);
        assert!(vcpu.timer.entry(30));
        let counters = vcpu.table.get(Isa::Svm.dense(0x72).unwrap()).unwrap();
        assert_eq!((counters.exits.load(Relaxed), counters.cycles.load(Relaxed)), (1, 20));
    }

    #[test]
    fn counters_near_their_end_wrap() {
        let mut vcpu = Vcpu::new(Isa::Vmx);
        vcpu.exit(10, 0);
        let counters = vcpu.table.get(Isa::Vmx.dense(10).unwrap()).unwrap();
        counters.exits.store(u64::MAX, Relaxed);
        counters.cycles.store(u64::MAX - 1, Relaxed);
        vcpu.timer.entry(3);
        vcpu.exit(10, 4);
        assert_eq!((counters.exits.load(Relaxed), counters.cycles.load(Relaxed)), (0, 1));
    }

    #[test]
    fn codes_without_a_name_are_kept_apart_until_there_is_no_place() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        for code in 0..EXTRA_CODES as u32 + 2 {
            vcpu.exit(0x2_0000 + code, 0);
            vcpu.exit(0x2_0000, 0);
        }
        let first = vcpu.table.get(MAX_REASONS).unwrap();
        assert_eq!(first.code.load(Relaxed), 0x2_0000);
        assert_eq!(first.exits.load(Relaxed), EXTRA_CODES as u64 + 3);
        assert_eq!(vcpu.overflow.exits.load(Relaxed), 2);
    }
}

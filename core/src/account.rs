//! What happens on the exit path: find the counters of a reason, count, and take the time.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, bucket};

/// Codes outside the manuals' tables that a vCPU keeps apart; further ones share the overflow counters.
pub const EXTRA_CODES: usize = 8;
/// Places in a vCPU's [`Table`].
pub const SLOTS: usize = MAX_REASONS + EXTRA_CODES;

/// How counters are referred to: the module has references, an eBPF program numbers that it makes references of anew.
pub trait Account: Copy {
    /// The counters.
    fn counters(&self) -> &Counters;

    /// As [`bucket`], which is too dear where there is no instruction for it.
    #[inline]
    fn bucket(cycles: u64) -> usize {
        bucket(cycles)
    }
}

impl Account for &Counters {
    #[inline]
    fn counters(&self) -> &Counters {
        self
    }
}

/// Where a vCPU keeps its counters: [`SLOTS`] places, each empty until its reason is first seen.
pub trait Table<A: Account> {
    /// The counters at a place; `None` where there are none or no such place.
    fn get(&self, place: usize) -> Option<A>;
}

/// What [`locate`] found.
#[derive(Clone, Copy, Debug)]
pub enum Place<A> {
    /// These counters.
    Found(A),
    /// None yet, and this is where they belong.
    Empty(usize),
    /// None, and no place is left: the overflow counters take it.
    Full,
}

/// Finds the counters of an exit reason, or where they belong.
#[inline]
pub fn locate<A: Account>(table: &impl Table<A>, isa: Isa, code: u32) -> Place<A> {
    match isa.dense(code) {
        Some(place) => match table.get(place) {
            Some(account) => Place::Found(account),
            None => Place::Empty(place),
        },
        None => locate_extra(table, code),
    }
}

#[cold]
fn locate_extra<A: Account>(table: &impl Table<A>, code: u32) -> Place<A> {
    for place in MAX_REASONS..SLOTS {
        match table.get(place) {
            None => return Place::Empty(place),
            Some(account) if account.counters().head.code.load(Relaxed) == code => {
                return Place::Found(account);
            }
            Some(_) => {}
        }
    }
    Place::Full
}

/// The exit timer of one vCPU. At most one exit is open, from its exit event to its entry event. Time stamps are
/// from 1 to 2^63 - 1; others make durations wrong, but nothing else.
///
/// An exit whose time is not all the kernel's is *split* when the vCPU goes to user space or halts: it is moved to a
/// record of its own, which takes the time of each part. The fast path pays nothing for that: the next entry finds no
/// exit open, and takes the slow path.
#[derive(Debug)]
pub struct Timer<A> {
    /// The counters of the last exit.
    open: A,
    /// Time stamp of the last exit; [`CLOSED`] or [`SPLIT`] when it is not open.
    since: u64,
    /// The last exit that was split; valid while `since` is [`SPLIT`].
    split: Option<SplitExit<A>>,
}

/// No exit is open. Time stamps are less than this for centuries, so the test for a clock that goes backwards finds a
/// closed exit too, and the entry path needs no second one.
const CLOSED: u64 = 1 << 63;
/// As [`CLOSED`], but the last exit is split, and no other one has come since.
const SPLIT: u64 = CLOSED | 1;

/// An exit that waits for its entry, with the time of its parts so far.
#[derive(Clone, Copy, Debug)]
struct SplitExit<A> {
    account: A,
    since: u64,
    user: u64,
    polled: u64,
    halted: u64,
    /// When KVM returned to user space; `None` while the vCPU is in the kernel.
    user_since: Option<u64>,
}

/// What an entry was that the fast path, [`Timer::entry`], left to the slow one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The end of an exit, which is timed now.
    Timed,
    /// The end of an exit over which the clock went backwards: it stays without a duration.
    Backwards,
    /// No exit was open: KVM did not announce one, or not to us.
    Unannounced,
}

impl<A: Account> Timer<A> {
    /// A timer with no exit open; it does not touch these counters.
    pub const fn new(any: A) -> Self {
        Self { open: any, since: CLOSED, split: None }
    }

    /// The vCPU left the guest for a reason whose counters these are, at the tick that `now` tells: last, as then nothing
    /// else is to be kept while a clock is asked that is a function.
    ///
    /// An exit that was still open stays without a duration: KVM has re-entered without an entry event.
    #[inline]
    pub fn exit(&mut self, account: A, now: impl FnOnce() -> u64) {
        add(&account.counters().exits, 1);
        self.open = account;
        self.since = now();
    }

    /// The vCPU enters the guest at tick `now`: the fast path. False when no exit is open or the clock went backwards;
    /// then nothing is changed, and [`Timer::entry_slow`] must be called.
    #[inline]
    pub fn entry(&mut self, now: u64) -> bool {
        let Some(cycles) = elapsed(self.since, now) else { return false };
        self.since = CLOSED;
        record(&self.open, cycles);
        true
    }

    /// The vCPU enters the guest at tick `now`: the slow path, for every state of the timer.
    pub fn entry_slow(&mut self, now: u64) -> EntryKind {
        if self.entry(now) {
            return EntryKind::Timed;
        }
        self.split();
        let Some(mut exit) = self.split_exit().copied() else { return EntryKind::Unannounced };
        self.since = CLOSED;
        exit.enter_from_user(now);
        let Some(cycles) = elapsed(exit.since, now) else { return EntryKind::Backwards };
        // Each part is clamped to what the ones before it leave, so that their sum is at most the whole.
        let user = exit.user.min(cycles);
        let polled = exit.polled.min(cycles - user);
        let halted = exit.halted.min(cycles - user - polled);
        record(&exit.account, cycles);
        let counters = exit.account.counters();
        add(&counters.user, user);
        add(&counters.polled, polled);
        add(&counters.halted, halted);
        EntryKind::Timed
    }

    /// Splits the open exit, so that the next entry takes the slow path.
    pub fn split(&mut self) {
        if self.since < CLOSED {
            let (account, since) = (self.open, self.since);
            self.split = Some(SplitExit { account, since, user: 0, polled: 0, halted: 0, user_since: None });
            self.since = SPLIT;
        }
    }

    /// KVM returns to the VMM in user space at tick `now`.
    pub fn exit_to_user(&mut self, now: u64) {
        self.split();
        if let Some(exit) = self.split_exit() {
            exit.user_since = Some(now);
        }
    }

    /// The VMM calls KVM to run the vCPU at tick `now`.
    pub fn enter_from_user(&mut self, now: u64) {
        if let Some(exit) = self.split_exit() {
            exit.enter_from_user(now);
        }
    }

    /// Adds a halt to the open exit: the vCPU's thread polled for so many cycles, and slept for so many.
    pub fn halt(&mut self, polled: u64, halted: u64) {
        self.split();
        if let Some(exit) = self.split_exit() {
            exit.polled = exit.polled.saturating_add(polled);
            exit.halted = exit.halted.saturating_add(halted);
        }
    }

    /// Whether the last exit is split and waits for its entry.
    pub fn is_split(&self) -> bool {
        self.since == SPLIT
    }

    fn split_exit(&mut self) -> Option<&mut SplitExit<A>> {
        self.split.as_mut().filter(|_| self.since == SPLIT)
    }
}

impl<A> SplitExit<A> {
    fn enter_from_user(&mut self, now: u64) {
        let cycles = self.user_since.take().and_then(|since| elapsed(since, now));
        self.user = self.user.saturating_add(cycles.unwrap_or(0));
    }
}

/// Ticks from one moment to a later one; `None` where the clock went backwards, as it may when a vCPU moves between
/// CPUs whose time stamp counters differ.
#[inline]
fn elapsed(since: u64, now: u64) -> Option<u64> {
    let ticks = now.wrapping_sub(since);
    ((ticks as i64) >= 0).then_some(ticks)
}

/// Records the duration of an exit.
#[inline]
fn record<A: Account>(account: &A, cycles: u64) {
    let counters = account.counters();
    add(&counters.cycles, cycles);
    if cycles < counters.min.load(Relaxed) {
        counters.min.store(cycles, Relaxed);
    }
    if cycles > counters.max.load(Relaxed) {
        counters.max.store(cycles, Relaxed);
    }
    if let Some(count) = counters.histogram.get(A::bucket(cycles)) {
        add(count, 1);
    }
}

/// Adds the account `from`, which has no writer any more, to `into`.
pub fn absorb(into: &Counters, from: &Counters) {
    add(&into.exits, from.exits.load(Relaxed));
    add(&into.cycles, from.cycles.load(Relaxed));
    add(&into.user, from.user.load(Relaxed));
    add(&into.halted, from.halted.load(Relaxed));
    add(&into.polled, from.polled.load(Relaxed));
    into.min.store(into.min.load(Relaxed).min(from.min.load(Relaxed)), Relaxed);
    into.max.store(into.max.load(Relaxed).max(from.max.load(Relaxed)), Relaxed);
    for (into, from) in into.histogram.iter().zip(&from.histogram) {
        add(into, from.load(Relaxed));
    }
}

/// Makes the account `into`, which is a baseline, what `from` is now. The writer of `from` may go on meanwhile.
pub fn copy(into: &Counters, from: &Counters) {
    let pairs = [
        (&into.exits, &from.exits),
        (&into.cycles, &from.cycles),
        (&into.min, &from.min),
        (&into.max, &from.max),
        (&into.user, &from.user),
        (&into.halted, &from.halted),
        (&into.polled, &from.polled),
    ];
    for (into, from) in pairs.into_iter().chain(into.histogram.iter().zip(&from.histogram)) {
        into.store(from.load(Relaxed), Relaxed);
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

    impl Table<&'static Counters> for Grown {
        fn get(&self, place: usize) -> Option<&'static Counters> {
            self.0.get(place).copied().flatten()
        }
    }

    /// A vCPU as the kernel module has it, over heap memory.
    struct Vcpu {
        isa: Isa,
        table: Grown,
        overflow: &'static Counters,
        timer: Timer<&'static Counters>,
    }

    impl Vcpu {
        fn new(isa: Isa) -> Self {
            let table = Grown(std::vec![None; SLOTS]);
            let overflow = Box::leak(Box::default());
            Self { isa, table, overflow, timer: Timer::new(overflow) }
        }

        fn exit(&mut self, code: u32, now: u64) {
            let counters = match locate(&self.table, self.isa, code) {
                Place::Found(counters) => counters,
                Place::Empty(place) => {
                    let counters: &'static Counters = Box::leak(Box::default());
                    counters.head.code.store(code, Relaxed);
                    self.table.0[place] = Some(counters);
                    counters
                }
                Place::Full => self.overflow,
            };
            self.timer.exit(counters, || now);
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
        let now = prop_oneof![0..10_000_u64, Just(CLOSED - 1), 0..CLOSED];
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
                        let forward = open.take().map(|since| now >= since);
                        let expected = match forward {
                            Some(true) => EntryKind::Timed,
                            Some(false) => EntryKind::Backwards,
                            None => EntryKind::Unannounced,
                        };
                        let fast = vcpu.timer.entry(now);
                        prop_assert_eq!(fast, expected == EntryKind::Timed);
                        if !fast {
                            prop_assert_eq!(vcpu.timer.entry_slow(now), expected);
                        }
                        timed += u64::from(fast);
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
        fn an_exit_and_its_entry_give_its_cycles(start in 0..CLOSED / 2, cycles in 0..CLOSED / 2) {
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
        assert!(!vcpu.timer.entry(999));
        assert_eq!(vcpu.timer.entry_slow(999), EntryKind::Backwards);
        assert_eq!(vcpu.timer.entry_slow(2_000), EntryKind::Unannounced);
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

    /// Cycles in all, in user space, polled and halted of the one CPUID exit.
    fn parts(vcpu: &Vcpu) -> [u64; 4] {
        let counters = vcpu.table.get(Isa::Svm.dense(0x72).unwrap()).unwrap();
        [&counters.cycles, &counters.user, &counters.polled, &counters.halted]
            .map(|counter| counter.load(Relaxed))
    }

    #[test]
    fn user_space_polling_and_halts_are_told_apart() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.exit(0x72, 10);
        vcpu.timer.halt(70, 500);
        vcpu.timer.exit_to_user(1_000);
        vcpu.timer.enter_from_user(1_300);
        vcpu.timer.exit_to_user(1_310);
        vcpu.timer.enter_from_user(1_400);
        assert!(!vcpu.timer.entry(2_010));
        assert_eq!(vcpu.timer.entry_slow(2_010), EntryKind::Timed);
        assert_eq!(parts(&vcpu), [2_000, 390, 70, 500]);
        // Done with: the next entry has no exit.
        assert_eq!(vcpu.timer.entry_slow(3_000), EntryKind::Unannounced);
        assert_eq!(parts(&vcpu), [2_000, 390, 70, 500]);
    }

    #[test]
    fn parts_are_never_more_than_the_whole() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.exit(0x72, 1_000);
        vcpu.timer.exit_to_user(900);
        vcpu.timer.enter_from_user(2_000);
        vcpu.timer.halt(u64::MAX, u64::MAX);
        assert_eq!(vcpu.timer.entry_slow(1_100), EntryKind::Timed);
        assert_eq!(parts(&vcpu), [100, 100, 0, 0]);
    }

    proptest! {
        #[test]
        fn each_part_is_clamped_to_what_the_ones_before_it_left(
            cycles in 0..1_000_u64,
            away in 0..1_000_u64,
            halts in prop::collection::vec((0..1_000_u64, 0..1_000_u64), 0..4),
        ) {
            let mut vcpu = Vcpu::new(Isa::Svm);
            vcpu.exit(0x72, 1);
            vcpu.timer.exit_to_user(1);
            vcpu.timer.enter_from_user(1 + away);
            for &(polled, halted) in &halts {
                vcpu.timer.halt(polled, halted);
            }
            prop_assert_eq!(vcpu.timer.entry_slow(1 + cycles), EntryKind::Timed);
            let sum = |of: fn(&(u64, u64)) -> u64| halts.iter().map(of).sum::<u64>();
            let user = away.min(cycles);
            let polled = sum(|halt| halt.0).min(cycles - user);
            let halted = sum(|halt| halt.1).min(cycles - user - polled);
            prop_assert_eq!(parts(&vcpu), [cycles, user, polled, halted]);
        }
    }

    #[test]
    fn a_split_exit_that_was_re_entered_unseen_is_not_timed_later() {
        let mut vcpu = Vcpu::new(Isa::Svm);
        vcpu.exit(0x72, 10);
        vcpu.timer.split();
        vcpu.exit(0x7c, 20);
        assert!(vcpu.timer.entry(30));
        assert_eq!(vcpu.timer.entry_slow(1_000), EntryKind::Unannounced);
        assert_eq!(parts(&vcpu), [0; 4]);
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
        assert_eq!(first.head.code.load(Relaxed), 0x2_0000);
        assert_eq!(first.exits.load(Relaxed), EXTRA_CODES as u64 + 3);
        assert_eq!(vcpu.overflow.exits.load(Relaxed), 2);
    }
}

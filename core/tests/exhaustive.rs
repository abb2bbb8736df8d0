//! Every sequence of events up to a length, against a plain model of the accounting.
//!
//! The state that matters is small: which account an open exit belongs to, since when, and whether the clock went on,
//! stood still or went back. So every kind of event in every order is tried, and the invariants of ARCHITECTURE.md are
//! checked after each sequence.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{BUCKETS, Counters, bucket_low};
use exitscope_core::{EXTRA_CODES, EntryKind, Place, SLOTS, Sum, Table, Timer, absorb, locate};

/// The longest sequences.
const LONGEST: u32 = if cfg!(miri) { 3 } else { 6 };
/// Codes: two that the manual defines, two that it does not, of which one only finds room.
const CODES: [u32; 4] = [10, 48, 0x2_0000, 0x2_0001];
/// Where the account of exits that found no room is.
const OVERFLOW: usize = 3;

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An exit, by its place in [`CODES`].
    Exit(usize),
    Entry,
    /// KVM returns to user space, and is called again.
    ExitToUser,
    EnterFromUser,
    /// Halted: polled for so many cycles, and slept for so many.
    Halt(u64, u64),
    /// The clock goes on by so many ticks, or back.
    Tick(i64),
}

/// Every event.
const EVENTS: [Event; 11] = [
    Event::Exit(0),
    Event::Exit(1),
    Event::Exit(2),
    Event::Exit(3),
    Event::Entry,
    Event::ExitToUser,
    Event::EnterFromUser,
    Event::Halt(30, 40),
    Event::Tick(1),
    Event::Tick(300),
    Event::Tick(-1),
];
const START: u64 = 1 << 40;

/// The accounts of a vCPU of which all but one place for undefined codes are taken.
struct Accounts<'a> {
    /// Of the codes that are defined, the undefined one that came first, and the overflow.
    counters: &'a [Counters; 4],
    /// Those that others have taken.
    taken: &'a [Counters],
    /// Which of [`Accounts::counters`] are in the table.
    used: [bool; 3],
}

impl<'a> Table<&'a Counters> for Accounts<'a> {
    fn get(&self, place: usize) -> Option<&'a Counters> {
        if let Some(extra) = place.checked_sub(MAX_REASONS)
            && let Some(taken) = self.taken.get(extra)
        {
            return Some(taken);
        }
        let index = [0, 1, 2].into_iter().find(|&index| place_of(index) == place)?;
        self.used[index].then_some(&self.counters[index])
    }
}

/// Where an account belongs.
fn place_of(index: usize) -> usize {
    if index == 2 { SLOTS - 1 } else { Isa::Vmx.dense(CODES[index]).unwrap() }
}

/// The real thing.
struct Real<'a> {
    accounts: Accounts<'a>,
    timer: Timer<&'a Counters>,
}

impl<'a> Real<'a> {
    fn new(counters: &'a [Counters; 4], taken: &'a [Counters]) -> Self {
        let accounts = Accounts { counters, taken, used: [false; 3] };
        Self { accounts, timer: Timer::new(&taken[0]) }
    }

    fn exit(&mut self, code: u32, now: u64) {
        let counters = match locate(&self.accounts, Isa::Vmx, code) {
            Place::Found(counters) => counters,
            Place::Empty(place) => {
                let index = [0, 1, 2].into_iter().find(|&index| place_of(index) == place).unwrap();
                self.accounts.used[index] = true;
                self.accounts.counters[index].head.code.store(code, Relaxed);
                &self.accounts.counters[index]
            }
            Place::Full => &self.accounts.counters[OVERFLOW],
        };
        self.timer.exit(counters, || now);
    }

    /// Does it; what an entry was.
    fn apply(&mut self, event: Event, now: u64) -> Option<EntryKind> {
        match event {
            Event::Exit(index) => self.exit(CODES[index], now),
            Event::Entry if self.timer.entry(now) => return Some(EntryKind::Timed),
            Event::Entry => return Some(self.timer.entry_slow(now)),
            Event::ExitToUser => self.timer.exit_to_user(now),
            Event::EnterFromUser => self.timer.enter_from_user(now),
            Event::Halt(polled, halted) => self.timer.halt(polled, halted),
            Event::Tick(_) => {}
        }
        None
    }
}

/// An exit whose entry has not come.
struct Open {
    account: usize,
    since: i64,
    user: i64,
    polled: i64,
    halted: i64,
    user_since: Option<i64>,
}

impl Open {
    fn enter_from_user(&mut self, now: i64) {
        self.user += self.user_since.take().map_or(0, |since| (now - since).max(0));
    }
}

/// The same, as one would write it down. Its moments are ticks since [`START`], and may be negative.
#[derive(Default)]
struct Model {
    /// The undefined code that found room.
    extra: Option<usize>,
    exits: [u64; 4],
    /// Cycles of the timed exits.
    timed: [Vec<u64>; 4],
    /// Cycles in user space, polled and halted.
    user: [u64; 4],
    polled: [u64; 4],
    halted: [u64; 4],
    open: Option<Open>,
    /// Exits whose duration will never be known.
    lost: u64,
}

impl Model {
    fn apply(&mut self, event: Event, now: i64) -> Option<EntryKind> {
        match event {
            Event::Exit(index) => {
                let has_room = index < 2 || *self.extra.get_or_insert(index) == index;
                let account = if has_room { index.min(2) } else { OVERFLOW };
                self.exits[account] += 1;
                self.lost += u64::from(self.open.is_some());
                self.open =
                    Some(Open { account, since: now, user: 0, polled: 0, halted: 0, user_since: None });
            }
            Event::Entry => return Some(self.entry(now)),
            Event::ExitToUser => self.open.iter_mut().for_each(|open| open.user_since = Some(now)),
            Event::EnterFromUser => self.open.iter_mut().for_each(|open| open.enter_from_user(now)),
            Event::Halt(polled, halted) => {
                if let Some(open) = &mut self.open {
                    open.polled += polled as i64;
                    open.halted += halted as i64;
                }
            }
            Event::Tick(_) => {}
        }
        None
    }

    fn entry(&mut self, now: i64) -> EntryKind {
        let Some(mut open) = self.open.take() else { return EntryKind::Unannounced };
        open.enter_from_user(now);
        let cycles = now - open.since;
        if cycles < 0 {
            self.lost += 1;
            return EntryKind::Backwards;
        }
        let user = open.user.min(cycles);
        self.timed[open.account].push(cycles as u64);
        self.user[open.account] += user as u64;
        let polled = open.polled.min(cycles - user);
        self.polled[open.account] += polled as u64;
        self.halted[open.account] += open.halted.min(cycles - user - polled) as u64;
        EntryKind::Timed
    }
}

/// An account is what its exits and their durations make.
fn check(counters: &Counters, exits: u64, timed: &[u64]) {
    let sees = |counter: &AtomicU64| counter.load(Relaxed);
    let (min, max) = (timed.iter().min().unwrap_or(&u64::MAX), timed.iter().max().unwrap_or(&0));
    let found = [&counters.exits, &counters.cycles, &counters.min, &counters.max].map(sees);
    assert_eq!(found, [exits, timed.iter().sum(), *min, *max]);
    let mut histogram = [0; BUCKETS];
    for cycles in timed {
        histogram[(1..BUCKETS).find(|&bucket| *cycles < bucket_low(bucket)).unwrap_or(BUCKETS) - 1] += 1;
    }
    assert!(counters.histogram.iter().map(sees).eq(histogram), "{:?}", counters.histogram);
}

/// Does these events to both, and compares what they say and have.
fn run(events: &[Event], taken: &[Counters]) {
    let counters: [Counters; 4] = Default::default();
    let mut real = Real::new(&counters, taken);
    let mut model = Model::default();
    let mut now = 0;
    for &event in events {
        if let Event::Tick(ticks) = event {
            now += ticks;
        }
        assert_eq!(real.apply(event, START.wrapping_add_signed(now)), model.apply(event, now));
    }

    for (counters, (exits, timed)) in counters.iter().zip(model.exits.into_iter().zip(&model.timed)) {
        check(counters, exits, timed);
    }
    for (account, counters) in counters.iter().enumerate() {
        let parts = [&counters.user, &counters.polled, &counters.halted].map(|counter| counter.load(Relaxed));
        assert_eq!(parts, [model.user[account], model.polled[account], model.halted[account]]);
        assert!(
            parts.iter().sum::<u64>() <= counters.cycles.load(Relaxed),
            "the parts of the cycles are no more than they"
        );
    }
    let exits = events.iter().filter(|event| matches!(event, Event::Exit(_))).count() as u64;
    let timed = model.timed.concat();
    let waiting = u64::from(model.open.is_some());
    assert_eq!(exits, timed.len() as u64 + model.lost + waiting, "exits less timed exits");

    let (mut sum, all) = (Sum::default(), Counters::default());
    for counters in &counters {
        sum.add(counters);
        absorb(&all, counters);
    }
    assert_eq!(sum.figures().exits, exits, "the sum over reasons is the total");
    assert_eq!(sum.figures().cycles, timed.iter().sum::<u64>());
    check(&all, exits, &timed);
}

#[test]
fn every_sequence_of_events_is_accounted_as_the_model_does() {
    let taken: Vec<Counters> = (1..EXTRA_CODES).map(|_| Counters::default()).collect();
    for (number, counters) in (0..).zip(&taken) {
        counters.head.code.store(0x3_0000 + number, Relaxed);
    }
    let mut sequences = 0_u64;
    for length in 0..=LONGEST {
        for number in 0..EVENTS.len().pow(length) {
            let digits = (0..length).map(|digit| number / EVENTS.len().pow(digit) % EVENTS.len());
            let events: Vec<Event> = digits.map(|digit| EVENTS[digit]).collect();
            // A panic tells where, but not for what.
            let complaint = Complaint(&events);
            run(&events, &taken);
            std::mem::forget(complaint);
            sequences += 1;
        }
    }
    assert_eq!(sequences, (0..=LONGEST).map(|length| (EVENTS.len() as u64).pow(length)).sum());
    assert!(taken.iter().all(|counters| counters.exits.load(Relaxed) == 0), "a code took another's account");
}

/// Prints the events when they fail.
struct Complaint<'a>(&'a [Event]);

impl Drop for Complaint<'_> {
    fn drop(&mut self) {
        eprintln!("after {:?}", self.0);
    }
}

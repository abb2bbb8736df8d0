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
use exitscope_core::{EXTRA_CODES, Open, Place, SLOTS, Sum, Table, Timer, absorb, locate};

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
    Suspend,
    Resume,
    /// The clock goes on by so many ticks, or back.
    Tick(i64),
}

/// Every event. The clock starts close to its end, so that it also wraps.
const EVENTS: [Event; 10] = [
    Event::Exit(0),
    Event::Exit(1),
    Event::Exit(2),
    Event::Exit(3),
    Event::Entry,
    Event::Suspend,
    Event::Resume,
    Event::Tick(1),
    Event::Tick(300),
    Event::Tick(-1),
];
const START: u64 = u64::MAX - 1;

/// The accounts of a vCPU of which all but one place for undefined codes are taken.
struct Accounts<'a> {
    /// Of the codes that are defined, the undefined one that came first, and the overflow.
    counters: &'a [Counters; 4],
    /// Those that others have taken.
    taken: &'a [Counters],
    /// Which of [`Accounts::counters`] are in the table.
    used: [bool; 3],
}

impl<'a> Table<'a> for Accounts<'a> {
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
    timer: Timer<'a>,
    suspended: Option<Open<'a>>,
}

impl<'a> Real<'a> {
    fn new(counters: &'a [Counters; 4], taken: &'a [Counters]) -> Self {
        let accounts = Accounts { counters, taken, used: [false; 3] };
        Self { accounts, timer: Timer::new(), suspended: None }
    }

    fn exit(&mut self, code: u32, now: u64) {
        let counters = match locate(&self.accounts, Isa::Vmx, code) {
            Place::Found(counters) => counters,
            Place::Empty(place) => {
                let index = [0, 1, 2].into_iter().find(|&index| place_of(index) == place).unwrap();
                self.accounts.used[index] = true;
                self.accounts.counters[index].code.store(code.into(), Relaxed);
                &self.accounts.counters[index]
            }
            Place::Full => &self.accounts.counters[OVERFLOW],
        };
        self.timer.exit(counters, now);
    }

    /// Does it; whether an entry found an open exit.
    fn apply(&mut self, event: Event, now: u64) -> Option<bool> {
        match event {
            Event::Exit(index) => self.exit(CODES[index], now),
            Event::Entry => return Some(self.timer.entry(now)),
            Event::Suspend => self.suspended = self.timer.suspend(),
            Event::Resume => self.suspended.take().into_iter().for_each(|open| self.timer.resume(open)),
            Event::Tick(_) => {}
        }
        None
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
    /// An account, and when it was opened.
    open: Option<(usize, i64)>,
    suspended: Option<(usize, i64)>,
    /// Exits whose duration will never be known.
    lost: u64,
}

impl Model {
    fn apply(&mut self, event: Event, now: i64) -> Option<bool> {
        match event {
            Event::Exit(index) => {
                let has_room = index < 2 || *self.extra.get_or_insert(index) == index;
                let account = if has_room { index.min(2) } else { OVERFLOW };
                self.exits[account] += 1;
                self.lost += u64::from(self.open.is_some());
                self.open = Some((account, now));
            }
            Event::Entry => {
                let Some((account, since)) = self.open.take() else { return Some(false) };
                match u64::try_from(now - since) {
                    Ok(cycles) => self.timed[account].push(cycles),
                    Err(_) => self.lost += 1,
                }
                return Some(true);
            }
            Event::Suspend => {
                self.lost += u64::from(self.suspended.is_some());
                self.suspended = self.open.take();
            }
            Event::Resume if self.suspended.is_some() => {
                self.lost += u64::from(self.open.is_some());
                self.open = self.suspended.take();
            }
            Event::Resume | Event::Tick(_) => {}
        }
        None
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
    let exits = events.iter().filter(|event| matches!(event, Event::Exit(_))).count() as u64;
    let timed = model.timed.concat();
    let waiting = [model.open, model.suspended].into_iter().flatten().count() as u64;
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
        counters.code.store(0x3_0000 + number, Relaxed);
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

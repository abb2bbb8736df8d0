//! A vCPU's clock: its exit timer, and what waits for its next entry.

use exitscope_abi::reason::Isa;
use exitscope_abi::region::Counters;
use exitscope_core::{Halt, HaltStats, Timer};

use crate::ffi::{self, Mode};

/// State that belongs to the handlers of a vCPU's own events, of which one runs at a time.
pub struct Clock {
    pub timer: Timer<&'static Counters>,
    /// The query of one of our leaves that is pending.
    pub query: Option<CpuidQuery>,
    /// The halt, or other blocking, that has begun.
    pub halt: Option<Halt>,
}

/// A CPUID of one of our leaves, pending from its exit to the next entry.
#[derive(Clone, Copy, Debug)]
pub struct CpuidQuery {
    pub isa: Isa,
    pub leaf: u32,
    pub sub_leaf: u32,
    /// What the vCPU runs.
    pub mode: Mode,
}

/// What a timer refers to before its first exit; never written.
static UNUSED_COUNTERS: Counters = Counters::new();

impl Clock {
    pub const fn new() -> Self {
        Self { timer: Timer::new(&UNUSED_COUNTERS), query: None, halt: None }
    }

    /// Splits the open exit. A query that was pending until now belongs to an earlier exit, and is dropped.
    pub fn split(&mut self) {
        if !self.timer.is_split() {
            self.timer.split();
            self.query = None;
        }
    }

    /// The query of the open exit, if it is one.
    pub fn take_query(&mut self) -> Option<CpuidQuery> {
        self.query.take().filter(|_| self.timer.is_split())
    }

    /// Adds a halt that has begun to the open exit; `stats` asks for KVM's statistics as they are at its end.
    pub fn end_halt(&mut self, now: u64, stats: impl FnOnce() -> HaltStats) {
        let Some(halt) = self.halt.take() else { return };
        let [polled, halted] = halt.end(now, stats, ticks);
        self.timer.halt(polled, halted);
    }
}

/// Ticks of the time stamp counter in so many ns.
pub fn ticks(ns: u64) -> u64 {
    const NS_IN_MS: u64 = 1_000_000;
    // SAFETY: asks for a kernel variable.
    let khz = u64::from(unsafe { ffi::exitscope_tsc_khz() });
    (ns / NS_IN_MS).wrapping_mul(khz).wrapping_add(ns % NS_IN_MS * khz / NS_IN_MS)
}

//! Adding up counters of several reasons, vCPUs and VMs.

use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::leaf::Figures;
use exitscope_abi::region::Counters;

/// A running sum of [`Counters`].
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    exits: u64,
    cycles: u64,
    min: u64,
    max: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { exits: 0, cycles: 0, min: u64::MAX, max: 0 }
    }
}

impl Sum {
    /// Adds one account.
    pub fn add(&mut self, counters: &Counters) {
        self.exits = self.exits.wrapping_add(counters.exits.load(Relaxed));
        self.cycles = self.cycles.wrapping_add(counters.cycles.load(Relaxed));
        self.min = self.min.min(counters.min.load(Relaxed));
        self.max = self.max.max(counters.max.load(Relaxed));
    }

    /// Adds exits of which nothing else is known.
    pub fn add_exits(&mut self, exits: u64) {
        self.exits = self.exits.wrapping_add(exits);
    }

    /// The sum so far; the minimum is 0 when nothing was timed.
    pub fn figures(&self) -> Figures {
        let min = if self.min == u64::MAX { 0 } else { self.min };
        Figures { exits: self.exits, cycles: self.cycles, min, max: self.max }
    }
}

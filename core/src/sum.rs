//! Adding up counters of several reasons, vCPUs and VMs.

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

use exitscope_abi::leaf::Figures;
use exitscope_abi::region::Counters;

/// A running sum of [`Counters`].
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    exits: u64,
    cycles: u64,
    min: u64,
    max: u64,
    user: u64,
    polled: u64,
    halted: u64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { exits: 0, cycles: 0, min: u64::MAX, max: 0, user: 0, polled: 0, halted: 0 }
    }
}

impl Sum {
    /// Adds one account.
    pub fn add(&mut self, counters: &Counters) {
        // Parts before the whole, to which their writer adds first: so the whole is never less than its parts.
        self.user = self.user.wrapping_add(counters.user.load(Relaxed));
        self.polled = self.polled.wrapping_add(counters.polled.load(Relaxed));
        self.halted = self.halted.wrapping_add(counters.halted.load(Relaxed));
        fence(Acquire);
        self.add_counts(counters);
        self.min = self.min.min(counters.min.load(Relaxed));
        self.max = self.max.max(counters.max.load(Relaxed));
    }

    /// Adds the exits and the cycles of one account, and nothing else of it: all that a question for several reasons
    /// wants ([`exitscope_abi::leaf::Reasons::All`]), which reads the accounts of all vCPUs with interrupts off.
    #[inline]
    pub fn add_counts(&mut self, counters: &Counters) {
        self.exits = self.exits.wrapping_add(counters.exits.load(Relaxed));
        self.cycles = self.cycles.wrapping_add(counters.cycles.load(Relaxed));
    }

    /// Adds exits of which nothing else is known.
    pub fn add_exits(&mut self, exits: u64) {
        self.exits = self.exits.wrapping_add(exits);
    }

    /// The sum so far; the minimum is 0 when nothing was timed. The parts add up to the cycles, as these do: they wrap
    /// around.
    pub fn figures(&self) -> Figures {
        let &Self { exits, cycles, min, max, user, polled, halted } = self;
        let min = if min == u64::MAX { 0 } else { min };
        let kernel = cycles.wrapping_sub(user).wrapping_sub(polled).wrapping_sub(halted);
        Figures { exits, cycles, min, max, kernel, user, polled, halted }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the accounts have, also where their numbers wrap around: nothing is lost between the parts.
        #[test]
        fn the_parts_of_a_sum_are_the_sums_of_the_parts(accounts: Vec<[u64; 4]>) {
            let (mut sum, mut parts) = (Sum::default(), [0_u64; 4]);
            for &account in &accounts {
                let [kernel, user, polled, halted] = account;
                let counters = Counters::default();
                let cycles = account.into_iter().fold(0, u64::wrapping_add);
                counters.cycles.store(cycles, Relaxed);
                counters.user.store(user, Relaxed);
                counters.polled.store(polled, Relaxed);
                counters.halted.store(halted, Relaxed);
                sum.add(&counters);
                for (part, more) in parts.iter_mut().zip([kernel, user, polled, halted]) {
                    *part = part.wrapping_add(more);
                }
            }
            let Figures { cycles, kernel, user, polled, halted, .. } = sum.figures();
            prop_assert_eq!([kernel, user, polled, halted], parts);
            prop_assert_eq!(cycles, parts.into_iter().fold(0, u64::wrapping_add));
        }
    }
}

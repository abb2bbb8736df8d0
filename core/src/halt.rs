//! How long a vCPU was halted, as KVM has measured it.

/// KVM's own statistics of a vCPU, from its beginning on, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HaltStats {
    /// Halt polling, whether it found a wake-up or not.
    pub polled: u64,
    /// The vCPU's thread slept.
    pub waited: u64,
}

/// A halt of a vCPU that has begun, or other blocking.
#[derive(Clone, Copy, Debug)]
pub struct Halt {
    since: u64,
    /// The statistics at its start, where KVM times it itself; `None` for other blocking.
    before: Option<HaltStats>,
}

impl Halt {
    /// One that begins at tick `since`.
    pub const fn new(since: u64, before: Option<HaltStats>) -> Self {
        Self { since, before }
    }

    /// Ticks that the vCPU's thread polled and slept, when it ends at tick `now`; `after` asks for the statistics as they
    /// are then, `ticks` converts ns.
    pub fn end(self, now: u64, after: impl FnOnce() -> HaltStats, ticks: impl Fn(u64) -> u64) -> [u64; 2] {
        let Some(before) = self.before else { return [0, now.saturating_sub(self.since)] };
        let after = after();
        [after.polled.saturating_sub(before.polled), after.waited.saturating_sub(before.waited)].map(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_is_as_long_as_kvm_says_and_other_blocking_as_the_clock_says() {
        let before = HaltStats { polled: 10, waited: 100 };
        let after = || HaltStats { polled: 25, waited: 400 };
        assert_eq!(Halt::new(1_000, Some(before)).end(5_000, after, |ns| 2 * ns), [30, 600]);
        assert_eq!(Halt::new(1_000, None).end(5_000, || unreachable!(), |ns| ns), [0, 4_000]);
        // A clock that goes backwards, and statistics that someone has reset.
        assert_eq!(Halt::new(1_000, None).end(900, after, |ns| ns), [0, 0]);
        assert_eq!(Halt::new(0, Some(after())).end(9, || before, |ns| ns), [0, 0]);
    }
}

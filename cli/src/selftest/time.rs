//! Whether time is kept where it was spent: in a device of the VMM's that sleeps, and in halts of a known length.

use std::time::Duration;

use exitscope_abi::reason::Isa;
use exitscope_guest::workload::Workload;
use exitscope_model::selftest::Check;
use exitscope_view::units::duration;

use super::guest::{Ended, Work};
use super::{Bench, Checks};

/// How long the device sleeps for each write.
const DELAY: Duration = Duration::from_millis(1);
/// Writes to it.
const WRITES: u64 = 100;
/// How long halts are.
const HALT: Duration = Duration::from_millis(4);
/// Halts.
const HALTS: u64 = 25;
/// How far two clocks may be apart, in percent of the time.
const CLOCKS_APART: u64 = 2;

/// Has a device sleep, and a guest halt.
pub fn check(bench: &Bench<'_>, checks: &mut Checks) -> anyhow::Result<()> {
    let Bench { isa, clock, .. } = *bench;
    if clock.khz == 0 {
        for name in ["time-user", "time-halt"] {
            checks.tell(Check::skip(name, "the frequency of the clock is unknown"))?;
        }
        return Ok(());
    }
    let work = Work { port_delay: DELAY, ..Work::new(Workload::Pio, WRITES) };
    let (ended, counted) = bench.count(&work)?;
    let user: u64 =
        codes(&work, isa).map(|code| counted.reasons.get(&code).map_or(0, |tally| tally.user)).sum();
    let slept = ns(DELAY) * WRITES;
    let found = between(clock.ns(user), slept, &ended);
    let word = |user| format!("{user} in user space, where a device slept for {}", duration(slept));
    checks.tell(Check::of("time-user", found.map(word)))?;

    let work = Work { halt: Some(HALT), ..Work::new(Workload::Hlt, HALTS) };
    let (ended, counted) = bench.count(&work)?;
    let halts = codes(&work, isa).filter_map(|code| counted.reasons.get(&code));
    let (polled, halted) = halts.fold((0, 0), |sum, tally| (sum.0 + tally.polled, sum.1 + tally.halted));
    // All but the first are begun at the end of another, and what the guest and its VMM do in between is short.
    let least = ns(HALT) * (HALTS - 1) / 2;
    let found = between(clock.ns(polled + halted), least, &ended);
    let polled = clock.ns(polled).unwrap_or(0);
    let word = |time| {
        format!(
            "{time} halted ({} of it polled) in {HALTS} halts that end once in {}",
            duration(polled),
            duration(ns(HALT))
        )
    };
    checks.tell(Check::of("time-halt", found.map(word)))
}

fn codes(work: &Work, isa: Isa) -> impl Iterator<Item = u64> {
    work.workload.exit_codes(isa).iter().map(|&code| code.into())
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a time is at least as long as it must be, and no longer than the guest was there by the clock of user space.
fn between(time: Option<u64>, least: u64, ended: &Ended) -> Result<String, String> {
    let time = time.unwrap_or(0);
    let (low, high) = (least - least * CLOCKS_APART / 100, ns(ended.elapsed));
    let high = high + high * CLOCKS_APART / 100;
    match (low..=high).contains(&time) {
        true => Ok(duration(time)),
        false => Err(format!("{}, expected {} to {}", duration(time), duration(low), duration(high))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_least_and_a_most() {
        let ended = Ended { elapsed: Duration::from_millis(150), reports: vec![] };
        let between = |ms: u64| between(Some(ms * 1_000_000), 100_000_000, &ended);
        assert_eq!(between(99), Ok("99.0ms".into()));
        assert!(between(97).is_err() && between(153).is_ok());
        assert_eq!(between(154).unwrap_err(), "154ms, expected 98.0ms to 153ms");
    }
}

//! The result of a self-test, schema `exitscope-selftest/1`: what was checked on which machine, and what watching costs.

use serde::{Deserialize, Serialize};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-selftest/1";

/// One document. It names no host and no process, so that it can be sent to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selftest {
    /// [`SCHEMA`].
    pub schema: String,
    /// Whether a check has passed and none has failed.
    pub passed: bool,
    /// Where it ran.
    pub machine: Machine,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// What watching costs; empty where that could not be measured.
    pub cost: Vec<Cost>,
}

impl Selftest {
    /// The document of these checks.
    pub fn new(machine: Machine, checks: Vec<Check>, cost: Vec<Cost>) -> Self {
        let count = |result| checks.iter().filter(|check| check.result == result).count();
        let passed = count(Verdict::Pass) > 0 && count(Verdict::Fail) == 0;
        Self { schema: SCHEMA.into(), passed, machine, checks, cost }
    }

    /// How many checks have this result.
    pub fn count(&self, result: Verdict) -> usize {
        self.checks.iter().filter(|check| check.result == result).count()
    }
}

/// A machine, without its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `amd` or `intel`.
    pub vendor: String,
    /// The CPU's model name.
    pub cpu: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether the machine is itself a guest, so that its KVM is nested in another hypervisor.
    pub nested: bool,
    /// `nested` or `shadow`; empty when not known.
    pub paging: String,
    /// Frequency of the clock that durations are measured with, in kHz; 0 when unknown.
    pub tsc_khz: u32,
    /// Whether an emulated CPU ran it, so that times say nothing about a real one.
    pub emulated: bool,
    /// The emulator; empty on a real CPU.
    pub emulator: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It does not hold.
    Fail,
    /// It could not be made here.
    Skip,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is checked.
    pub name: String,
    /// How it ended.
    pub result: Verdict,
    /// What was found, or why nothing could be.
    pub why: String,
}

impl Check {
    /// A check that passes when nothing is wrong: `Err` says what is.
    pub fn of(name: impl Into<String>, found: Result<String, String>) -> Self {
        let name = name.into();
        match found {
            Ok(why) => Self { name, result: Verdict::Pass, why },
            Err(why) => Self { name, result: Verdict::Fail, why },
        }
    }

    /// A check that cannot be made here.
    pub fn skip(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), result: Verdict::Skip, why: why.into() }
    }
}

/// What an exit takes under one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// What watches: `none` or `module`.
    pub source: String,
    /// What the guest does.
    pub workload: String,
    /// Median over the measurements of an exit's round trip: guest, KVM, VMM and source.
    pub ns_per_exit: f64,
    /// Median of the differences of pairs, one measurement with the source and one without.
    pub added_ns: f64,
    /// `added_ns` in percent of an exit without a source.
    pub added_percent: f64,
    /// Median absolute deviation: of `added_ns`, or for `none` of `ns_per_exit`.
    pub spread_ns: f64,
    /// Pairs that were measured.
    pub pairs: usize,
}

impl Cost {
    /// The cost of a workload without and with a source, from pairs of ns per exit in this order; nothing without pairs.
    pub fn of_pairs(source: &str, workload: &str, pairs: &[(f64, f64)]) -> Vec<Self> {
        let without: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let with: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
        let added: Vec<f64> = pairs.iter().map(|(without, with)| with - without).collect();
        let (Some(base), Some(watched), Some(difference)) = (median(&without), median(&with), median(&added))
        else {
            return Vec::new();
        };
        let none = Self {
            source: "none".into(),
            workload: workload.into(),
            ns_per_exit: base,
            added_ns: 0.0,
            added_percent: 0.0,
            spread_ns: deviation(&without),
            pairs: pairs.len(),
        };
        let watched = Self {
            source: source.into(),
            ns_per_exit: watched,
            added_ns: difference,
            added_percent: if base > 0.0 { 100.0 * difference / base } else { 0.0 },
            spread_ns: deviation(&added),
            ..none.clone()
        };
        vec![none, watched]
    }
}

/// The value in the middle, or between the two in the middle; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

/// The median absolute deviation from the median; 0 of nothing.
fn deviation(values: &[f64]) -> f64 {
    let Some(middle) = median(values) else { return 0.0 };
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&distances).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_do_not_fail_but_prove_nothing() {
        let passed = |results: &[Verdict]| {
            let check = |&result| Check { name: String::new(), result, why: String::new() };
            Selftest::new(Machine::default(), results.iter().map(check).collect(), vec![]).passed
        };
        assert!(passed(&[Verdict::Pass, Verdict::Skip]));
        assert!(!passed(&[Verdict::Pass, Verdict::Fail]));
        assert!(!passed(&[Verdict::Skip]) && !passed(&[]));
    }

    #[test]
    fn the_cost_is_the_median_of_differences() {
        let cost = Cost::of_pairs("module", "cpuid", &[(100.0, 110.0), (200.0, 215.0), (101.0, 900.0)]);
        assert_eq!((cost[0].ns_per_exit, cost[0].spread_ns), (101.0, 1.0));
        assert_eq!((cost[1].ns_per_exit, cost[1].added_ns, cost[1].spread_ns), (215.0, 15.0, 5.0));
        assert!((cost[1].added_percent - 14.85).abs() < 0.01);
        assert_eq!(Cost::of_pairs("module", "cpuid", &[]), []);
    }

    #[test]
    fn the_middle_of_two_is_between_them() {
        assert_eq!((median(&[1.0, 2.0]), median(&[3.0]), median(&[])), (Some(1.5), Some(3.0), None));
    }
}

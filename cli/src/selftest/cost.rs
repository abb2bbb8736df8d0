//! What watching costs: ns per exit with the module and without it, measured in turn.

use std::time::{Duration, Instant};

use anyhow::Context;
use exitscope_abi::flat::NO_BATCH;
use exitscope_guest::workload::Workload;
use exitscope_model::selftest::Cost;
use exitscope_model::snapshot::Clock;
use exitscope_view::units::duration;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::guest::{self, Work};
use super::module::Module;
use crate::workload::Stop;

/// What is measured: two exits that the kernel handles, and one that goes to the VMM.
const WORKLOADS: [Workload; 3] = [Workload::Cpuid, Workload::Rdmsr, Workload::Pio];
/// Exits in a timed batch.
const BATCH: u64 = 100;
/// Batches, the fastest of which counts, as nothing has disturbed it.
const BATCHES: u64 = 100;
/// How long pairs are measured, if there are enough.
const BUDGET: Duration = Duration::from_secs(20);
/// Pairs that there must be.
const LEAST: usize = 3;

/// Measures up to so many pairs, as time allows; and says how many.
pub fn measure(
    module: &mut Module,
    stop: &Stop,
    clock: Clock,
    most: usize,
) -> anyhow::Result<(Vec<Cost>, String)> {
    let _one_cpu = OneCpu::stay();
    let started = Instant::now();
    let mut pairs = vec![Vec::new(); WORKLOADS.len()];
    for number in 0..most {
        if number >= LEAST && started.elapsed() > BUDGET {
            break;
        }
        // With first, then without first, and so on: the module comes and goes half as often, and a drift cancels out.
        let first = number % 2 == 0;
        let mut measured = [[0.0; WORKLOADS.len()]; 2];
        for watched in [first, !first] {
            if watched {
                module.insert()?
            } else {
                module.remove()?
            }
            for (place, workload) in measured[usize::from(watched)].iter_mut().zip(WORKLOADS) {
                *place = ns_per_exit(workload, stop, clock)?.context("no batch was timed")?;
            }
        }
        for (index, pairs) in pairs.iter_mut().enumerate() {
            pairs.push((measured[0][index], measured[1][index]));
        }
    }
    let cost: Vec<Cost> = WORKLOADS
        .iter()
        .zip(&pairs)
        .flat_map(|(workload, pairs)| Cost::of_pairs("module", workload.name(), pairs))
        .collect();
    let why = format!(
        "{} with and without the module in {}",
        match pairs[0].len() {
            1 => "a pair".to_owned(),
            number => format!("{number} pairs"),
        },
        duration(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    );
    Ok((cost, why))
}

/// ns of an exit in the fastest batch; `None` when the guest timed none.
fn ns_per_exit(workload: Workload, stop: &Stop, clock: Clock) -> anyhow::Result<Option<f64>> {
    let work = Work { batch: BATCH, ..Work::new(workload, BATCH * BATCHES) };
    let (ended, ()) = guest::run(&work, stop, |_| Ok(()))?;
    let ticks = ended.reports.first().copied().filter(|&ticks| ticks != NO_BATCH);
    Ok(ticks.and_then(|ticks| Some(clock.ns(ticks)? as f64 / BATCH as f64)))
}

/// Keeps this thread and the processes that it starts on one CPU until this is dropped.
struct OneCpu(Option<CpuSet>);

impl OneCpu {
    /// On that where it is. Where the system does not allow it, numbers spread more.
    fn stay() -> Self {
        let before = sched_getaffinity(None).ok();
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        Self(before.filter(|_| sched_setaffinity(None, &one).is_ok()))
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(None, before);
        }
    }
}

//! What watching costs: instructions per exit, exactly, with nothing watching and with each watcher.
//!
//! The emulated clock counts instructions (Bochs' always, QEMU's with icount), so the guest's own time stamps around
//! a batch of exits count the instructions of the whole round trip. The fastest batch has no timer interrupt in it,
//! and is the same in every run.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::{EXITSCOPE, Event, Guest, Insert, Payload, Step};
use crate::progress::Progress;
use crate::session::{Lab, Setup};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-bench/1";
/// Exits in a timed batch: 0.2 to 0.5 ms of emulated time, so that many batches fall between two timer ticks.
const BATCH: u64 = 100;
/// Exits in all: enough for 100 batches.
const EXITS: u64 = 100 * BATCH;
/// The workloads measured.
const WORKLOADS: [&str; 2] = ["cpuid", "rdmsr"];

/// What all watchers cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bench {
    /// [`SCHEMA`].
    pub schema: String,
    /// One watcher on one workload each.
    pub bench: Vec<Cost>,
}

/// What a watcher costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Which emulated machine: `amd` or `intel`.
    pub lane: String,
    /// What watches.
    pub watch: String,
    /// What the guest does.
    pub workload: String,
    /// Instructions of one exit's round trip: guest, KVM and watcher.
    pub instructions_per_exit: f64,
    /// Of these, how many more than with nothing watching.
    pub added: f64,
}

/// A watcher: its name, and the steps that start and stop it.
type Watch = (&'static str, Vec<Step>, Vec<Step>);

fn watches() -> Vec<Watch> {
    let insert = Step::Insert(Insert { path: EXITSCOPE.into(), parameters: String::new() });
    let remove = Step::Remove { name: "exitscope".into() };
    vec![
        ("none", vec![], vec![]),
        ("module", vec![insert], vec![remove]),
        ("ftrace", vec![Step::Ftrace { on: true }], vec![Step::Ftrace { on: false }]),
    ]
}

/// Measures every watcher on every workload, in one run of one machine.
pub fn run(lab: &Lab, progress: &mut Progress) -> Result<Bench, Error> {
    let mut steps = Vec::new();
    for (watch, start, stop) in watches() {
        steps.extend(start);
        steps.extend(WORKLOADS.map(|workload| measure(watch, workload)));
        steps.extend(stop);
    }
    let setup = Setup { icount: true, name: "bench".into(), ..Setup::default() };
    let events = lab.run(&setup, steps, progress)?;
    let mut bench = Vec::new();
    for event in events {
        let Event::Guest { name, reports, .. } = event else { continue };
        let (watch, workload) = name.split_once('-').unwrap_or_default();
        let fastest = reports.first().and_then(|reports| reports.first());
        let ticks = *fastest.ok_or(Error::NotTold { what: "a batch's time" })?;
        let instructions_per_exit = ticks as f64 / BATCH as f64;
        let plain = |cost: &&Cost| cost.watch == "none" && cost.workload == workload;
        let base = bench.iter().find(plain).map_or(instructions_per_exit, |cost| cost.instructions_per_exit);
        bench.push(Cost {
            lane: lab.vendor().name().into(),
            watch: watch.into(),
            workload: workload.into(),
            instructions_per_exit,
            added: instructions_per_exit - base,
        });
    }
    Ok(Bench { schema: SCHEMA.into(), bench })
}

fn measure(watch: &str, workload: &str) -> Step {
    let payload = Payload::Flat { workload: workload.into(), iterations: EXITS, batch: BATCH };
    let guest = Guest { name: format!("{watch}-{workload}"), vcpus: 1, payload };
    Step::Guests { guests: vec![guest], sample_ms: None, meanwhile: vec![] }
}

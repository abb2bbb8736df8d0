//! What watching costs: instructions per exit, exactly, with nothing watching and with each watcher.
//!
//! The emulated clock counts instructions (Bochs' always, QEMU's with icount), so the guest's own time stamps around
//! a batch of exits count the instructions of the whole round trip. The fastest batch has no timer interrupt in it,
//! and is the same in every run.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::{EXITSCOPE, Event, Guest, Insert, Payload, Step};
use crate::progress::Progress;
use crate::runs::session::{Lab, Setup};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-bench/1";
/// Exits in a timed batch: 0.2 to 0.5 ms of emulated time, so that many batches fall between two timer ticks.
const BATCH: u64 = 100;
/// Exits in all: enough for 100 batches.
const EXITS: u64 = 100 * BATCH;
/// The workloads measured: what most guests do most, and what one does that asks for its exits all the time.
const WORKLOADS: [&str; 3] = ["cpuid", "rdmsr", "leaf"];
/// An exit that goes to the VMM and back, whose time in user space is told apart.
const TO_USER: &str = "pio";
/// VMs alive beside the one that is measured.
const OTHERS: u32 = 63;
/// vCPUs of a guest that has many.
const VCPUS: u32 = 8;
/// Exits that make another VM known to whatever watches.
const FEW: u64 = 10;

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
    /// vCPUs of the guest, all of which do that.
    pub vcpus: u32,
    /// VMs alive, this one included.
    pub vms: u32,
    /// What another guest does at the same time, if one does.
    pub beside: Option<String>,
    /// Instructions of one exit's round trip: guest, KVM and watcher.
    pub instructions_per_exit: f64,
    /// Of these, how many more than in the same case with nothing watching.
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

/// One case: which guest is measured beside what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    workload: &'static str,
    vcpus: u32,
    vms: u32,
    beside: Option<&'static str>,
}

impl Case {
    /// One VM of one vCPU.
    const fn plain(workload: &'static str) -> Self {
        Self { workload, vcpus: 1, vms: 1, beside: None }
    }

    /// A guest that measures.
    fn guest(self, watch: &str) -> Guest {
        let beside = self.beside.map(|beside| format!("-beside-{beside}")).unwrap_or_default();
        let name = format!("{watch}-{}-{}x{}{beside}", self.workload, self.vms, self.vcpus);
        Guest { vcpus: self.vcpus, ..flat(name, self.workload, EXITS, BATCH) }
    }
}

fn flat(name: String, workload: &str, iterations: u64, batch: u64) -> Guest {
    let payload = Payload::Flat { workload: workload.into(), iterations, batch };
    Guest { name, vcpus: 1, payload, lingers: false }
}

/// Measures every watcher in every case, in one run of one machine.
pub fn run(lab: &Lab, progress: &mut Progress) -> Result<Bench, Error> {
    let (mut steps, mut measured) = (Vec::new(), Vec::new());
    for (watch, start, stop) in watches() {
        let mut measure = |case: Case| {
            let guest = case.guest(watch);
            measured.push((guest.name.clone(), watch, case));
            guest
        };
        steps.extend(start);
        steps.extend(WORKLOADS.map(|workload| alone(measure(Case::plain(workload)))));
        steps.push(alone(measure(Case::plain(TO_USER))));
        if watch != "ftrace" {
            for workload in WORKLOADS {
                steps.push(alone(measure(Case { vcpus: VCPUS, ..Case::plain(workload) })));
            }
            let neighbour = flat(format!("{watch}-neighbour"), "leaf", EXITS, 0);
            let victim = measure(Case { vms: 2, beside: Some("leaf"), ..Case::plain("rdmsr") });
            steps.push(guests(vec![victim, neighbour], vec![]));
            let crowd =
                WORKLOADS.map(|workload| alone(measure(Case { vms: OTHERS + 1, ..Case::plain(workload) })));
            let other = |number| Guest { lingers: true, ..flat(format!("other-{number}"), "cpuid", FEW, 0) };
            steps.push(guests((0..OTHERS).map(other).collect(), crowd.into()));
        }
        steps.extend(stop);
    }
    let setup = Setup { icount: true, name: "bench".into(), ..Setup::default() };
    let events = lab.run(&setup, steps, progress)?;
    let mut bench: Vec<(Case, Cost)> = Vec::new();
    for (wanted, watch, case) in measured {
        let fastest = events.iter().find_map(|event| match event {
            // Every vCPU has told its fastest batch.
            Event::Guest { name, reports, .. } if *name == wanted => reports.iter().flatten().min().copied(),
            _ => None,
        });
        let ticks = fastest.ok_or(Error::NotTold { what: "a batch's time" })?;
        let instructions_per_exit = ticks as f64 / BATCH as f64;
        let base = bench.iter().find(|(known, cost)| *known == case && cost.watch == "none");
        let base = base.map_or(instructions_per_exit, |(_, cost)| cost.instructions_per_exit);
        let cost = Cost {
            lane: lab.vendor().name().into(),
            watch: watch.into(),
            workload: case.workload.into(),
            vcpus: case.vcpus,
            vms: case.vms,
            beside: case.beside.map(Into::into),
            instructions_per_exit,
            added: instructions_per_exit - base,
        };
        bench.push((case, cost));
    }
    Ok(Bench { schema: SCHEMA.into(), bench: bench.into_iter().map(|(_, cost)| cost).collect() })
}

fn guests(guests: Vec<Guest>, meanwhile: Vec<Step>) -> Step {
    Step::Guests { guests, sample_ms: None, meanwhile }
}

fn alone(guest: Guest) -> Step {
    guests(vec![guest], vec![])
}

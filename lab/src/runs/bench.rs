//! Measures the overhead of each way to observe exits: exact instructions per exit, with it and without any.
//!
//! The emulated clock counts instructions (Bochs' always, QEMU's with icount), so the guest's own time stamps around
//! a batch of exits count the instructions of the whole round trip. The fastest batch has no timer interrupt in it,
//! and is the same in every run.

use exitscope_abi::bpf::DEFAULT_CELLS;
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
/// The workloads measured: two of the most frequent exits, and a guest that reads our leaves in a loop.
const WORKLOADS: [&str; 3] = ["cpuid", "rdmsr", "leaf"];
/// The workload whose exits go to the VMM and back, and so are split into kernel and user time.
const USER_EXIT: &str = "pio";
/// Idle VMs that exist while one is measured.
const IDLE_VMS: u32 = 63;
/// vCPUs of the guest in the cases with several.
const VCPUS: u32 = 8;
/// Exits by which an idle VM gets its counters.
const IDLE_VM_EXITS: u64 = 10;

/// The overhead of all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bench {
    /// [`SCHEMA`].
    pub schema: String,
    /// One for each observer and case.
    pub bench: Vec<Cost>,
}

/// The overhead of one observer in one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Which emulated machine: `amd` or `intel`.
    pub lane: String,
    /// What observes the exits: `none`, `module`, `module-off` (which answers no guest), `bpf` or `ftrace`.
    pub watch: String,
    /// What the guest does.
    pub workload: String,
    /// vCPUs of the guest, all of which do that.
    pub vcpus: u32,
    /// VMs alive, this one included.
    pub vms: u32,
    /// The workload of another guest that runs at the same time.
    #[serde(rename = "beside")]
    pub neighbour: Option<String>,
    /// Instructions of one exit's round trip: guest, KVM and observer.
    pub instructions_per_exit: f64,
    /// How many more than in the same case without an observer.
    pub added: f64,
}

/// An observer: its name, and the steps that start and stop it.
type Watch = (&'static str, Vec<Step>, Vec<Step>);

fn watches() -> Vec<Watch> {
    let insert = |parameters: &str| {
        vec![Step::Insert(Insert { path: EXITSCOPE.into(), parameters: parameters.into() })]
    };
    let remove = vec![Step::Remove { name: "exitscope".into() }];
    vec![
        ("none", vec![], vec![]),
        ("module", insert(""), remove.clone()),
        ("module-off", insert("expose=off"), remove),
        ("bpf", vec![Step::Bpf { cells: Some(DEFAULT_CELLS) }], vec![Step::Bpf { cells: None }]),
        ("ftrace", vec![Step::Ftrace { on: true }], vec![Step::Ftrace { on: false }]),
    ]
}

/// One case: which guest is measured, and what else runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    workload: &'static str,
    vcpus: u32,
    vms: u32,
    neighbour: Option<&'static str>,
}

impl Case {
    /// One VM of one vCPU.
    const fn plain(workload: &'static str) -> Self {
        Self { workload, vcpus: 1, vms: 1, neighbour: None }
    }

    /// A guest that measures.
    fn guest(self, watch: &str) -> Guest {
        let neighbour = self.neighbour.map(|other| format!("-beside-{other}")).unwrap_or_default();
        let name = format!("{watch}-{}-{}x{}{neighbour}", self.workload, self.vms, self.vcpus);
        Guest { vcpus: self.vcpus, ..flat(name, self.workload, EXITS, BATCH) }
    }
}

fn flat(name: String, workload: &str, iterations: u64, batch: u64) -> Guest {
    let payload = Payload::Flat { workload: workload.into(), iterations, batch };
    Guest { name, vcpus: 1, payload, lingers: false, endless: false }
}

/// Measures every observer in every case, in one run of one machine.
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
        steps.push(alone(measure(Case::plain(USER_EXIT))));
        if ["none", "module", "bpf"].contains(&watch) {
            for workload in WORKLOADS {
                steps.push(alone(measure(Case { vcpus: VCPUS, ..Case::plain(workload) })));
            }
            let neighbour = flat(format!("{watch}-neighbour"), "leaf", EXITS, 0);
            let victim = measure(Case { vms: 2, neighbour: Some("leaf"), ..Case::plain("rdmsr") });
            steps.push(guests(vec![victim, neighbour], vec![]));
            let crowd =
                WORKLOADS.map(|workload| alone(measure(Case { vms: IDLE_VMS + 1, ..Case::plain(workload) })));
            let other = |number| Guest {
                lingers: true,
                endless: false,
                ..flat(format!("other-{number}"), "cpuid", IDLE_VM_EXITS, 0)
            };
            steps.push(guests((0..IDLE_VMS).map(other).collect(), crowd.into()));
        }
        steps.extend(stop);
    }
    let setup = Setup { icount: true, name: "bench".into(), ..Setup::default() };
    let events = lab.run(&setup, steps, progress)?;
    let mut bench: Vec<(Case, Cost)> = Vec::new();
    for (wanted, watch, case) in measured {
        let fastest = events.iter().find_map(|event| match event {
            // Every vCPU reports its fastest batch.
            Event::Guest { name, reports, .. } if *name == wanted => reports.iter().flatten().min().copied(),
            _ => None,
        });
        let ticks = fastest.ok_or(Error::NotReported { what: "a batch's time" })?;
        let instructions_per_exit = ticks as f64 / BATCH as f64;
        let base = bench.iter().find(|(known, cost)| *known == case && cost.watch == "none");
        let base = base.map_or(instructions_per_exit, |(_, cost)| cost.instructions_per_exit);
        let cost = Cost {
            lane: lab.vendor().name().into(),
            watch: watch.into(),
            workload: case.workload.into(),
            vcpus: case.vcpus,
            vms: case.vms,
            neighbour: case.neighbour.map(Into::into),
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

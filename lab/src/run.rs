//! The main job: boots a guest on a stock KVM with our module, and makes a report of its exits.

use std::time::Duration;

use exitscope_abi::leaf::{Expose, Layout};
use exitscope_abi::reason::Isa;
use exitscope_host::model::{self, GuestView, Machine, Phase, Quality, Report, SCHEMA, Tick, Vm};

use crate::cache::Cache;
use crate::debian;
use crate::error::Error;
use crate::job::{EXITSCOPE, Event, FIRMWARE, Guest, IN_SYSTEM, Insert, Mark, Output, Payload, Step};
use crate::progress::Progress;
use crate::session::{Lab, Setup};

/// Resolution of the timeline, in ms.
const SAMPLE_MS: u64 = 50;
/// Names the one guest of a run.
const GUEST: &str = "guest";
const LABEL: &str = "end";

/// What the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// A flat workload of 100,000 CPUIDs, no operating system.
    Tiny,
    /// Linux with an initramfs, which queries the leaves.
    Linux,
    /// Debian on a disk, which queries them when all else is started. It needs [`Vmm::Qemu`].
    Debian,
}

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// Our micro-VMM.
    Exitscope,
    /// Stock QEMU, with firmware. It cannot run [`GuestKind::Tiny`].
    Qemu,
}

/// How a run shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine.
    pub setup: Setup,
    /// The guest.
    pub guest: GuestKind,
    /// What runs it.
    pub vmm: Vmm,
    /// Its number of vCPUs.
    pub vcpus: u32,
    /// Numbering of the course leaves.
    pub layout: Layout,
    /// Whose exits the guest is told.
    pub expose: Expose,
}

/// How long a machine with a Debian guest may run: longer than the guest may.
const DEADLINE_OF_DEBIAN: Duration = Duration::from_secs(360);
/// How Debian's own program reads the total.
const CPUID: &str = "/usr/bin/cpuid -1 -r -l 0x4ffffff1 -s 0";
/// Exits of the tiny guest's workload.
const TINY_EXITS: u64 = 100_000;

impl Options {
    fn steps(&self) -> Vec<Step> {
        let parameters = format!("expose={} layout={}", self.expose.name(), self.layout.name());
        let payload = match (self.guest, self.vmm) {
            (GuestKind::Tiny, _) => {
                Payload::Flat { workload: "cpuid".into(), iterations: TINY_EXITS, batch: 0 }
            }
            (GuestKind::Linux, Vmm::Exitscope) => Payload::Linux { commands: vec![query("/init")] },
            (GuestKind::Linux, Vmm::Qemu) => Payload::Qemu { commands: vec![query("/init")], debian: false },
            (GuestKind::Debian, _) => {
                Payload::Qemu { commands: vec![query(IN_SYSTEM), words(CPUID)], debian: true }
            }
        };
        let guest = Guest { name: GUEST.into(), vcpus: self.vcpus, payload };
        vec![
            Step::Insert(Insert { path: EXITSCOPE.into(), parameters }),
            Step::Guests { guests: vec![guest], sample_ms: Some(SAMPLE_MS), meanwhile: vec![] },
            Step::Snapshot { label: LABEL.into() },
            Step::Remove { name: "exitscope".into() },
        ]
    }
}

/// The words of a command.
fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

/// The command by which our program queries the leaves.
fn query(program: &str) -> Vec<String> {
    words(&format!("{program} guest --json"))
}

/// Runs it.
pub fn run(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<Report, Error> {
    report(lab.release(), options, &events(lab, options, progress)?)
}

/// Runs it, and gives back all that the machine told.
pub fn events(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<Vec<Event>, Error> {
    let mut setup = options.setup.clone();
    setup.qemu = options.vmm == Vmm::Qemu;
    if options.guest == GuestKind::Debian {
        progress.phase("makes a Debian system");
        setup.disk = Some(debian::disk(&Cache::open()?)?);
        setup.deadline = DEADLINE_OF_DEBIAN;
    }
    lab.run(&setup, options.steps(), progress)
}

/// The report of what the machine told, whose kernel is of that release.
pub fn report(release: &str, options: &Options, events: &[Event]) -> Result<Report, Error> {
    let (mut timeline, mut outputs, mut marks, mut snapshot) = (Vec::new(), Vec::new(), Vec::new(), None);
    for event in events.iter().cloned() {
        match event {
            Event::Timeline { ticks } => timeline = ticks,
            Event::Guest { outputs: gave, marks: noted, .. } => (outputs, marks) = (gave, noted),
            Event::Snapshot { isa, tsc_khz, vms, unaccounted, overflowed, .. } => {
                snapshot = Some((isa, tsc_khz, vms, Quality { unaccounted, overflowed }));
            }
            _ => {}
        }
    }
    let (isa, tsc_khz, vms, quality) = snapshot.ok_or(Error::NotTold { what: "its counters" })?;
    let reasons = model::merge(vms.iter().flat_map(|vm: &Vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
    let (timeline, phases) = shorten(timeline, marks);
    let vendor = if isa == Isa::Vmx.name() { "intel" } else { "amd" };
    Ok(Report {
        schema: SCHEMA.into(),
        machine: Machine {
            emulated: true,
            emulator: "qemu-tcg".into(),
            vendor: vendor.into(),
            kernel: release.into(),
            paging: options.setup.paging.name().into(),
            tsc_khz,
        },
        source: "module".into(),
        isa,
        layout: options.layout.name().into(),
        expose: options.expose.name().into(),
        total: model::total(&reasons),
        reasons,
        vms,
        timeline,
        phases,
        guest: guest_view(options, &outputs)?,
        quality,
    })
}

/// What the guest read; `None` for one that was told nothing or does not ask.
fn guest_view(options: &Options, outputs: &[Output]) -> Result<Option<GuestView>, Error> {
    if options.guest == GuestKind::Tiny || options.expose == Expose::Off {
        return Ok(None);
    }
    let view = outputs.first().and_then(|output| serde_json::from_str(&output.stdout).ok());
    view.map(Some).ok_or(Error::NotTold { what: "what the guest read" })
}

/// Leaves out ticks before the first exit, but one, with which the first phase begins.
fn shorten(ticks: Vec<Tick>, marks: Vec<Mark>) -> (Vec<Tick>, Vec<Phase>) {
    let first = ticks.iter().position(|tick| tick.exits > 0).unwrap_or(0).saturating_sub(1);
    let start = ticks.get(first).map_or(0, |tick| tick.t_ms);
    let shift = |tick: Tick| Tick { t_ms: tick.t_ms.saturating_sub(start), exits: tick.exits };
    let ticks: Vec<Tick> = ticks.into_iter().skip(first).map(shift).collect();
    let marks = marks.into_iter().map(|mark| Mark { at: shift(mark.at), ..mark }).collect();
    let phases = phases(&ticks, marks);
    (ticks, phases)
}

/// The phases that lie between the marks, from the first tick to the last.
fn phases(ticks: &[Tick], marks: Vec<Mark>) -> Vec<Phase> {
    let (Some(&first), Some(&last), false) = (ticks.first(), ticks.last(), marks.is_empty()) else {
        return Vec::new();
    };
    let ends = marks.iter().map(|mark| mark.at).chain([last]).collect::<Vec<_>>();
    let begins = [Mark { phase: FIRMWARE.into(), at: first }].into_iter().chain(marks);
    let phase = |(begin, end): (Mark, Tick)| Phase {
        name: begin.phase,
        start_ms: begin.at.t_ms,
        end_ms: end.t_ms,
        exits: end.exits - begin.at.exits,
    };
    begins.zip(ends).map(phase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_begins_with_the_first_exits() {
        let ticks = [(0, 0), (50, 0), (100, 7), (150, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        let expected = [(0, 0), (50, 7), (100, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        assert_eq!(shorten(ticks.to_vec(), vec![]), (expected.to_vec(), vec![]));
        assert_eq!(shorten(vec![], vec![]), (vec![], vec![]));
    }

    #[test]
    fn phases_fill_the_timeline() {
        let ticks = [(0, 0), (50, 0), (100, 7), (150, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        let mark = |phase: &str, t_ms, exits| Mark { phase: phase.into(), at: Tick { t_ms, exits } };
        let (_, phases) = shorten(ticks.to_vec(), vec![mark("kernel", 70, 3), mark("initramfs", 110, 8)]);
        let expected = [("firmware", 0, 20, 3), ("kernel", 20, 60, 5), ("initramfs", 60, 100, 1)];
        let told: Vec<_> = phases.iter().map(|p| (p.name.as_str(), p.start_ms, p.end_ms, p.exits)).collect();
        assert_eq!(told, expected);
    }
}

//! The main job: boots a guest on a stock KVM with our module, and makes a report of its exits.

use exitscope_abi::bpf::DEFAULT_CELLS;
use exitscope_abi::leaf::{Expose, Layout};
use exitscope_model::{self as model, GuestView, Machine, Phase, Report, SCHEMA, Tick, Vm};

use crate::emulator::Vendor;
use crate::error::Error;
use crate::job::{
    EXITSCOPE, Event, FIRMWARE, Guest, Insert, Output, PROGRAM_IN_DEBIAN, Payload, PhaseStart, Step,
};
use crate::parts::cache::Cache;
use crate::parts::debian;
use crate::progress::Progress;
use crate::runs::session::{Lab, Paging, Setup};

/// Resolution of the timeline in ms: the emulated clock of a machine runs with its instructions or with ours.
fn sample_ms(vendor: Vendor) -> u64 {
    match vendor {
        Vendor::Amd => 50,
        Vendor::Intel => 10,
    }
}

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

/// What counts the exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Our module.
    Module,
    /// Our eBPF programs, which do not answer the guest.
    Bpf,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Module, Self::Bpf];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Bpf => "bpf",
        }
    }
}

/// How a run shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine.
    pub setup: Setup,
    /// What counts.
    pub source: Source,
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

/// How Debian's own program reads the total.
const CPUID: &str = "/usr/bin/cpuid -1 -r -l 0x4ffffff1 -s 0";
/// Exits of the tiny guest's workload.
const TINY_EXITS: u64 = 100_000;

impl Options {
    /// Starts what counts.
    pub(crate) fn start(&self) -> Step {
        if self.source == Source::Bpf {
            return Step::Bpf { cells: Some(DEFAULT_CELLS) };
        }
        let parameters = format!("expose={} layout={}", self.expose.name(), self.layout.name());
        Step::Insert(Insert { path: EXITSCOPE.into(), parameters })
    }

    /// Ends the counting.
    fn stop(&self) -> Step {
        match self.source {
            Source::Module => Step::Remove { name: "exitscope".into() },
            Source::Bpf => Step::Bpf { cells: None },
        }
    }

    /// The guest, named after the paging.
    pub(crate) fn guest(&self, paging: Paging) -> Guest {
        let payload = match (self.guest, self.vmm) {
            (GuestKind::Tiny, _) => {
                Payload::Flat { workload: "cpuid".into(), iterations: TINY_EXITS, batch: 0 }
            }
            (GuestKind::Linux, Vmm::Exitscope) => Payload::Linux { commands: vec![query("/init")] },
            (GuestKind::Linux, Vmm::Qemu) => Payload::Qemu { commands: vec![query("/init")], debian: false },
            (GuestKind::Debian, _) => {
                Payload::Qemu { commands: vec![query(PROGRAM_IN_DEBIAN), words(CPUID)], debian: true }
            }
        };
        Guest {
            name: format!("guest-{}", paging.name()),
            vcpus: self.vcpus,
            payload,
            lingers: false,
            endless: false,
        }
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
    run_with_events(lab, options, progress).map(|(report, _)| report)
}

/// Runs it; gives back the machine's events beside the report.
pub fn run_with_events(
    lab: &Lab,
    options: &Options,
    progress: &mut Progress,
) -> Result<(Report, Vec<Event>), Error> {
    let (mut reports, events) = run_each(lab, options, &[options.setup.paging], progress)?;
    let report = reports.pop().ok_or(Error::NotReported { what: "its counters" })?;
    Ok((report, events))
}

/// Runs it once with nested and once with shadow paging, in one machine whose KVM is loaded anew beneath our module.
/// Each report has the exits of its own guest only.
pub fn run_both(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<[Report; 2], Error> {
    let mut options = options.clone();
    options.setup.paging = Paging::Nested;
    let (reports, _) = run_each(lab, &options, &[Paging::Nested, Paging::Shadow], progress)?;
    reports.try_into().map_err(|_| Error::NotReported { what: "its counters" })
}

/// Runs it with each paging; the machine starts with that of the options.
fn run_each(
    lab: &Lab,
    options: &Options,
    pagings: &[Paging],
    progress: &mut Progress,
) -> Result<(Vec<Report>, Vec<Event>), Error> {
    let mut setup = options.setup.clone();
    setup.qemu = options.vmm == Vmm::Qemu;
    if options.guest == GuestKind::Debian {
        progress.phase("makes a Debian system");
        setup.disk = Some(debian::disk(&Cache::open()?)?);
    }
    let mut steps = vec![options.start()];
    for (index, &paging) in pagings.iter().enumerate() {
        if index > 0 {
            steps.extend(lab.reload_kvm(paging));
        }
        steps.extend(run_and_snapshot(lab.vendor(), options.guest(paging)));
    }
    steps.push(options.stop());
    let events = lab.run(&setup, steps, progress)?;
    let reports =
        events_per_guest(&events).zip(pagings).map(|(events, &paging)| report(lab, options, paging, events));
    Ok((reports.collect::<Result<_, _>>()?, events))
}

/// Steps that run a guest, sample its exits and take a snapshot afterwards.
pub(crate) fn run_and_snapshot(vendor: Vendor, guest: Guest) -> [Step; 2] {
    let label = guest.name.clone();
    [
        Step::Guests { guests: vec![guest], sample_ms: Some(sample_ms(vendor)), meanwhile: vec![] },
        Step::Snapshot { label },
    ]
}

/// The events of each guest up to its snapshot, in order; the first also has those from before it.
pub(crate) fn events_per_guest(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    events.split_inclusive(|event| matches!(event, Event::Snapshot { .. }))
}

/// The report of one guest, from its events.
pub(crate) fn report(
    lab: &Lab,
    options: &Options,
    paging: Paging,
    events: &[Event],
) -> Result<Report, Error> {
    let (mut timeline, mut guest, mut snapshot) = (&[][..], None, None);
    for event in events {
        match event {
            Event::Timeline { ticks } => timeline = ticks,
            Event::Guest { pid, outputs, phase_starts, .. } => guest = Some((*pid, outputs, phase_starts)),
            Event::Snapshot { isa, tsc_khz, vms, quality, .. } => {
                snapshot = Some((isa, *tsc_khz, vms, *quality));
            }
            _ => {}
        }
    }
    let (pid, outputs, phase_starts) = guest.ok_or(Error::NotReported { what: "its guest" })?;
    let (isa, tsc_khz, vms, quality) = snapshot.ok_or(Error::NotReported { what: "its counters" })?;
    // Other guests of the same machine have reports of their own.
    let vms: Vec<Vm> = vms.iter().filter(|vm| vm.pid == pid).cloned().collect();
    let reasons = model::merge(vms.iter().flat_map(|vm: &Vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
    let (timeline, phases) = shorten(timeline, phase_starts);
    let machine = Machine {
        emulated: true,
        emulator: lab.vendor().emulator().into(),
        vendor: lab.vendor().name().into(),
        kernel: lab.release().into(),
        paging: paging.name().into(),
        tsc_khz,
        instructions_to_module: instructions_to_module(events),
    };
    Ok(Report {
        schema: SCHEMA.into(),
        machine,
        source: options.source.name().into(),
        isa: isa.clone(),
        layout: options.layout.name().into(),
        expose: options.expose.name().into(),
        total: model::total(&reasons),
        reasons,
        vms,
        timeline,
        phases,
        guest: guest_view(options, outputs)?,
        quality,
    })
}

fn instructions_to_module(events: &[Event]) -> Option<u64> {
    events.iter().find_map(|event| match event {
        Event::Inserted { path, instructions } if path == EXITSCOPE => *instructions,
        _ => None,
    })
}

/// What the guest read; `None` for one that was told nothing or does not ask.
fn guest_view(options: &Options, outputs: &[Output]) -> Result<Option<GuestView>, Error> {
    if options.guest == GuestKind::Tiny || options.expose == Expose::Off || options.source == Source::Bpf {
        return Ok(None);
    }
    let view = outputs.first().and_then(|output| serde_json::from_str(&output.stdout).ok());
    view.map(Some).ok_or(Error::NotReported { what: "what the guest read" })
}

/// Leaves out ticks before the first exit, but one, with which the first phase begins, and exits that came before.
fn shorten(ticks: &[Tick], phase_starts: &[PhaseStart]) -> (Vec<Tick>, Vec<Phase>) {
    let Some(start) = ticks.first() else { return (vec![], vec![]) };
    let first = ticks.iter().position(|tick| tick.exits > start.exits).unwrap_or(0).saturating_sub(1);
    let origin = ticks[first];
    let since = |tick: &Tick| Tick {
        t_ms: tick.t_ms.saturating_sub(origin.t_ms),
        exits: tick.exits.saturating_sub(origin.exits),
    };
    let ticks: Vec<Tick> = ticks[first..].iter().map(since).collect();
    let phase_starts = phase_starts
        .iter()
        .map(|mark| PhaseStart { phase: mark.phase.clone(), at: since(&mark.at) })
        .collect();
    let phases = phases(&ticks, phase_starts);
    (ticks, phases)
}

/// The phases, each from its start to the next one's, the last one to the last tick.
fn phases(ticks: &[Tick], phase_starts: Vec<PhaseStart>) -> Vec<Phase> {
    let (Some(&first), Some(&last), false) = (ticks.first(), ticks.last(), phase_starts.is_empty()) else {
        return Vec::new();
    };
    let ends = phase_starts.iter().map(|mark| mark.at).chain([last]).collect::<Vec<_>>();
    let begins = [PhaseStart { phase: FIRMWARE.into(), at: first }].into_iter().chain(phase_starts);
    let phase = |(begin, end): (PhaseStart, Tick)| Phase {
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
        assert_eq!(shorten(&ticks, &[]), (expected.to_vec(), vec![]));
        let others = ticks.map(|tick| Tick { exits: tick.exits + 30, ..tick });
        assert_eq!(shorten(&others, &[]), (expected.to_vec(), vec![]));
        assert_eq!(shorten(&[], &[]), (vec![], vec![]));
    }

    #[test]
    fn phases_fill_the_timeline() {
        let ticks = [(0, 0), (50, 0), (100, 7), (150, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        let mark = |phase: &str, t_ms, exits| PhaseStart { phase: phase.into(), at: Tick { t_ms, exits } };
        let (_, phases) = shorten(&ticks, &[mark("kernel", 70, 3), mark("initramfs", 110, 8)]);
        let expected = [("firmware", 0, 20, 3), ("kernel", 20, 60, 5), ("initramfs", 60, 100, 1)];
        let told: Vec<_> = phases.iter().map(|p| (p.name.as_str(), p.start_ms, p.end_ms, p.exits)).collect();
        assert_eq!(told, expected);
    }
}

//! The main job: boots a guest on a stock KVM with our module, and makes a report of its exits.

use exitscope_abi::leaf::{Expose, Layout};
use exitscope_host::model::{self, GuestView, Machine, Report, SCHEMA, Tick, Vm};

use crate::emulator::Vendor;
use crate::error::Error;
use crate::job::{EXITSCOPE, Event, Guest, Insert, Output, Payload, Step};
use crate::progress::Progress;
use crate::session::{Lab, Paging, Setup};

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
}

/// How a run shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine.
    pub setup: Setup,
    /// The guest.
    pub guest: GuestKind,
    /// Its number of vCPUs.
    pub vcpus: u32,
    /// Numbering of the course leaves.
    pub layout: Layout,
    /// Whose exits the guest is told.
    pub expose: Expose,
}

/// Exits of the tiny guest's workload.
const TINY_EXITS: u64 = 100_000;

impl Options {
    /// Loads our module.
    pub(crate) fn insert(&self) -> Step {
        let parameters = format!("expose={} layout={}", self.expose.name(), self.layout.name());
        Step::Insert(Insert { path: EXITSCOPE.into(), parameters })
    }

    /// The guest, named after the paging.
    pub(crate) fn guest(&self, paging: Paging) -> Guest {
        let payload = match self.guest {
            GuestKind::Tiny => Payload::Flat { workload: "cpuid".into(), iterations: TINY_EXITS, batch: 0 },
            GuestKind::Linux => {
                let command = ["/init", "guest", "--json"].map(str::to_owned).to_vec();
                Payload::Linux { commands: vec![command] }
            }
        };
        Guest { name: paging.name().into(), vcpus: self.vcpus, payload }
    }
}

/// Runs it.
pub fn run(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<Report, Error> {
    let mut reports = run_each(lab, options, &[options.setup.paging], progress)?;
    reports.pop().ok_or(Error::NotTold { what: "its counters" })
}

/// Runs it once with nested and once with shadow paging, in one machine whose KVM is loaded anew beneath our module.
/// Each report has the exits of its own guest only.
pub fn run_both(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<[Report; 2], Error> {
    let mut options = options.clone();
    options.setup.paging = Paging::Nested;
    let reports = run_each(lab, &options, &[Paging::Nested, Paging::Shadow], progress)?;
    reports.try_into().map_err(|_| Error::NotTold { what: "its counters" })
}

/// Runs it with each paging; the machine starts with that of the options.
fn run_each(
    lab: &Lab,
    options: &Options,
    pagings: &[Paging],
    progress: &mut Progress,
) -> Result<Vec<Report>, Error> {
    let mut steps = vec![options.insert()];
    for (index, &paging) in pagings.iter().enumerate() {
        if index > 0 {
            steps.extend(lab.reload_kvm(paging));
        }
        steps.extend(account_for(lab.vendor(), options.guest(paging)));
    }
    steps.push(Step::Remove { name: "exitscope".into() });
    let events = lab.run(&options.setup, steps, progress)?;
    accounts(&events).zip(pagings).map(|(account, &paging)| report(lab, options, paging, account)).collect()
}

/// Steps that run a guest and tell what it did and what was counted: one account.
pub(crate) fn account_for(vendor: Vendor, guest: Guest) -> [Step; 2] {
    let label = guest.name.clone();
    [
        Step::Guests { guests: vec![guest], sample_ms: Some(sample_ms(vendor)), meanwhile: vec![] },
        Step::Snapshot { label },
    ]
}

/// What was told of each account, in order; the first begins with what was told before it.
pub(crate) fn accounts(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    events.split_inclusive(|event| matches!(event, Event::Snapshot { .. }))
}

/// The report of one account.
pub(crate) fn report(
    lab: &Lab,
    options: &Options,
    paging: Paging,
    account: &[Event],
) -> Result<Report, Error> {
    let (mut timeline, mut guest, mut snapshot) = (&[][..], None, None);
    for event in account {
        match event {
            Event::Timeline { ticks } => timeline = ticks,
            Event::Guest { pid, outputs, .. } => guest = Some((*pid, outputs)),
            Event::Snapshot { isa, tsc_khz, vms, quality, .. } => {
                snapshot = Some((isa, *tsc_khz, vms, *quality));
            }
            _ => {}
        }
    }
    let (pid, outputs) = guest.ok_or(Error::NotTold { what: "its guest" })?;
    let (isa, tsc_khz, vms, quality) = snapshot.ok_or(Error::NotTold { what: "its counters" })?;
    // Other guests of the same machine have accounts of their own.
    let vms: Vec<Vm> = vms.iter().filter(|vm| vm.pid == pid).cloned().collect();
    let reasons = model::merge(vms.iter().flat_map(|vm: &Vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
    let machine = Machine {
        emulated: true,
        emulator: lab.vendor().emulator().into(),
        vendor: lab.vendor().name().into(),
        kernel: lab.release().into(),
        paging: paging.name().into(),
        tsc_khz,
        instructions_to_module: instructions_to_module(account),
    };
    Ok(Report {
        schema: SCHEMA.into(),
        machine,
        source: "module".into(),
        isa: isa.clone(),
        layout: options.layout.name().into(),
        expose: options.expose.name().into(),
        total: model::total(&reasons),
        reasons,
        vms,
        timeline: shorten(timeline),
        phases: Vec::new(),
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
    if options.guest == GuestKind::Tiny || options.expose == Expose::Off {
        return Ok(None);
    }
    let view = outputs.first().and_then(|output| serde_json::from_str(&output.stdout).ok());
    view.map(Some).ok_or(Error::NotTold { what: "what the guest read" })
}

/// Leaves out ticks before the first exit, but one, and exits that came before.
fn shorten(ticks: &[Tick]) -> Vec<Tick> {
    let Some(start) = ticks.first() else { return vec![] };
    let first = ticks.iter().position(|tick| tick.exits > start.exits).unwrap_or(0).saturating_sub(1);
    let origin = ticks[first];
    let since = |tick: &Tick| Tick { t_ms: tick.t_ms - origin.t_ms, exits: tick.exits - origin.exits };
    ticks[first..].iter().map(since).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_begins_with_the_first_exits() {
        let ticks = [(0, 0), (50, 0), (100, 7), (150, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        let expected = [(0, 0), (50, 7), (100, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        assert_eq!(shorten(&ticks), expected);
        assert_eq!(shorten(&ticks.map(|tick| Tick { exits: tick.exits + 30, ..tick })), expected);
        assert_eq!(shorten(&[]), []);
    }
}

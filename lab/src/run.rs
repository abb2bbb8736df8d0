//! The main job: boots a guest on a stock KVM with our module, and makes a report of its exits.

use exitscope_abi::leaf::{Expose, Layout};
use exitscope_abi::reason::Isa;
use exitscope_host::model::{self, GuestView, Machine, Quality, Report, SCHEMA, Tick, Vm};

use crate::error::Error;
use crate::job::{EXITSCOPE, Event, Guest, Insert, Output, Payload, Step};
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
    fn steps(&self) -> Vec<Step> {
        let parameters = format!("expose={} layout={}", self.expose.name(), self.layout.name());
        let payload = match self.guest {
            GuestKind::Tiny => Payload::Flat { workload: "cpuid".into(), iterations: TINY_EXITS, batch: 0 },
            GuestKind::Linux => {
                let command = ["/init", "guest", "--json"].map(str::to_owned).to_vec();
                Payload::Linux { commands: vec![command] }
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

/// Runs it.
pub fn run(lab: &Lab, options: &Options, progress: &mut Progress) -> Result<Report, Error> {
    let events = lab.run(&options.setup, options.steps(), progress)?;
    let (mut timeline, mut outputs, mut snapshot) = (Vec::new(), Vec::new(), None);
    for event in events {
        match event {
            Event::Timeline { ticks } => timeline = ticks,
            Event::Guest { outputs: told, .. } => outputs = told,
            Event::Snapshot { isa, tsc_khz, vms, unaccounted, overflowed, .. } => {
                snapshot = Some((isa, tsc_khz, vms, Quality { unaccounted, overflowed }));
            }
            _ => {}
        }
    }
    let (isa, tsc_khz, vms, quality) = snapshot.ok_or(Error::NotTold { what: "its counters" })?;
    let reasons = model::merge(vms.iter().flat_map(|vm: &Vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
    let vendor = if isa == Isa::Vmx.name() { "intel" } else { "amd" };
    Ok(Report {
        schema: SCHEMA.into(),
        machine: Machine {
            emulated: true,
            emulator: "qemu-tcg".into(),
            vendor: vendor.into(),
            kernel: lab.release().into(),
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
        timeline: shorten(timeline),
        phases: Vec::new(),
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

/// Leaves out ticks before the first exit, but one.
fn shorten(ticks: Vec<Tick>) -> Vec<Tick> {
    let first = ticks.iter().position(|tick| tick.exits > 0).unwrap_or(0).saturating_sub(1);
    let start = ticks.get(first).map_or(0, |tick| tick.t_ms);
    ticks.into_iter().skip(first).map(|tick| Tick { t_ms: tick.t_ms - start, exits: tick.exits }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_begins_with_the_first_exits() {
        let ticks = [(0, 0), (50, 0), (100, 7), (150, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        let expected = [(0, 0), (50, 7), (100, 9)].map(|(t_ms, exits)| Tick { t_ms, exits });
        assert_eq!(shorten(ticks.to_vec()), expected);
        assert_eq!(shorten(vec![]), []);
    }
}

//! Machines that tests share, as each takes its time to boot: one test's steps after the other's, in one transcript.

use std::sync::OnceLock;
use std::time::Duration;

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{Transcript, machine_with};

use crate::{asking, exactness, interface, registers};

/// What every kernel has to do: so many exits of every kind, all layouts, all policies.
pub fn steps(vendor: Vendor, count: u64) -> Vec<Step> {
    [exactness::steps(vendor, count), asking::steps(vendor), registers::steps(vendor)].concat()
}

/// The transcript of [`steps`] and more on the default kernel. The machine runs when the first test asks for it.
pub fn transcript(vendor: Vendor) -> &'static Transcript {
    static TRANSCRIPTS: [OnceLock<Transcript>; Vendor::ALL.len()] = [const { OnceLock::new() }; _];
    TRANSCRIPTS[vendor as usize].get_or_init(|| {
        let steps = [steps(vendor, exactness::count(vendor)), interface::description_steps()].concat();
        let setup = Setup { name: "shared".into(), deadline: Duration::from_secs(1_200), ..Setup::default() };
        machine_with(vendor, setup, steps)
    })
}

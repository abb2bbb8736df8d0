//! Machines that tests share, as each takes its time to boot: one test's part after the other's.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_lab::parts::series::Series;
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{Lane, Part, Transcript, default_series, machine_of_parts};

use crate::{
    asking, capabilities, doctor, exactness, interface, life, nested, registers, selftest, stat, stat_ends,
};

/// A machine of several parts, of which each lane has one. It runs when the first test asks for it.
pub struct Shared {
    name: &'static str,
    parts: fn(Lane) -> Vec<Part>,
    done: [[OnceLock<BTreeMap<&'static str, Transcript>>; Series::ALL.len()]; Vendor::ALL.len()],
}

/// What the default kernel has to do.
pub static DEFAULT: Shared = Shared::new("shared", of_default);
/// What every other kernel has to do.
pub static OTHER: Shared = Shared::new("all", of_other);

impl Shared {
    const fn new(name: &'static str, parts: fn(Lane) -> Vec<Part>) -> Self {
        Self { name, parts, done: [const { [const { OnceLock::new() }; _] }; _] }
    }

    /// What a lane's machine answered to a part.
    pub fn part(&'static self, lane: impl Into<Lane>, name: &str) -> &'static Transcript {
        let lane = lane.into();
        let done = self.done[lane.vendor as usize][lane.series as usize].get_or_init(|| {
            let deadline = Duration::from_secs(1_800);
            machine_of_parts(
                lane,
                Setup { name: self.name.into(), deadline, ..Setup::default() },
                (self.parts)(lane),
            )
        });
        done.get(name).unwrap_or_else(|| panic!("machine {} has no part {name}", self.name))
    }
}

/// The part that every kernel has: so many exits of every kind, all layouts, all policies.
pub const ALL: &str = "all";

/// The transcript of that part on the default kernel.
pub fn transcript(vendor: Vendor) -> &'static Transcript {
    DEFAULT.part(vendor, ALL)
}

fn all(vendor: Vendor, count: u64) -> Vec<Step> {
    [exactness::steps(vendor, count), asking::steps(vendor), registers::steps(vendor)].concat()
}

fn of_default(lane: Lane) -> Vec<Part> {
    let vendor = lane.vendor;
    if lane.series != default_series() {
        // `make test-kernel-debug` has another default.
        return vec![(selftest::PART, selftest::steps(vendor))];
    }
    let of_both = [
        (ALL, all(vendor, exactness::count(vendor))),
        ("description", interface::description_steps()),
        ("stat", stat::steps(vendor)),
    ];
    let of_one = match vendor {
        Vendor::Intel if lane.series == Series::default() => {
            vec![(selftest::PART, selftest::steps(vendor))]
        }
        Vendor::Intel => vec![],
        Vendor::Amd => vec![
            ("two guests", exactness::two_guests_steps()),
            ("policy of one", interface::policy_steps()),
            ("nonsense", interface::nonsense_steps()),
            ("crowd", interface::crowd_steps()),
            ("short", interface::short_steps()),
            ("room", interface::room_steps()),
            ("at once", life::at_once_steps()),
            ("stopped", life::stopped_steps()),
            ("nested", nested::steps()),
            ("stat ends", stat_ends::steps()),
            ("refusals", life::refusals_steps()),
        ],
    };
    // First what finds a log without a word of the module's, and tracefs not mounted; last what unloads a driver.
    let first = match vendor {
        Vendor::Intel => vec![],
        Vendor::Amd => vec![("doctor", doctor::steps())],
    };
    first
        .into_iter()
        .chain(of_both)
        .chain(of_one)
        .chain([("capabilities", capabilities::steps(vendor))])
        .collect()
}

fn of_other(lane: Lane) -> Vec<Part> {
    let all = (ALL, all(lane.vendor, OTHER_EXITS));
    let selftest = || (selftest::PART, selftest::steps(lane.vendor));
    [all].into_iter().chain((lane.vendor == Vendor::Amd).then(selftest)).collect()
}

/// Exits of every kind on other kernels than the default one.
pub const OTHER_EXITS: u64 = 5_000;

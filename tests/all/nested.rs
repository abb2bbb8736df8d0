//! A guest with a guest of its own: all exits are counted for the reasons they have, and no answer goes astray.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_tests::{insert, remove, zero_and, zero_and_names};

use crate::shared;

const EXITS: u64 = 10_000;
const VCPUS: u32 = 2;
const POLICIES: [&str; 2] = ["vm", "host"];

/// Guests with guests of their own, under each policy.
pub fn steps() -> Vec<Step> {
    let mut steps = vec![Step::StartHistogram, insert("")];
    for policy in POLICIES {
        steps.push(Step::set("expose", policy));
        steps.extend(zero_and(policy, Workload::Nested.name(), EXITS, VCPUS));
    }
    steps.push(Step::Snapshot { label: "nested".into() });
    steps.push(Step::ReadHistogram { label: "nested".into() });
    steps.push(remove());
    steps
}

/// That a nested guest's question changed its hypervisor's registers is for the workload to notice: it then fails, and
/// the machine with it.
#[test]
fn exits_of_nested_guests_are_counted_and_their_hypervisor_gets_no_answer_to_their_questions() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "nested");
    for policy in POLICIES {
        let names = zero_and_names(policy, EXITS);
        for &code in Workload::Nested.exit_codes(Vendor::Amd.isa()) {
            let added = transcript.added("nested", &names, code);
            assert_eq!(added, [EXITS; VCPUS as usize], "{code:#x} with policy {policy}");
        }
    }
    transcript.kernel_agrees("nested");
}

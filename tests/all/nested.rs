//! A guest with a guest of its own: all exits are counted for the reasons they have, and no answer goes astray.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_tests::{insert, machine, zero_and, zero_and_names};

const EXITS: u64 = 10_000;
const VCPUS: u32 = 2;
const POLICIES: [&str; 2] = ["vm", "host"];

/// That a nested guest's question changed its hypervisor's registers is for the workload to notice: it then fails, and
/// the machine with it.
#[test]
fn exits_of_nested_guests_are_counted_and_their_hypervisor_gets_no_answer_to_their_questions() {
    let mut steps = vec![Step::StartHistogram, insert("")];
    for policy in POLICIES {
        steps.push(Step::set("expose", policy));
        steps.extend(zero_and(policy, Workload::Nested.name(), EXITS, VCPUS));
    }
    steps.push(Step::Snapshot { label: "nested".into() });
    steps.push(Step::ReadHistogram { label: "nested".into() });
    let transcript = machine("nested", steps);
    for policy in POLICIES {
        let names = zero_and_names(policy, EXITS);
        for &code in Workload::Nested.exit_codes(Vendor::Amd.isa()) {
            let added = transcript.added("nested", &names, code);
            assert_eq!(added, [EXITS; VCPUS as usize], "{code:#x} with policy {policy}");
        }
    }
    transcript.kernel_agrees("nested");
}

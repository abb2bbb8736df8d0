//! A guest with a guest of its own: all exits are counted for the reasons they have, and no answer goes astray.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_tests::{exits, exits_by_code, flat, guests, insert, machine, sums_are_totals};

const EXITS: u64 = 10_000;
const VCPUS: u32 = 2;
const POLICIES: [&str; 2] = ["vm", "host"];

/// A name for the guest that runs so many nested guests under a policy.
fn named(policy: &str, count: u64) -> String {
    format!("{policy}-{count}")
}

/// That a nested guest's question changed its hypervisor's registers is for the workload to notice: it then fails, and
/// the machine with it.
#[test]
fn exits_of_nested_guests_are_counted_and_their_hypervisor_gets_no_answer_to_their_questions() {
    let mut steps = vec![Step::StartHistogram, insert("")];
    for policy in POLICIES {
        steps.push(Step::set("expose", policy));
        let workload = Workload::Nested.name();
        steps.extend(
            [0, EXITS].map(|count| guests(vec![flat(&named(policy, count), workload, count, VCPUS)])),
        );
    }
    steps.push(Step::Snapshot { label: "nested".into() });
    steps.push(Step::ReadHistogram { label: "nested".into() });
    let transcript = machine("nested", steps);
    for policy in POLICIES {
        let [frame, full] = [0, EXITS].map(|count| &transcript.vm("nested", &named(policy, count)).vcpus);
        assert_eq!((frame.len(), full.len()), (VCPUS as usize, VCPUS as usize));
        for (frame, full) in frame.iter().zip(full) {
            for &code in Workload::Nested.exit_codes(Vendor::Amd.isa()) {
                let added = exits(&full.reasons, code) - exits(&frame.reasons, code);
                assert_eq!(added, EXITS, "{code:#x} on vCPU {} with policy {policy}", full.id);
            }
        }
    }
    sums_are_totals(transcript.snapshot("nested"));
    assert_eq!(exits_by_code(transcript.snapshot("nested")), transcript.kernel_histogram("nested"));
}

//! `exitscope stat` when something ends beneath it: its reader, its command, a VM, the module; and where it may not begin.

use exitscope_lab::job::{Output, Step, Way};
use exitscope_tests::{Transcript, command, flat, guests, insert, refused, remove, while_running};
use serde_json::Value;

use crate::shared;

/// The test's name, and what its machine does.
pub const PART: &str = "stat_ends::whatever_ends_stat_tells_what_it_knows";
/// RDMSRs of the guest that ends while `stat` watches.
const EXITS: u64 = 5_000;
/// A user without rights: nobody.
const NOBODY: u32 = 65_534;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn run_as(label: &str, way: Way, line: &str) -> Step {
    Step::RunAs { label: label.into(), command: words(line), way }
}

/// Runs `stat` until Ctrl-C, and steps once it has mapped the module's device.
fn beside_stat(label: &str, line: &str, meanwhile: Vec<Step>) -> Step {
    let mapped = Step::AwaitText { path: "/sys/module/exitscope/refcnt".into(), text: "1".into() };
    let meanwhile = [mapped].into_iter().chain(meanwhile).collect();
    Step::Interrupt { label: label.into(), command: words(line), meanwhile }
}

pub fn steps() -> Vec<Step> {
    // Above all else there is on this machine, which has no shell.
    let killed = "/init stat -- /init stat --duration 60";
    vec![
        insert(""),
        run_as("closed pipe", Way::ClosedAfter(1), "/init stat -I 100"),
        run_as("closed pipe, CSV", Way::ClosedAfter(1), "/init stat -x, -I 100"),
        run_as("no rights", Way::User(NOBODY), "/init stat --duration 0.1"),
        run_as("terminal", Way::Terminal(10), "/init stat -- /init vmm --workload rdmsr --iterations 100"),
        // It began before `stat`, and ends before it.
        while_running(
            vec![flat("ends", "rdmsr", 30 * EXITS, 1)],
            vec![
                Step::AwaitVm { id: 2 },
                beside_stat("ends", "/init stat --json", vec![
                    refused("in use", remove()),
                    guests(vec![flat("whole", "rdmsr", EXITS, 1)]),
                ]),
            ],
        ),
        Step::Snapshot { label: "ends".into() },
        command("killed", &words(killed).iter().skip(1).map(String::as_str).collect::<Vec<_>>()),
        remove(),
        command("unloaded", &["stat", "--duration", "0.1"]),
    ]
}

#[test]
fn whatever_ends_stat_tells_what_it_knows() {
    let transcript = shared::transcript(PART);
    for label in ["closed pipe", "closed pipe, CSV"] {
        let output = transcript.result_of(label);
        assert_eq!((output.status, output.stderr.as_str()), (Some(0), ""), "{output:?}");
        assert!(!output.stdout.is_empty(), "{output:?}");
    }
    says(transcript.result_of("no rights"), "/dev/exitscope: permission denied (it is root's: use sudo)");
    says(transcript.result_of("unloaded"), "/dev/exitscope does not exist: load the module first");
    is_narrow(transcript.output("terminal"));
    a_vm_that_ends_is_in_the_result(transcript);
}

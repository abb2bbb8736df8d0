//! `exitscope stat` when something ends beneath it: its reader, its command, a VM, the module; and where it may not begin.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Output, Request, Step, Way};
use exitscope_tests::{Transcript, command, flat, guests, insert, refused, remove, while_running};
use serde_json::Value;

use crate::shared;

/// RDMSRs of the guest that comes and ends while `stat` watches.
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
    Step::End { label: label.into(), command: words(line), by: Request::Interrupt, meanwhile }
}

pub fn steps() -> Vec<Step> {
    vec![
        insert(""),
        run_as("closed pipe", Way::ClosedAfter(1), "/init stat -I 100"),
        run_as("closed pipe, CSV", Way::ClosedAfter(1), "/init stat -x, -I 100"),
        run_as("no rights", Way::User(NOBODY), "/init stat --duration 0.1"),
        run_as("terminal", Way::Terminal(10), "/init stat -- /init vmm --workload rdmsr --iterations 100"),
        // The first one's VM is the second of this machine.
        while_running(
            vec![flat("there before", "rdmsr", 30 * EXITS, 1)],
            vec![
                Step::AwaitVm { id: 2 },
                beside_stat(
                    "beside",
                    "/init stat --json",
                    vec![
                        refused("in use", remove()),
                        guests(vec![flat("ends", "rdmsr", EXITS, 1)]),
                        Step::AwaitEnd { id: 2 },
                    ],
                ),
            ],
        ),
        Step::Snapshot { label: "end".into() },
        Step::End {
            label: "killed".into(),
            command: words("/init stat --json -- /init vmm --workload rdmsr --iterations 1000000000"),
            by: Request::Terminate,
            meanwhile: vec![Step::AwaitVm { id: 4 }],
        },
        // A command that fails: its status is ours, and its output is not on our stdout.
        command("status", &["stat", "--json", "--", "/init", "vmm", "--workload", "none"]),
        remove(),
        command("unloaded", &["stat", "--source", "module", "--duration", "0.1"]),
    ]
}

#[test]
fn whatever_ends_stat_tells_what_it_knows() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "stat ends");
    for label in ["closed pipe", "closed pipe, CSV"] {
        let output = transcript.result_of(label);
        assert_eq!((output.status, output.stderr.as_str()), (Some(0), ""), "{output:?}");
        assert!(!output.stdout.is_empty(), "{output:?}");
    }
    complains(
        transcript.result_of("no rights"),
        "/dev/exitscope: Permission denied (os error 13) (it is root's: use sudo)",
    );
    complains(transcript.result_of("unloaded"), "/dev/exitscope does not exist: load the module first");
    assert!(
        transcript.refusal("in use").contains("Resource temporarily unavailable"),
        "{}",
        transcript.refusal("in use")
    );
    let narrow = transcript.output("terminal");
    assert!(narrow.contains("EXIT") && narrow.contains("MSR") && !narrow.contains("KERNEL"), "{narrow}");
    let failed = transcript.result_of("status");
    assert_eq!(failed.status, Some(2), "{failed:?}");
    serde_json::from_str::<Value>(&failed.stdout).unwrap();
    let killed = transcript.result_of("killed");
    assert_eq!(killed.status, Some(128 + 15), "{killed:?}");
    assert!(killed.stderr.contains("/init: killed by signal 15"), "{killed:?}");
    let document: Value = serde_json::from_str(&killed.stdout).unwrap();
    assert!(document["total"]["exits"].as_u64() > Some(0), "{document}");
    a_vm_that_ends_is_in_the_result(transcript);
}

fn complains(output: &Output, text: &str) {
    assert!(output.status == Some(1) && output.stderr.contains(text), "{output:?}");
}

/// As the module has it in the end, where all of the VM's life is in it, and else a part of that.
fn a_vm_that_ends_is_in_the_result(transcript: &Transcript) {
    let document: Value = serde_json::from_str(transcript.output("beside")).unwrap();
    let [ends, there_before] = ["ends", "there before"].map(|guest| {
        let vm = transcript.vm("end", guest);
        let mut vms = document["vms"].as_array().unwrap().iter();
        let told = vms.find(|told| told["id"] == vm.id.as_str()).unwrap();
        assert_eq!(told["finished"], true, "{told}");
        (told["exits"].as_u64().unwrap(), vm.total().exits)
    });
    assert!(ends.0 == ends.1 && ends.1 >= EXITS, "{ends:?}");
    assert!((1..there_before.1).contains(&there_before.0), "{there_before:?}");
}

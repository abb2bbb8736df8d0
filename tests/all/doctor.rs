//! `exitscope doctor` on machines whose state is known: without the module, refused by it, with it, in a guest, and here.

use std::process::Command;

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_model::doctor::{Check, Diagnosis, SCHEMA, Verdict};
use exitscope_tests::{command, insert, linux, program, refused, remove, while_running};

use crate::shared;

const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";

fn parse(text: &str) -> Diagnosis {
    let diagnosis: Diagnosis = serde_json::from_str(text).unwrap();
    assert_eq!(diagnosis.schema, SCHEMA);
    assert_eq!(diagnosis.works, !diagnosis.sources.is_empty());
    diagnosis
}

fn check<'a>(diagnosis: &'a Diagnosis, name: &str) -> &'a Check {
    diagnosis.checks.iter().find(|check| check.name == name).unwrap()
}

fn write(text: &str) -> Step {
    Step::Write { path: FTRACE.into(), text: text.into() }
}

/// It is asked in every state of the module, on the host and in a guest.
pub fn steps() -> Vec<Step> {
    let json = |label| command(label, &["doctor", "--json"]);
    vec![
        json("before"),
        write("0"),
        json("ftrace"),
        refused("load", insert("")),
        write("1"),
        json("log"),
        insert(""),
        while_running(
            vec![linux("guest", &["/init doctor --json"])],
            vec![json("after"), command("text", &["doctor"])],
        ),
        remove(),
    ]
}

#[test]
fn what_it_says_of_a_host_and_of_a_guest_is_so() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "doctor");
    let of = |label: &str| parse(&transcript.result_of(label).stdout);
    let [before, ftrace, log, after] = ["before", "ftrace", "log", "after"].map(of);
    assert_eq!(transcript.result_of("before").status, Some(1));
    for name in ["cpu", "kvm", "kvm-device", "paging", "btf", "preempt-rt", "cfi", "ftrace", "module-loading"]
    {
        assert_eq!(check(&before, name).result, Verdict::Ok, "{:?}", check(&before, name));
    }
    assert_eq!(check(&before, "paging").found, "nested (NPT)");
    assert!(check(&before, "module").found.starts_with("not loaded; not installed"), "{before:?}");

    // What is said to refuse the module does, and the module's own word for it is found afterwards.
    assert_eq!(check(&ftrace, "ftrace").result, Verdict::Fail);
    assert!(check(&ftrace, "module").found.ends_with("see ftrace"), "{ftrace:?}");
    assert_eq!(check(&ftrace, "ebpf").result, Verdict::Warn);
    assert!(transcript.refusal("load").contains("ftrace is switched off"));
    assert!(check(&log, "module").found.contains("ftrace is switched off"), "{log:?}");

    assert_eq!(transcript.result_of("after").status, Some(0));
    assert_eq!(after.sources, ["module"]);
    assert_eq!(check(&after, "module").found, "loaded, expose vm, layout classic");
    let last = transcript.output("text").lines().last().unwrap_or_default();
    assert!(last.starts_with("The module works"), "{last}");

    let guest = &transcript.guest("guest").outputs[0];
    assert_eq!(guest.status, Some(0), "{guest:?}");
    let guest = parse(&guest.stdout);
    assert_eq!(guest.sources, ["guest"]);
    assert!(check(&guest, "hypervisor").found.starts_with("KVM: this machine is a guest"), "{guest:?}");
}

#[test]
fn here_its_status_says_whether_something_works() {
    let output = Command::new(program()).args(["doctor", "--json"]).output().unwrap();
    let diagnosis = parse(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(if diagnosis.works { 0 } else { 1 }));
    assert!(output.stderr.is_empty());
}

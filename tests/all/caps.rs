//! `exitscope caps` on dumps: every form, two side by side, and what this machine says when it has nothing to tell.

use std::fs;
use std::process::{Command, Output};

use exitscope_tests::program;
use serde_json::Value;

const DUMP: &str = "\
------[ Logical CPU #0 ]------
MSR 00000480: 03DA-0500-0000-0013
MSR 00000481: 0000-00FF-0000-0016
MSR 0000048B: 2F5D-7FFF-0000-0000
MSR 00000491: < FAILED >
";

fn caps(dump: &str, options: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump.txt");
    fs::write(&path, dump).unwrap();
    Command::new(program()).args(["caps", "--from"]).arg(&path).args(options).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn json_decodes_to_itself() {
    let first = caps(DUMP, &["--json"]);
    assert_eq!(first.status.code(), Some(0));
    let document = json(&first);
    assert_eq!(document["schema"], "exitscope-caps/1");
    let unnamed = serde_json::json!([{ "address": "0x480", "bit": 57 }, { "address": "0x48b", "bit": 29 }]);
    assert_eq!(document["unnamed"], unnamed);
    assert_eq!(document["cpus"][0]["registers"][3]["raw"], Value::Null);
    let second = caps(&String::from_utf8_lossy(&first.stdout), &["--json"]);
    assert_eq!(second.stdout, first.stdout);
}

#[test]
fn the_courses_style() {
    let output = caps(DUMP, &["--style", "course"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("Pinbased Controls MSR: 0xff00000016\n"), "{text}");
    assert!(text.contains("\n  Enable EPT: Can set=Yes, Can clear=Yes\n"), "{text}");
}

#[test]
fn a_broken_dump_is_told_and_the_rest_shown() {
    let output = caps(&DUMP.replace("0500-0000-0013", "0500"), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("dump.txt: line 2, column 15: `03DA-0500` has 8 digits"), "{stderr}");
    assert_eq!(json(&output)["cpus"][0]["registers"][0]["address"], "0x481");
}

/// What `diff` or `check` says of the dump and a changed one: exit status and standard output, every run of blanks as one.
fn compare(command: &[&str], from: &str, to: &str, options: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a"), DUMP).unwrap();
    fs::write(directory.path().join("b"), DUMP.replace(from, to)).unwrap();
    let mut call = Command::new(program());
    let output = call.current_dir(&directory).arg("caps").args(command).args(options).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    (output.status.code(), lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn diff_answers_by_its_exit_status() {
    let (status, text) = compare(&["diff", "a", "b"], "", "", &[]);
    assert_eq!((status, text.as_str()), (Some(0), "a and b tell the same"));
    let (status, text) = compare(&["diff", "a", "b"], "2F5D-7FFF", "2F5D-7FFD", &[]);
    assert_eq!(status, Some(1));
    assert!(text.contains("\nEnable EPT 1 0 or 1 0 only"), "{text}");
    let (status, text) = compare(&["diff", "a", "b"], "2F5D-7FFF", "2F5D-7FFD", &["--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document["schema"]), (Some(1), &"exitscope-caps-diff/1".into()));
    assert_eq!(document["pairs"][0]["registers"][0]["fields"][0]["name"], "Enable EPT");
    assert_eq!(compare(&["diff", "a"], "", "", &[]).0, Some(2));
}

#[test]
fn check_answers_by_its_exit_status() {
    let check = ["check", "--require", "a", "--on", "b"];
    let (status, text) = compare(&check, "2F5D-7FFF", "2F5D-7FFD", &[]);
    assert_eq!(status, Some(1));
    assert!(text.starts_with("no: b lacks something that a guest may use on a\n"), "{text}");
    assert!(text.contains("\nmissing IA32_VMX_PROCBASED_CTLS2 Enable EPT 1 0 or 1 0 only"), "{text}");
    let (status, text) = compare(&check, "", "", &["--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &document["answer"]),
        (Some(1), &"unknown".into()),
        "the dump does not hold everything"
    );
    assert_eq!(compare(&["check"], "", "", &[]).0, Some(2));
    let (status, _) = compare(&["check", "--require", "nowhere", "--on", "b"], "", "", &[]);
    assert_eq!(status, Some(1));
}

#[test]
fn features_are_required_by_their_names() {
    let on = |features, options: &[&str]| {
        let command = ["check", "--on", "b", "--require", features];
        compare(&command, "2F5D-7FFF", "2F5D-77FF", options)
    };
    assert_eq!(on("vmx-ept,vmx-vmfunc,vid", &[]).0, Some(0));
    let (status, text) = on("vmx-rdrand-exit,vmx-vmfunc", &[]);
    assert_eq!(status, Some(1));
    assert!(
        text.starts_with("no: b lacks something that is required: vmx-rdrand-exit, vmx-vmfunc\n"),
        "{text}"
    );
    assert!(text.contains("\nmissing IA32_VMX_PROCBASED_CTLS2 RDRAND exiting 11 0 or 1 0 only"), "{text}");
    assert_eq!(on("vmx-mtf", &[]).0, Some(1), "it is not known");
    assert_eq!(on("vmx-mtf", &["--missing-only"]).1.lines().count(), 1);
    assert_eq!(on("vmx-ept,vmx-nonsense", &[]).0, Some(2));
}

#[test]
fn a_value_is_held_against_a_machine() {
    let value = |value, options: &[&str]| compare(&["value", "0x48b", value, "--on", "a"], "", "", options);
    assert_eq!(value("0x2002", &[]).0, Some(0));
    let (status, text) = value("0x2002", &["--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document["schema"]), (Some(0), &"exitscope-caps-value/1".into()));
    assert_eq!(compare(&["value", "0x48b", "0x20000000", "--on", "b"], "2F5D", "0F5D", &[]).0, Some(1));
    assert_eq!(compare(&["value", "0x480", "0x1", "--on", "a"], "", "", &[]).0, Some(2));
    assert_eq!(compare(&["value", "0x48b", "0x2f5d7fff00000000"], "", "", &[]).0, Some(2));
}

#[test]
fn what_is_common_is_a_dump() {
    let (status, text) = compare(&["common", "a", "b"], "2F5D-7FFF", "0F5D-7FFD", &[]);
    assert_eq!(status, Some(0));
    assert!(text.contains("\n0x48b 0x0f5d7ffd00000000 # IA32_VMX_PROCBASED_CTLS2"), "{text}");
    let output = caps(&text, &["--json"]);
    assert_eq!((output.status.code(), &json(&output)["cpus"][0]["id"]), (Some(0), &0.into()));
    let (status, text) = compare(&["common", "a"], "", "", &["--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document["schema"]), (Some(0), &"exitscope-caps/1".into()));
}

/// A machine that can virtualize answers; any other says so, and what can be done.
#[test]
fn this_machine_answers_or_says_what_to_do() {
    for arguments in [&["caps"][..], &["caps", "--kvm"], &["caps", "check", "--require", "live"]] {
        let output = Command::new(program()).args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let helps =
            ["--from FILE", "modprobe msr", "be root", "nested=1", "load kvm_", "group", "exitscope lab"];
        match output.status.code() {
            Some(0) => assert!(!output.stdout.is_empty()),
            Some(1) => assert!(helps.iter().any(|help| stderr.contains(help)), "{arguments:?}: {stderr}"),
            status => panic!("{arguments:?}: {status:?}"),
        }
    }
}

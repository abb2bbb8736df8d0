//! `exitscope caps --from`: dumps of every form through the command itself.

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

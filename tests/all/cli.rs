//! The command itself, on this machine: what a user gets wrong is answered with what to do.

use std::path::Path;
use std::process::{Command, Output};

use exitscope_tests::{program, root};

fn exitscope(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).current_dir(root()).output().unwrap()
}

fn check(arguments: &[&str], status: i32, hint: &str) {
    let output = exitscope(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
    assert!(stderr.contains(hint) && output.stdout.is_empty(), "{arguments:?}: {stderr}");
}

#[test]
fn wrong_usage_has_status_2_and_says_what_is_known() {
    check(&["--no-such-flag"], 2, "--no-such-flag");
    check(&["lab", "run", "--kernel", "5.10"], 2, "6.12");
    check(&["lab", "run", "--vendor", "arm"], 2, "amd");
    check(&["lab", "run", "--layout", "modern"], 2, "reordered");
    check(&["lab", "run", "--expose", "all"], 2, "host");
    check(&["lab", "run", "--vcpus", "0"], 2, "1..=64");
    check(&["lab", "run", "--vmm", "vbox"], 2, "qemu");
    check(&["lab", "run", "--guest", "windows"], 2, "debian");
    check(&["lab", "run", "--guest", "debian", "--vmm", "exitscope"], 2, "--guest linux");
    check(&["lab", "run", "--guest", "tiny", "--vmm", "qemu"], 2, "--vmm exitscope");
    check(&["guest", "0xfffffffff"], 2, "32-bit");
    check(&["guest", "--json", "NO_SUCH_REASON"], 2, "NO_SUCH_REASON");
    check(&["vmm"], 2, "--kernel");
    check(&["vmm", "--workload", "nap"], 2, "cpuid");
}

#[test]
fn what_cannot_be_had_has_status_1_and_says_what_to_do() {
    check(&["guest"], 1, "no exitscope answers");
    check(&["guest", "10"], 1, "no exitscope answers");
    check(&["lab", "run", "--vendor", "intel"], 1, "not built yet");
    check(&["lab", "run", "--kernel", "7.2"], 1, "sid");
    check(&["vmm", "--kernel", "/no/such/kernel"], 1, "/");
}

/// A PATH with all that the lab calls before the emulator, and without the emulator.
#[test]
fn a_missing_emulator_names_its_package() {
    let tools = tempfile::tempdir().unwrap();
    for directory in ["/usr/bin", "/bin", "/usr/sbin"].map(Path::new) {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with("qemu-") {
                // The same name in a second directory is already there.
                let _ = std::os::unix::fs::symlink(entry.path(), tools.path().join(name));
            }
        }
    }
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(["lab", "run", "--out"]).arg(out.path()).current_dir(root()).env("PATH", tools.path());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("qemu-system-x86") && stderr.contains("./setup"), "{stderr}");
    let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

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
    check(&["caps", "check"], 2, "--require");
    check(&["caps", "--from", "x", "--style", "pretty"], 2, "course");
    check(&["vmm", "--workload", "nap"], 2, "cpuid");
    check(&["vmm", "--workload", "hlt", "--halt-us", "0"], 2, "--halt-us");
    check(&["selftest", "--iterations", "0"], 2, "--iterations");
    check(&["selftest", "--pairs", "many"], 2, "--pairs");
    check(&["selftest", "--source", "/no/such/file"], 2, "auto, module or bpf");
}

#[test]
fn what_cannot_be_had_has_status_1_and_says_what_to_do() {
    check(&["guest"], 1, "no exitscope answers");
    check(&["guest", "10"], 1, "no exitscope answers");
    check(&["caps", "--from", "/no/such/dump"], 1, "/no/such/dump");
    check(&["vmm", "--kernel", "/no/such/kernel"], 1, "/");
}

#[test]
fn a_mirror_that_does_not_answer_is_told() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(["lab", "run", "--kernel", "7.2", "--out"]).arg(cache.path()).current_dir(root());
    // Nothing listens there.
    command.env("EXITSCOPE_CACHE", cache.path()).env("http_proxy", "http://127.0.0.1:9");
    let output = command.env("https_proxy", "http://127.0.0.1:9").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(["cannot download", "check the network"].iter().all(|hint| stderr.contains(hint)), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// A directory with all that the lab calls but the emulators.
fn tools() -> tempfile::TempDir {
    let tools = tempfile::tempdir().unwrap();
    for directory in ["/usr/bin", "/bin", "/usr/sbin"].map(Path::new) {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if !["qemu-", "bochs"].iter().any(|emulator| name.to_string_lossy().starts_with(emulator)) {
                // The same name in a second directory is already there.
                let _ = std::os::unix::fs::symlink(entry.path(), tools.path().join(name));
            }
        }
    }
    tools
}

/// Runs the lab with these tools, which must fail with these hints and leave nothing behind.
fn lab_fails(tools: &Path, vendor: &str, hints: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.args(["lab", "run", "--vendor", vendor, "--out"]).arg(out.path());
    let output = command.current_dir(root()).env("PATH", tools).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(hints.iter().all(|hint| stderr.contains(hint)), "{stderr}");
    let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_missing_emulator_names_its_package() {
    let tools = tools();
    lab_fails(tools.path(), "amd", &["qemu-system-x86", "./setup"]);
    lab_fails(tools.path(), "intel", &["bochs-term", "./setup"]);
}

#[test]
fn an_emulator_without_what_kvm_needs_is_refused() {
    let tools = tools();
    let fake = |name: &str, says: &str| {
        let path = tools.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    fake("qemu-system-x86_64", "QEMU emulator version 5.2.0");
    lab_fails(tools.path(), "amd", &["its SVM cannot run KVM", "./setup"]);
    fake("bochs", "Bochs x86 Emulator 2.4\nSupported CPU models:\n\nbx_generic\ncorei5_lynnfield_750");
    lab_fails(tools.path(), "intel", &["no VMX that can run KVM", "./setup"]);
}

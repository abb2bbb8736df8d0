//! `make install` puts the program where it is asked to, without being root, and `make uninstall` takes it away.

use std::path::Path;
use std::process::Command;

use exitscope_model::doctor::{Diagnosis, SCHEMA};
use exitscope_tests::root;

fn make(target: &str, destination: &Path) {
    let mut make = Command::new("make");
    make.arg("-s").arg(target).arg(format!("DESTDIR={}", destination.display())).arg("PREFIX=/opt/exitscope");
    // As if nobody had used sudo to run the tests.
    let output = make.current_dir(root()).env_remove("SUDO_USER").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_installed_program_works_and_can_be_removed() {
    let destination = tempfile::tempdir().unwrap();
    make("install", destination.path());
    let installed = destination.path().join("opt/exitscope/bin/exitscope");
    let run = |arguments: &[&str]| {
        let output = Command::new(&installed).args(arguments).current_dir("/").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["--version"]), format!("exitscope {}\n", env!("CARGO_PKG_VERSION")));
    let diagnosis: Diagnosis = serde_json::from_str(&run(&["doctor", "--json"])).unwrap();
    assert_eq!(diagnosis.schema, SCHEMA);
    make("uninstall", destination.path());
    assert!(!installed.exists());
}

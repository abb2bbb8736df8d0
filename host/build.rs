//! Builds the eBPF programs, which the library carries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let directory = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    let root = directory.parent().unwrap_or(&directory);
    for path in ["kernel/bpf", "core/src", "abi/src"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let programs = root.join("kernel/bpf");
    if !programs.join("Makefile").exists() {
        // There are none yet.
        let made = fs::write(Path::new(&out).join("exitscope.bpf.o"), []);
        assert!(made.is_ok(), "cannot write to {}", Path::new(&out).display());
        return;
    }
    let mut assignment = std::ffi::OsString::from("OUT=");
    assignment.push(&out);
    // Not in the jobs of a make that runs cargo.
    let mut make = Command::new("make");
    let status = make.env_remove("MAKEFLAGS").arg("-C").arg(&programs).arg(assignment).status();
    assert!(status.is_ok_and(|status| status.success()), "make -C {} failed: see above", programs.display());
}

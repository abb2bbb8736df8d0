//! Builds the eBPF programs, which the library carries.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let directory = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let root = directory.parent().unwrap_or(&directory);
    for path in ["kernel/bpf", "kernel/rust.mk", "core/src", "abi/src"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let programs = root.join("kernel/bpf");
    // Not in the jobs of a make that runs cargo. The libraries are the same for each profile.
    let mut make = Command::new("make");
    make.env_remove("MAKEFLAGS").arg("-C").arg(&programs).arg(format!("OUT={}", out.display()));
    make.arg(format!("RUST_OUT={}", root.join("target/bpf").display()));
    let status = make.status();
    assert!(status.is_ok_and(|status| status.success()), "make -C {} failed: see above", programs.display());
}

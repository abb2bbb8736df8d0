//! Runs libFuzzer on every fuzz target, each for a while, from its corpus.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cargo, run};

/// What lets libFuzzer see which code a run has reached; `cargo fuzz` gives the same.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Fuzzes for `seconds` on each target. What fails stays in `target/fuzz/failed`.
pub fn fuzz(root: &Path, seconds: &str) -> Result<()> {
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("libFuzzer is built by a C++ compiler: install Debian's package g++");
    }
    let out = root.join("target/fuzz");
    let mut build =
        cargo(&["build", "--quiet", "--profile", "fuzz", "--package", "exitscope-fuzz", "--bins"]);
    build.args(["--features", "libfuzzer", "--target-dir"]).arg(&out).env("RUSTFLAGS", FLAGS.join(" "));
    run(build)?;
    for corpus in directories(&root.join("fuzz/corpus"))? {
        let name = corpus.file_name().context("a corpus without a name")?.to_owned();
        let (found, failed) = (out.join("found").join(&name), out.join("failed"));
        for directory in [&found, &failed] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        eprintln!("xtask: fuzz: {}, {seconds} s", name.to_string_lossy());
        let mut fuzzer = Command::new(out.join("x86_64-unknown-linux-gnu/fuzz").join(&name));
        fuzzer.arg(format!("-max_total_time={seconds}")).args(["-print_final_stats=1", "-verbosity=1"]);
        fuzzer.arg(format!("-artifact_prefix={}/{}-", failed.display(), name.to_string_lossy()));
        // What is new goes to the first; the second is only read.
        fuzzer.args([found, corpus]);
        run(fuzzer)?;
    }
    Ok(())
}

fn directories(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(of).with_context(|| format!("cannot read {}", of.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

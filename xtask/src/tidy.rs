//! What no compiler checks: dependency directions, the documents' paths, the files' first lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Which of our crates each may use. Dependencies point inward.
const ALLOWED: &[(&str, &[&str])] = &[
    ("exitscope-abi", &[]),
    ("exitscope-core", &["abi"]),
    ("exitscope-module", &["abi", "core"]),
    ("exitscope-bpf", &["abi", "core"]),
    ("exitscope-model", &["abi"]),
    ("exitscope-caps", &["abi"]),
    ("exitscope-host", &["abi", "core", "model"]),
    ("exitscope-view", &["abi", "caps", "model"]),
    ("exitscope-guest", &["abi"]),
    ("exitscope-vmm", &["abi"]),
    ("exitscope-lab", &["abi", "caps", "guest", "host", "model", "view", "vmm"]),
    ("exitscope", &["abi", "caps", "guest", "host", "lab", "model", "view", "vmm"]),
    ("exitscope-tests", &["abi", "caps", "core", "guest", "host", "lab", "model", "view"]),
    ("exitscope-fuzz", &["abi", "caps", "core", "host", "lab", "model", "view"]),
    ("xtask", &[]),
];
/// Crates that may hold unsafe code; all others forbid it.
const UNSAFE: &[&str] = &[
    "exitscope-bpf",
    "exitscope-module",
    "exitscope-host",
    "exitscope-caps",
    "exitscope-guest",
    "exitscope-vmm",
];
/// Crates that run in the kernel: nothing from outside comes into the kernel.
const IN_KERNEL: &[&str] = &["exitscope-abi", "exitscope-bpf", "exitscope-core", "exitscope-module"];

/// Runs all checks and reports every finding.
pub fn check(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    dependencies(root, &mut findings)?;
    documents(root, &mut findings)?;
    sources(root, &mut findings)?;
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.join("\n"))
}

fn dependencies(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            findings.push(format!("{name} is not in the list of allowed dependencies (xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let ours = target.strip_prefix("exitscope-");
            if ours.is_some_and(|short| !allowed.contains(&short)) {
                findings.push(format!("{name} must not depend on {target}"));
            }
            if ours.is_none() && IN_KERNEL.contains(&name) && dependency["kind"].is_null() {
                findings.push(format!("{name} runs in the kernel and must not depend on {target}"));
            }
        }
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        forbids_unsafe(name, manifest, findings);
    }
    Ok(())
}

fn forbids_unsafe(name: &str, manifest: &Path, findings: &mut Vec<String>) {
    let directory = manifest.parent().unwrap_or(manifest).join("src");
    let roots = ["lib.rs", "main.rs"].map(|file| directory.join(file));
    let forbids = roots
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|text| text.contains("#![forbid(unsafe_code)]"));
    if forbids == UNSAFE.contains(&name) {
        findings.push(format!("{name}: forbid(unsafe_code) and the list in xtask/src/tidy.rs disagree"));
    }
}

/// Every path that a document names exists.
fn documents(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        let quoted = text.split('`').skip(1).step_by(2);
        let is_path = |word: &&str| {
            word.contains('/') && word.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c))
        };
        for path in
            quoted.filter(is_path).filter(|path| !path.starts_with('/') && !path.starts_with("target/"))
        {
            if !root.join(path.trim_start_matches("./")).exists() {
                findings.push(format!("{name} names {path}, which does not exist"));
            }
        }
    }
    Ok(())
}

/// Every Rust file opens with a sentence that says what it is for.
fn sources(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let output = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root).output();
    let listed = String::from_utf8_lossy(&output.context("cannot run git ls-files")?.stdout).into_owned();
    for path in listed.lines().map(PathBuf::from) {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        let is_build_script = text.starts_with("#!");
        if !is_build_script && !text.starts_with("//! ") {
            findings.push(format!("{} does not open with a `//!` sentence", path.display()));
        }
    }
    Ok(())
}

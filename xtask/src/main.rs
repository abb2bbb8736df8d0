//! The project's own checks: `cargo xtask prepush` is exactly what CI runs.
#![forbid(unsafe_code)]

mod fuzz;
mod tidy;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask prepush | test-kernel-debug | tidy | fuzz [SECONDS] | miri";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepush"] => prepush(),
        ["test-kernel-debug"] => test_kernel_debug(),
        ["tidy"] => tidy::check(&root()),
        ["fuzz"] => fuzz::fuzz(&root(), "60"),
        ["fuzz", seconds] if seconds.parse::<u32>().is_ok() => fuzz::fuzz(&root(), seconds),
        ["miri"] => miri(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The package of the tests of the whole.
const TESTS: &str = "exitscope-tests";

/// Every check, cheapest first; the first that fails ends it.
fn prepush() -> Result<()> {
    step("tidy", || tidy::check(&root()))?;
    optional("fmt", "cargo-fmt", "rustup's component rustfmt, or Debian's rustfmt-web", || {
        run(cargo(&["fmt", "--all", "--check"]))
    })?;
    optional("clippy", "cargo-clippy", "rustup's component clippy", || {
        run(cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("docs", || {
        let mut command = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        run(command)
    })?;
    step("deny", deny)?;
    step("release build", || run(cargo(&["build", "--quiet", "--release"])))?;
    // The kernel target, whatever the lab's kernel is: editors and host builds hide what it lacks.
    step("kernel-target build", || run(make(&["-C", "kernel/module", "rust"])))?;
    step("tests", || run(cargo(&["test", "--workspace", "--exclude", TESTS])))?;
    step("tests of the whole", || {
        // All wait for their turn, which they take two at a time, the longest first.
        let mut tests = cargo(&["test", "--package", TESTS]);
        tests.env("RUST_TEST_THREADS", "100");
        run(tests)
    })
}

/// Tests of the whole that are not run on the debug kernel, by a part of their names, and why not.
const NOT_ON_DEBUG_KERNEL: [(&str, &str); 8] = [
    ("btf::", "they choose their kernels"),
    ("kernels::", "they choose their kernels"),
    ("package::", "it builds for the stock kernel"),
    ("cost::", "most instructions are the checkers'"),
    ("caps::", "it runs on this machine"),
    ("cli::", "it runs on this machine"),
    ("smp::", "with two CPUs Bochs takes ten minutes to the agent's first line, and hours for the test"),
    ("debian_boots", "to this kernel it is Linux under QEMU again, which is run, for many minutes more"),
];

/// The tests of the whole on the debug kernel, with those that need it.
fn test_kernel_debug() -> Result<()> {
    step("release build", || run(cargo(&["build", "--quiet", "--release"])))?;
    let mut tests = cargo(&["test", "--package", TESTS, "--"]);
    tests.env("EXITSCOPE_TEST_KERNEL", "debug").arg("--include-ignored");
    for (test, reason) in NOT_ON_DEBUG_KERNEL {
        eprintln!("xtask: without {test} ({reason})");
        tests.args(["--skip", test]);
    }
    step("tests on the debug kernel", || run(tests))
}

/// Runs the tests of what goes into the kernel under Miri, which only nightly toolchains have.
fn miri() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test", "--package", "exitscope-abi", "--package", "exitscope-core"]);
    // Cargo has set these for xtask's own toolchain.
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").current_dir(root());
    run(command).context("needs rustup's nightly toolchain with its component miri")
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("xtask: {name}");
    let start = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    eprintln!("xtask: {name}: done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A step for which a machine may lack the tool.
fn optional(name: &str, tool: &str, source: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return step(name, work);
    }
    eprintln!("xtask: {name}: skipped: {tool} is not here ({source})");
    Ok(())
}

/// Where tools are kept that are built once: in the lab's cache, or beside all else that is built.
fn tools() -> PathBuf {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("EXITSCOPE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("exitscope")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/exitscope")));
    cache.unwrap_or_else(|| root().join("target")).join("tools")
}

/// Checks licences and sources of all dependencies.
fn deny() -> Result<()> {
    let tools = tools();
    let program =
        ["cargo-deny".into(), tools.join("bin/cargo-deny")].into_iter().find(|program: &PathBuf| {
            let version =
                Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            version.is_ok_and(|status| status.success())
        });
    let program = match program {
        Some(program) => program,
        None => {
            eprintln!("xtask: deny: builds cargo-deny, once (some minutes)");
            let mut install = cargo(&["install", "cargo-deny", "--locked", "--quiet", "--root"]);
            install.arg(&tools);
            run(install)?;
            tools.join("bin/cargo-deny")
        }
    };
    let mut check = Command::new(program);
    // Advisories come from a server of their own, which a build must not depend on.
    check.args(["--log-level", "error", "check", "bans", "licenses", "sources"]).current_dir(root());
    run(check)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

fn make(arguments: &[&str]) -> Command {
    let mut command = Command::new("make");
    command.arg("--no-print-directory").args(arguments).current_dir(root());
    command
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

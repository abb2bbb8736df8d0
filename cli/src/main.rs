//! The `exitscope` command: see every VM exit of KVM — what it was, how often, what it cost.

#![forbid(unsafe_code)]

mod bpf;
mod caps;
mod doctor;
mod guest;
mod lab;
mod module;
mod output;
mod select;
mod selftest;
mod stat;
mod vmm;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::{Usage, explain, is_broken_pipe, tell};

/// See every VM exit of KVM: what it was, how often, what it cost.
#[derive(Parser)]
#[command(name = "exitscope", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// eBPF programs that count without a process, on a host without the module
    #[command(subcommand)]
    Bpf(bpf::Command),
    /// What a CPU's virtualization can do: every bit of every capability register
    Caps(caps::Args),
    /// What works on this machine and what does not, each with what to do
    Doctor(doctor::Args),
    /// Inside a guest: read this VM's exits through CPUID
    Guest(guest::Args),
    /// Run all of it in an emulated machine, on any computer
    #[command(subcommand)]
    Lab(lab::Command),
    /// What the kernel module on this machine has counted; a policy for one VM, a reset
    #[command(subcommand)]
    Module(module::Command),
    /// Prove on this machine that every exit is counted, and measure what that costs
    Selftest(selftest::Args),
    /// The exits of this host's VMs: while a command runs, for a time, or until Ctrl-C
    Stat(stat::Args),
    /// Run a small VM on /dev/kvm: a Linux kernel, or a workload of exits of one kind
    Vmm(vmm::Args),
}

fn main() -> ExitCode {
    if exitscope_lab::agent::is_agent() {
        eprintln!("agent: cannot power off: {}", exitscope_lab::agent::main());
        return ExitCode::FAILURE;
    }
    let Cli { command } = Cli::parse();
    let gives_verdict = command.gives_verdict();
    status(run(command), gives_verdict)
}

/// The exit status; where it is a verdict, it is no yes unless that could be told.
fn status(done: anyhow::Result<ExitCode>, gives_verdict: bool) -> ExitCode {
    match done {
        Ok(code) => code,
        // The reader of our output has seen enough.
        Err(error) if is_broken_pipe(&error) && !gives_verdict => ExitCode::SUCCESS,
        Err(error) => {
            tell(explain(&error));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

impl Command {
    /// Whether its exit status answers a question.
    fn gives_verdict(&self) -> bool {
        match self {
            Self::Doctor(_) | Self::Selftest(_) => true,
            Self::Caps(args) => args.gives_verdict(),
            _ => false,
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bpf(command) => bpf::run(&command)?,
        Command::Caps(args) => return caps::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Guest(args) => return guest::run(&args),
        Command::Lab(command) => lab::run(command)?,
        Command::Module(command) => module::run(&command)?,
        Command::Selftest(args) => return selftest::run(&args),
        Command::Stat(args) => return stat::run(&args),
        Command::Vmm(args) => vmm::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::io;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_one_that_clap_accepts() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_verdict_that_nobody_reads_is_no_yes() {
        let of = |line: &str| {
            let Cli { command } = Cli::parse_from(["exitscope"].into_iter().chain(line.split(' ')));
            let broken_pipe = Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            format!("{:?}", status(broken_pipe, command.gives_verdict()))
        };
        let [yes, no] = [ExitCode::SUCCESS, ExitCode::FAILURE].map(|code| format!("{code:?}"));
        for line in ["selftest", "doctor", "caps diff a b"] {
            assert_eq!(of(line), no, "{line}");
        }
        for line in ["stat", "caps --json", "guest"] {
            assert_eq!(of(line), yes, "{line}");
        }
    }
}

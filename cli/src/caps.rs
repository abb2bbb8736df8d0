//! `exitscope caps`: what a CPU's virtualization can do.

mod machine;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use exitscope_caps::Cpu;
use exitscope_caps::check::{self, Answer};
use exitscope_caps::decode::{Document, decode};
use exitscope_caps::diff::{self, Extent};
use exitscope_caps::usage::Usage;
use exitscope_view::caps::{self as view, Forms};

use crate::output::{print, print_json};
use machine::{Machine, Reading};

/// Options of `exitscope caps`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Show,
}

#[derive(clap::Args)]
struct Show {
    /// Decode a dump: JSON of this command, `MSR 00000480: …` blocks, rdmsr's output, or a list of addresses and
    /// values; `-` for standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Show what KVM offers its guests here, which needs no root
    #[arg(long, conflicts_with = "from")]
    kvm: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "style")]
    json: bool,
    /// How to print
    #[arg(long, default_value = "full")]
    style: Style,
    /// Show controls in both forms, the original and the TRUE one
    #[arg(long)]
    both: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Where two machines differ; exit status 0 if nowhere, 1 if somewhere
    Diff(Diff),
    /// Whether a guest that uses one machine's features runs on another; exit status 0 if so, 1 if not or unknown
    Check(Check),
}

#[derive(clap::Args)]
struct Diff {
    /// A dump's file, `-` for standard input, `live` for this machine, or `kvm` for what its KVM offers
    a: Machine,
    /// Likewise
    b: Machine,
    /// Show what is the same, too
    #[arg(long)]
    all: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Check {
    /// What the guest may use: a dump's file, `-` for standard input, `live` for this machine, or `kvm` for what its
    /// KVM offers
    #[arg(long, value_name = "MACHINE")]
    require: Machine,
    /// Where it is to run; likewise
    #[arg(long, value_name = "MACHINE", default_value = "live")]
    on: Machine,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Style {
    /// A summary in words, then every bit
    Full,
    /// As the course's module prints: can set, can clear
    Course,
}

/// Reads and prints; what could not be read is told after what could.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => args.show.run(),
        Some(Command::Diff(diff)) => diff.run(),
        Some(Command::Check(check)) => check.run(),
    }
}

impl Show {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let machine = match &self.from {
            Some(path) => Machine::Dump(path.clone()),
            None if self.kvm => Machine::Kvm,
            None => Machine::Live,
        };
        let Reading { cpus, kvm, complaint } = machine.read()?;
        self.print(&cpus, kvm)?;
        complaint.map_or(Ok(ExitCode::SUCCESS), Err)
    }

    fn print(&self, cpus: &[Cpu], kvm: Option<Usage>) -> anyhow::Result<()> {
        if self.json {
            return print_json(&Document { kvm, ..decode(cpus) });
        }
        let forms = if self.both { Forms::Both } else { Forms::Taken };
        match self.style {
            Style::Full => {
                print(&kvm.as_ref().map(view::usage).unwrap_or_default())?;
                print(&view::full(cpus, forms))
            }
            Style::Course => print(&view::course(cpus, forms)),
        }
    }
}

impl Diff {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (a, b) = (self.a.read()?, self.b.read()?);
        let extent = if self.all { Extent::All } else { Extent::Differences };
        let diff = diff::diff(&a.cpus, &b.cpus, extent);
        match self.json {
            true => print_json(&diff)?,
            false => print(&view::diff(&diff, &self.a.to_string(), &self.b.to_string()))?,
        }
        finish([a, b], diff.same)
    }
}

impl Check {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (require, on) = (self.require.read()?, self.on.read()?);
        let check = check::check(&require.cpus, &on.cpus);
        match self.json {
            true => print_json(&check)?,
            false => print(&view::check(&check, &self.require.to_string(), &self.on.to_string()))?,
        }
        finish([require, on], check.answer == Answer::Yes)
    }
}

/// The exit status of a question about two machines.
fn finish(readings: [Reading; 2], yes: bool) -> anyhow::Result<ExitCode> {
    match readings.into_iter().find_map(|reading| reading.complaint) {
        Some(complaint) => Err(complaint),
        None => Ok(if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

//! `exitscope caps`: what a CPU's virtualization can do.

mod machine;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use exitscope_caps::check::{self, Answer};
use exitscope_caps::common::{Common as Shared, common};
use exitscope_caps::decode::{Document, decode};
use exitscope_caps::diff::{self, Extent};
use exitscope_caps::usage::Usage;
use exitscope_caps::{Address, Cpu, setting, tables};
use exitscope_view::caps::{self as view, Forms};

use crate::output::{Usage as WrongUsage, print, print_json};
use machine::{Machine, Reading, Required};

/// Options of `exitscope caps`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Show,
}

impl Args {
    /// Whether the exit status answers a question.
    pub fn gives_verdict(&self) -> bool {
        matches!(self.command, Some(Command::Diff(_) | Command::Check(_) | Command::Value(_)))
    }
}

#[derive(clap::Args)]
struct Show {
    /// Decode a dump: JSON of this command, or a text that names registers and their values, such as rdmsr's output, a
    /// log, or a list; `-` for standard input
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
    /// What several machines, or all CPUs of one, have in common, as a dump
    Common(Common),
    /// What a value of controls (or of CR0 or CR4) sets, and whether a machine allows it; exit status 0 if so
    Value(Value),
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
    /// What the guest may use: a dump's file, `-` for standard input, `live` for this machine, `kvm` for what its KVM
    /// offers; or features with commas between, such as vmx-rdrand-exit,vmx-vmfunc
    #[arg(long, value_name = "MACHINE|FEATURES")]
    require: Required,
    /// Where it is to run; likewise
    #[arg(long, value_name = "MACHINE", default_value = "live")]
    on: Machine,
    /// Show only what is known to be missing, not what is unknown
    #[arg(long)]
    missing_only: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Common {
    /// Machines, as for `diff`
    #[arg(required = true, value_name = "MACHINE")]
    machines: Vec<Machine>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Value {
    /// The register that tells which values are allowed, by number or name: 0x482, IA32_VMX_PROCBASED_CTLS
    #[arg(value_parser = register)]
    register: Address,
    /// The value that software sets, in hexadecimal
    #[arg(value_parser = hexadecimal)]
    value: u64,
    /// The machine that is to allow it, as for `diff`; this one unless said, if it can be read
    #[arg(long, visible_alias = "from", value_name = "MACHINE")]
    on: Option<Machine>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn register(text: &str) -> Result<Address, String> {
    let bare = text.strip_suffix(['h', 'H']).filter(|_| !text.starts_with("0x")).unwrap_or(text);
    let digits = bare.strip_prefix("0x").or_else(|| bare.strip_prefix("0X")).unwrap_or(bare);
    let number = u32::from_str_radix(digits, 16).ok().map(Address::Msr);
    let address = number.or_else(|| tables::by_name(text).map(|register| register.address));
    address.ok_or_else(|| "no number (0x482) or name (IA32_VMX_PROCBASED_CTLS) of a register".into())
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    let bare: String = text.chars().filter(|c| !['_', '`'].contains(c)).collect();
    let digits = bare.strip_prefix("0x").or_else(|| bare.strip_prefix("0X")).unwrap_or(&bare);
    let digits = digits.strip_suffix(['h', 'H']).unwrap_or(digits);
    let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    value.ok_or_else(|| "no hexadecimal number of at most 64 bits".into())
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
        Some(Command::Common(common)) => common.run(),
        Some(Command::Value(value)) => value.run(),
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
        let on = self.on.read()?;
        let (mut check, require) = match &self.require {
            Required::Machine(machine) => {
                let require = machine.read()?;
                (check::check(&require.cpus, &on.cpus), Some(require))
            }
            Required::Features(features) => (check::check_features(features, &on.cpus), None),
        };
        if self.missing_only {
            check.missing_only();
        }
        match self.json {
            true => print_json(&check)?,
            false => print(&view::check(&check, &self.require.to_string(), &self.on.to_string()))?,
        }
        finish(require.into_iter().chain([on]), check.answer == Answer::Yes)
    }
}

impl Common {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let readings = self.machines.iter().map(Machine::read).collect::<anyhow::Result<Vec<Reading>>>()?;
        let Shared { cpu, conflicts } = common(readings.iter().flat_map(|reading| &reading.cpus));
        match self.json {
            true => print_json(&decode(&[cpu]))?,
            false => {
                let names: Vec<String> = self.machines.iter().map(ToString::to_string).collect();
                print(&view::list(&cpu, &format!("common to {}", names.join(", "))))?;
            }
        }
        if !conflicts.is_empty() {
            anyhow::bail!("they contradict each other: {}", conflicts.join("; "));
        }
        finish(readings, true)
    }
}

impl Value {
    fn run(&self) -> anyhow::Result<ExitCode> {
        // Where nothing was asked for and nothing can be read, names are worth something.
        let on = match &self.on {
            Some(machine) => Some(machine.read()?),
            None => Machine::Live.read().ok(),
        };
        let cpu = on.as_ref().map(|reading| common(&reading.cpus).cpu);
        let setting = setting::setting(self.register, self.value, cpu.as_ref());
        let setting = setting.map_err(|error| WrongUsage(error.to_string()))?;
        match self.json {
            true => print_json(&setting)?,
            false => print(&view::setting(
                &setting,
                self.on.as_ref().map_or("live".into(), ToString::to_string).as_str(),
            ))?,
        }
        finish(on, setting.answer.is_none_or(|answer| answer == Answer::Yes))
    }
}

/// The exit status of a question about machines.
fn finish(readings: impl IntoIterator<Item = Reading>, yes: bool) -> anyhow::Result<ExitCode> {
    match readings.into_iter().find_map(|reading| reading.complaint) {
        Some(complaint) => Err(complaint),
        None => Ok(if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

//! `exitscope lab`: the emulated machines.

mod bench;
mod common;
mod compare;

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use exitscope_abi::leaf::{Expose, Layout};
use exitscope_lab::emulator::Vendor;
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::course;
use exitscope_lab::runs::report::{self, Options, Source};
use exitscope_lab::runs::session::{Lab, Paging, Setup};
use exitscope_view::course::Course;
use exitscope_view::text;

use common::{guest_and_vmm, names, prepare, program, write};

use crate::output::{print, print_json};

/// Commands of `exitscope lab`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Boot a guest on a stock kernel's KVM and report its exits
    Run(RunArgs),
    /// Compare two runs, or nested with shadow paging
    Compare(compare::Args),
    /// Repeat the experiments of a university course, and write the answers as a page
    Course(CourseArgs),
    /// Measure what watching costs, in instructions per exit
    Bench(bench::Args),
}

/// Options of `exitscope lab course`.
#[derive(clap::Args)]
pub struct CourseArgs {
    /// Print what was measured as one JSON document
    #[arg(long)]
    json: bool,
    /// Where course.html, course.md, course.json and the consoles' logs go
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
}

/// Options of `exitscope lab run`.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Vendor of the emulated CPU
    #[arg(long, default_value = "amd", value_parser = names(&Vendor::ALL, Vendor::name))]
    vendor: String,
    /// Kernel that runs KVM
    #[arg(long, default_value = "6.12", value_parser = PossibleValuesParser::new(Series::ALL.map(Series::name)))]
    kernel: String,
    /// How KVM pages its guests
    #[arg(long, default_value = "nested", value_parser = PossibleValuesParser::new(["nested", "shadow"]))]
    paging: String,
    /// What runs in the VM: bare CPUIDs, Linux, or a Debian system
    #[arg(long, default_value = "linux", value_parser = PossibleValuesParser::new(["tiny", "linux", "debian"]))]
    guest: String,
    /// What runs the VM [default: qemu for debian, else exitscope]
    #[arg(long, value_parser = PossibleValuesParser::new(["exitscope", "qemu"]))]
    vmm: Option<String>,
    /// vCPUs of the guest
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Numbering of the course's leaves
    #[arg(long, default_value = "classic", value_parser = names(Layout::ALL, Layout::name))]
    layout: String,
    /// Whose exits the guest is told
    #[arg(long, default_value = "vm", value_parser = names(Expose::ALL, Expose::name))]
    expose: String,
    /// What counts: our module, or our eBPF programs, which do not answer the guest
    #[arg(long, default_value = "module", value_parser = PossibleValuesParser::new(Source::ALL.map(Source::name)))]
    source: String,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
    /// Where report.json and the console's log go
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
}

/// Does a command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run_one(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Course(args) => run_course(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

fn run_course(args: &CourseArgs) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let program = program()?;
    let mut prepare = |vendor| Lab::prepare(vendor, Series::V6_12, &program, &args.out, &mut progress);
    let (intel, amd) = (prepare(Vendor::Intel)?, prepare(Vendor::Amd)?);
    let mut course = Course::default();
    course::measure_full_boot(&amd, &mut course, &mut progress)?;
    for lab in [&intel, &amd] {
        course::measure(lab, &mut course, &mut progress)?;
    }
    progress.done();
    let [html, markdown, json] = ["html", "md", "json"].map(|kind| args.out.join(format!("course.{kind}")));
    write(&html, &exitscope_view::course::html(&course))?;
    write(&markdown, &exitscope_view::course::markdown(&course))?;
    write(&json, &serde_json::to_string_pretty(&course)?)?;
    if args.json {
        return print_json(&course);
    }
    print(&exitscope_view::course::markdown(&course))?;
    print(&format!("\nAs a page: {}\n", html.display()))
}

fn run_one(args: &RunArgs) -> anyhow::Result<()> {
    let (guest, vmm) = guest_and_vmm(&args.guest, args.vmm.as_deref())?;
    let options = Options {
        setup: Setup {
            paging: if args.paging == "shadow" { Paging::Shadow } else { Paging::Nested },
            ..Setup::default()
        },
        source: if args.source == "bpf" { Source::Bpf } else { Source::Module },
        guest,
        vmm,
        vcpus: args.vcpus,
        layout: Layout::from_name(&args.layout).with_context(|| format!("unknown layout {}", args.layout))?,
        expose: Expose::from_name(&args.expose).with_context(|| format!("unknown policy {}", args.expose))?,
    };
    let mut progress = Progress::new();
    let lab = prepare(&args.vendor, &args.kernel, &args.out, &mut progress)?;
    let report = report::run(&lab, &options, &mut progress)?;
    progress.done();
    let path = args.out.join("report.json");
    write(&path, &serde_json::to_string_pretty(&report)?)?;
    if args.json {
        return print_json(&report);
    }
    print(&text::report(&report))?;
    print(&format!("\nAll of it: {}\n", path.display()))
}

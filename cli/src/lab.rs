//! `exitscope lab`: the emulated machines.

mod bench;
mod compare;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use exitscope_abi::leaf::{Expose, Layout};
use exitscope_lab::emulator::Vendor;
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::course;
use exitscope_lab::runs::report::{self, GuestKind, Options, Vmm};
use exitscope_lab::runs::session::{Lab, Paging, Setup};
use exitscope_model::Report;
use exitscope_view::course::Course;
use exitscope_view::text;

use crate::output::{Usage, print, print_json};

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
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
    /// Where report.json and the console's log go
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
}

fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> PossibleValuesParser {
    PossibleValuesParser::new(all.iter().map(|&member| name(member)))
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

/// Runs the same guest with nested and with shadow paging; leaves nested.json and shadow.json in `--out`.
fn run_both(args: &compare::Args) -> anyhow::Result<[Report; 2]> {
    let (guest, vmm) = guest_and_vmm(&args.guest, None)?;
    let mut progress = Progress::new();
    let lab = prepare(&args.vendor, &args.kernel, &args.out, &mut progress)?;
    let options = Options {
        setup: Setup::default(),
        guest,
        vmm,
        vcpus: 1,
        layout: Layout::Classic,
        expose: Expose::Vm,
    };
    let reports = report::run_both(&lab, &options, &mut progress)?;
    progress.done();
    for report in &reports {
        let path = args.out.join(format!("{}.json", report.machine.paging));
        write(&path, &serde_json::to_string_pretty(report)?)?;
    }
    Ok(reports)
}

fn prepare(vendor: &str, kernel: &str, out: &Path, progress: &mut Progress) -> anyhow::Result<Lab> {
    let known = Vendor::ALL.into_iter().find(|known| known.name() == vendor);
    let vendor = known.with_context(|| format!("unknown vendor {vendor}"))?;
    Ok(Lab::prepare(vendor, series(kernel)?, &program()?, out, progress)?)
}

fn series(name: &str) -> anyhow::Result<Series> {
    let series = Series::ALL.into_iter().find(|series| series.name() == name);
    series.with_context(|| format!("unknown kernel {name}"))
}

/// The guest, and what runs it; some of both do not fit each other.
fn guest_and_vmm(guest: &str, vmm: Option<&str>) -> Result<(GuestKind, Vmm), Usage> {
    match (guest, vmm) {
        ("tiny", Some("qemu")) => Err(Usage(
            "--guest tiny has no operating system and needs --vmm exitscope: for --vmm qemu, use --guest linux or debian".into(),
        )),
        ("debian", Some("exitscope")) => Err(Usage(
            "--guest debian needs the disk and firmware of --vmm qemu: leave --vmm out, or use --guest linux".into(),
        )),
        ("debian", _) => Ok((GuestKind::Debian, Vmm::Qemu)),
        ("tiny", _) => Ok((GuestKind::Tiny, Vmm::Exitscope)),
        (_, Some("qemu")) => Ok((GuestKind::Linux, Vmm::Qemu)),
        _ => Ok((GuestKind::Linux, Vmm::Exitscope)),
    }
}

/// This very program, which runs in the emulated machine too.
fn program() -> anyhow::Result<PathBuf> {
    env::current_exe().context("cannot find this program's own file")
}

/// Writes a file in one step, so that no half of it is ever seen.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("tmp");
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    written
        .inspect_err(|_| drop(fs::remove_file(&unfinished)))
        .with_context(|| format!("cannot write {}", path.display()))
}

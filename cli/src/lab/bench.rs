//! `exitscope lab bench`: what observing exits costs, as a table, as Markdown for docs/benchmarks.md, or as JSON.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use exitscope_abi::reason::Isa;
use exitscope_lab::emulator::{self, Vendor};
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::bench::{self, Bench, Cost};
use exitscope_view::text::{Table, grouped};

use super::common::{names, prepare};
use crate::output::{print, print_json};

/// Options of `exitscope lab bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Vendor of the emulated CPU
    #[arg(long, default_value = "amd", value_parser = names(&Vendor::ALL, Vendor::name))]
    vendor: String,
    /// Kernel that runs KVM
    #[arg(long, default_value = "6.12", value_parser = PossibleValuesParser::new(Series::ALL.map(Series::name)))]
    kernel: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Print a section of docs/benchmarks.md
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Where the console's log goes
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
}

/// Measures and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let lab = prepare(&args.vendor, &args.kernel, &args.out, &mut progress)?;
    let bench = bench::run(&lab, &mut progress)?;
    progress.done();
    if args.json {
        return print_json(&bench);
    }
    if args.markdown {
        let (vendor, version) = (lab.vendor(), emulator::probe(lab.vendor())?.version);
        return print(&markdown(&bench, vendor, version, lab.release()));
    }
    print(&format!(
        "Instructions per exit, counted by the emulator (Linux {})\n\n{}",
        lab.release(),
        table(&bench)
    ))
}

/// A row for each observer and case.
fn table(bench: &Bench) -> Table {
    let headings = ["WATCH", "WORKLOAD", "VCPUS", "VMS", "NEIGHBOUR", "INSTRUCTIONS/EXIT", "ADDED"];
    let mut table = Table::new(&headings).left(1).left(4);
    for cost in &bench.bench {
        let numbers = [cost.instructions_per_exit, cost.added].map(|number| format!("{number:.2}"));
        let neighbour = cost.neighbour.clone().unwrap_or_else(|| "-".into());
        let words = [
            cost.watch.clone(),
            cost.workload.clone(),
            cost.vcpus.to_string(),
            cost.vms.to_string(),
            neighbour,
        ];
        table.row(words.into_iter().chain(numbers));
    }
    table
}

/// A section with a row for each case: the round trip without an observer, and what each observer adds.
fn markdown(bench: &Bench, vendor: Vendor, version: (u32, u32, u32), release: &str) -> String {
    let (cpu, emulator) = match vendor.isa() {
        Isa::Svm => ("AMD (SVM)", "QEMU"),
        Isa::Vmx => ("Intel (VMX)", "Bochs"),
    };
    let (major, minor, patch) = version;
    let mut text = format!(
        "## {cpu}\nLinux {release} in {emulator} {major}.{minor}.{patch}. `exitscope lab bench --vendor {} --markdown` made this section.\n\n",
        vendor.name()
    );
    let mut observers: Vec<&str> = Vec::new();
    for cost in &bench.bench {
        if cost.watch != "none" && !observers.contains(&cost.watch.as_str()) {
            observers.push(&cost.watch);
        }
    }
    let heading = observers.iter().map(|observer| format!(" {observer} |")).collect::<String>();
    let _ = writeln!(text, "| guest | nothing watching |{heading}");
    let _ = writeln!(text, "| --- | ---: |{}", " ---: |".repeat(observers.len()));
    for base in bench.bench.iter().filter(|cost| cost.watch == "none") {
        let _ = write!(text, "| {} | {} |", case(base), number(base.instructions_per_exit));
        for observer in &observers {
            let same = |cost: &&Cost| cost.watch == *observer && case(cost) == case(base);
            let added = bench.bench.iter().find(same).map(|cost| cost.added);
            let added =
                added.map(|added| format!("{}{}", if added < 0.0 { '-' } else { '+' }, number(added)));
            let _ = write!(text, " {} |", added.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// `rdmsr, 8 vCPUs`.
fn case(cost: &Cost) -> String {
    let mut text = cost.workload.clone();
    if cost.vcpus > 1 {
        let _ = write!(text, ", {} vCPUs", cost.vcpus);
    }
    match &cost.neighbour {
        Some(neighbour) => {
            let _ = write!(text, ", beside a guest that runs {neighbour}");
        }
        None if cost.vms > 1 => {
            let _ = write!(text, ", one of {} VMs", cost.vms);
        }
        None => {}
    }
    text
}

/// A number without its sign, with its hundredths if it has any: `2,745` or `72.05`.
fn number(number: f64) -> String {
    let hundredths = (number.abs() * 100.0).round() as u64;
    match hundredths % 100 {
        0 => grouped(hundredths / 100),
        rest => format!("{}.{rest:02}", grouped(hundredths / 100)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(watch: &str, workload: &str, vms: u32, instructions_per_exit: f64, added: f64) -> Cost {
        Cost {
            lane: "amd".into(),
            watch: watch.into(),
            workload: workload.into(),
            vcpus: 1,
            vms,
            neighbour: None,
            instructions_per_exit,
            added,
        }
    }

    #[test]
    fn each_case_is_a_row_and_each_observer_a_column() {
        let costs = vec![
            cost("none", "cpuid", 1, 2_745.0, 0.0),
            cost("none", "cpuid", 64, 2_745.0, 0.0),
            cost("module", "cpuid", 1, 2_821.05, 76.05),
            cost("module", "cpuid", 64, 2_821.0, 76.0),
            cost("ftrace", "cpuid", 1, 4_001.0, 1_256.0),
        ];
        let bench = Bench { schema: bench::SCHEMA.into(), bench: costs };
        assert_eq!(
            markdown(&bench, Vendor::Amd, (7, 2, 22), "6.12.1"),
            "## AMD (SVM)\n\
             Linux 6.12.1 in QEMU 7.2.22. `exitscope lab bench --vendor amd --markdown` made this section.\n\n\
             | guest | nothing watching | module | ftrace |\n\
             | --- | ---: | ---: | ---: |\n\
             | cpuid | 2,745 | +76.05 | +1,256 |\n\
             | cpuid, one of 64 VMs | 2,745 | +76 |  |\n"
        );
    }

    #[test]
    fn json_follows_the_schema() {
        let bench =
            Bench { schema: bench::SCHEMA.into(), bench: vec![cost("none", "cpuid", 1, 2_745.0, 0.0)] };
        let json = serde_json::to_value(&bench).unwrap();
        assert_eq!(json["schema"], "exitscope-bench/1");
        for field in ["lane", "watch", "workload", "instructions_per_exit", "added", "vcpus", "vms", "beside"]
        {
            assert!(json["bench"][0].get(field).is_some(), "{field}");
        }
    }
}

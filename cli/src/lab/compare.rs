//! `exitscope lab compare`: two runs side by side, from files or made now.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use exitscope_abi::leaf::{Expose, Layout};
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::report::{self, Options, Source};
use exitscope_lab::runs::session::Setup;
use exitscope_model::compare::Comparison;
use exitscope_model::{self as model, Report};
use serde_json::Value;

use super::common::{guest_and_vmm, prepare, write};
use crate::output::{print, print_json};

/// Options of `exitscope lab compare`.
#[derive(clap::Args)]
pub struct Args {
    /// A report of `exitscope lab run --json`; without any, a boot with nested paging
    #[arg(value_name = "A.json", requires = "b")]
    a: Option<PathBuf>,
    /// The report to compare with it; without any, the same boot with shadow paging
    #[arg(value_name = "B.json")]
    b: Option<PathBuf>,
    /// Vendor of the emulated CPU
    #[arg(long, default_value = "amd", value_parser = PossibleValuesParser::new(["amd", "intel"]), conflicts_with = "a")]
    pub vendor: String,
    /// Kernel that runs KVM
    #[arg(long, default_value = "6.12", value_parser = PossibleValuesParser::new(Series::ALL.map(Series::name)), conflicts_with = "a")]
    pub kernel: String,
    /// What runs in the VM: bare CPUIDs, Linux, or a Debian system
    #[arg(long, default_value = "linux", value_parser = PossibleValuesParser::new(["tiny", "linux", "debian"]), conflicts_with = "a")]
    pub guest: String,
    /// Print the comparison as one JSON document
    #[arg(long)]
    json: bool,
    /// Where nested.json, shadow.json, compare.json and the console's log go
    #[arg(long, value_name = "DIR", default_value = "target/lab", conflicts_with = "a")]
    pub out: PathBuf,
}

/// Compares and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let comparison = if let (Some(a), Some(b)) = (&args.a, &args.b) {
        Comparison::new(&read(a)?, &read(b)?)?
    } else {
        let [nested, shadow] = run_both(args)?;
        let comparison = Comparison::new(&nested, &shadow)?;
        write(&args.out.join("compare.json"), &serde_json::to_string_pretty(&comparison)?)?;
        comparison
    };
    if args.json {
        return print_json(&comparison);
    }
    print(&exitscope_view::compare::text(&comparison))
}

/// Runs the same guest with nested and with shadow paging; leaves nested.json and shadow.json in `--out`.
fn run_both(args: &Args) -> anyhow::Result<[Report; 2]> {
    let (guest, vmm) = guest_and_vmm(&args.guest, None)?;
    let mut progress = Progress::new();
    let lab = prepare(&args.vendor, &args.kernel, &args.out, &mut progress)?;
    let options = Options {
        setup: Setup::default(),
        source: Source::Module,
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

/// Reads a report.
fn read(path: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text)
        .with_context(|| format!("{} is no report (`exitscope lab run --json` writes one)", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Report> {
    let value: Value = serde_json::from_str(text).context("it is not JSON")?;
    match value.get("schema").and_then(Value::as_str) {
        Some(model::SCHEMA) => {}
        Some(other) => bail!("its schema is {other}, not {}", model::SCHEMA),
        None => bail!("it names no schema, where a report says {}", model::SCHEMA),
    }
    serde_json::from_value(value).context("a part of it is missing or of the wrong kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_nothing_else() {
        let report = Report { schema: model::SCHEMA.into(), ..Report::default() };
        assert_eq!(parse(&serde_json::to_string(&report).unwrap()).unwrap(), report);
        for (text, told) in [
            ("{", "not JSON"),
            ("{}", "no schema"),
            (r#"{"schema": "exitscope-bench/1"}"#, "exitscope-bench/1"),
            (r#"{"schema": "exitscope/1"}"#, "missing"),
        ] {
            assert!(parse(text).unwrap_err().to_string().contains(told), "{text}");
        }
    }
}

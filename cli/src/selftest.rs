//! `exitscope selftest`: the proof, on this very machine, that every exit is counted once and timed where it was spent.

mod cost;
mod exact;
mod guest;
mod leaves;
mod machine;
mod module;
mod time;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use exitscope_abi::reason::Isa;
use exitscope_host::names::in_initial_namespace;
use exitscope_host::source::{Choice, Source};
use exitscope_model::selftest::{Check, Cost, Machine, Selftest};
use exitscope_model::snapshot::Clock;
use exitscope_view::selftest as view;

use self::guest::{Counted, Ended, Work};
use self::module::{InUse, Module};
use self::witness::Witness;
use crate::output::{Usage, print, print_json, tell};
use crate::workload::Stop;

/// Options of `exitscope selftest`.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document, without the names of hosts or processes
    #[arg(short, long)]
    json: bool,
    /// Which source is tested: the module if it is loaded, else eBPF; or one of the two
    #[arg(long, value_name = "auto|module|bpf", default_value = "auto")]
    source: String,
    /// Load the kernel module from this file for the test, and unload it at its end; only then it can be measured what
    /// watching costs
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Exits of each kind that are counted
    #[arg(long, value_name = "N", default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    iterations: u64,
    /// Pairs of measurements with and without the module at most, as many as 20 s allow
    #[arg(long, value_name = "N", default_value_t = 31, value_parser = pairs)]
    pairs: usize,
}

fn pairs(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..=1000).contains(&number) { Ok(number) } else { Err("want 1 to 1000".into()) }
}

/// Makes all checks, and tells how they ended.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let choice = Choice::parse(&args.source);
    if let Choice::File(path) = &choice {
        bail!(Usage(format!(
            "a self-test needs a source that counts: auto, module or bpf, not {}",
            path.display()
        )));
    }
    if !in_initial_namespace(Path::new("/proc")) {
        bail!(
            "the source numbers processes as the host does: run the self-test in the host's PID namespace, not in a container"
        );
    }
    let isa = crate::vmm::isa()?;
    let stop = Stop::watch()?;
    let mut checks = Checks { quiet: args.json, list: Vec::new() };
    // Unloaded when all else is gone: what is declared first is dropped last.
    let mut module = args.module.as_deref().map(Module::load).transpose()?.flatten();
    let source = Source::open(&choice)?;
    let clock = source.snapshot().clock;
    // The clock of eBPF is another one.
    let is_module = source.origin().source == "module";
    let tsc_khz = if is_module { clock.khz } else { 0 };
    let machine = Machine { tsc_khz, ..machine::describe(isa, &source) };
    checks.print(&view::heading(&machine))?;
    let bench = Bench { source: &source, stop: &stop, isa, clock, machine: &machine };
    count(&bench, args.iterations, &mut checks)?;
    if is_module {
        leaves::check(&bench, &mut checks)?;
    } else {
        for name in ["leaf-discovery", "leaf-total", "leaf-vcpu", "leaf-course"] {
            checks.tell(Check::skip(name, "the source is eBPF, which answers no guest"))?;
        }
    }
    time::check(&bench, &mut checks)?;
    // Nobody may have the module's device open while it is unloaded.
    drop(source);
    let cost = match &mut module {
        Some(module) if clock.khz > 0 => {
            let measured = cost::measure(module, &stop, clock, args.pairs);
            let (check, cost) = judge(measured, stop.is_asked_for());
            checks.tell(check)?;
            cost
        }
        _ => {
            let why = if is_module {
                not_measured(args, module.is_some())
            } else {
                "of eBPF it is measured by `exitscope lab bench` only"
            };
            checks.tell(Check::skip("cost", why))?;
            Vec::new()
        }
    };
    let removed = module.as_mut().map_or(Ok(()), Module::remove);
    let selftest = Selftest::new(machine, checks.list, cost);
    if args.json {
        print_json(&selftest)?;
    } else {
        print(&view::ending(&selftest))?;
    }
    // It says nothing about the source.
    if let Err(error) = removed {
        tell(format_args!("{error:#}"));
    }
    Ok(if selftest.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The check that the measurement of the cost is. One that could not be made proves nothing against the source, and what
/// has been proven before stays so.
fn judge(measured: anyhow::Result<(Vec<Cost>, String)>, interrupted: bool) -> (Check, Vec<Cost>) {
    match measured {
        Ok((cost, why)) => (Check::of("cost", Ok(why)), cost),
        Err(_) if interrupted => (Check::skip("cost", "interrupted"), Vec::new()),
        Err(error) if error.is::<InUse>() => (Check::skip("cost", error.to_string()), Vec::new()),
        Err(error) => (Check::of("cost", Err(format!("{error:#}"))), Vec::new()),
    }
}

/// Why the cost is not known.
fn not_measured(args: &Args, ours: bool) -> &'static str {
    match &args.module {
        Some(_) if ours => "the frequency of the clock is unknown",
        Some(_) => "the module was loaded already, and others may need it: unload it first (rmmod exitscope)",
        None => "it takes loading and unloading the module: rmmod exitscope, then selftest --module FILE",
    }
}

/// What checks are made with.
#[derive(Clone, Copy)]
struct Bench<'a> {
    source: &'a Source,
    stop: &'a Stop,
    isa: Isa,
    clock: Clock,
    machine: &'a Machine,
}

impl Bench<'_> {
    /// Runs a guest to its end, and reads what the source has counted of it.
    fn count(&self, work: &Work) -> anyhow::Result<(Ended, Counted)> {
        guest::run(work, self.stop, |pid| guest::counted(&self.source.snapshot(), pid))
    }
}

/// The checks that have been made.
struct Checks {
    /// Whether nobody is told yet.
    quiet: bool,
    list: Vec<Check>,
}

impl Checks {
    /// Text for a person.
    fn print(&self, text: &str) -> anyhow::Result<()> {
        if self.quiet { Ok(()) } else { print(text) }
    }

    /// Adds a check that has ended.
    fn tell(&mut self, check: Check) -> anyhow::Result<()> {
        self.print(&view::check(&check))?;
        self.list.push(check);
        Ok(())
    }
}

/// Counts exits of every kind, beside the kernel's histogram.
fn count(bench: &Bench<'_>, iterations: u64, checks: &mut Checks) -> anyhow::Result<()> {
    let witness = Witness::start();
    let counts = exact::check(bench, iterations, checks)?;
    let check = match witness {
        Ok(witness) => {
            let seen = witness.read();
            Check::of("witness", seen.and_then(|exits| exact::witness(&counts, &exits, bench.isa)))
        }
        Err(why) => Check::skip("witness", why),
    };
    checks.tell(check)?;
    checks.tell(Check::of("sums", exact::sums(&counts, bench.isa)))
}

#[cfg(test)]
mod tests {
    use exitscope_model::selftest::Verdict;

    use super::*;

    #[test]
    fn a_cost_that_cannot_be_measured_proves_nothing() {
        let result = |measured, interrupted| judge(measured, interrupted).0.result;
        let hangs = || Err(anyhow::anyhow!("guest cpuid: its VMM ended without a word"));
        assert_eq!(result(Ok((vec![], "3 pairs".into())), false), Verdict::Pass);
        assert_eq!(result(Err(InUse.into()), false), Verdict::Skip);
        assert_eq!([result(hangs(), true), result(hangs(), false)], [Verdict::Skip, Verdict::Fail]);
    }
}

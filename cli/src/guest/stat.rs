//! `exitscope guest stat`: the exits that a command in this guest causes, as CPUID tells them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use exitscope_abi::leaf::{Expose, Scope};
use exitscope_guest::leaves::Leaves;
use exitscope_guest::vcpu::{self, Elsewhere};
use exitscope_model::guest_stat::{GuestStat, Reading};
use exitscope_view::guest_stat as view;

use crate::output::Out;
use crate::stat::terminal_width;
use crate::workload::{Running, Stop, next, wait};

/// Options of `exitscope guest stat`.
#[derive(clap::Args)]
pub struct Args {
    /// Print what came in each interval of so many ms
    #[arg(short = 'I', long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    interval: Option<u64>,
    /// Let the command run on any vCPU, and count those of the whole VM
    #[arg(long)]
    no_pin: bool,
    /// Print JSON: one document, or one on each line in intervals
    #[arg(short, long)]
    json: bool,
    /// Write to this file instead of to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Watch while this runs; its exit status is passed on
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Watches and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let leaves = Leaves::find()?;
    let scope = if args.no_pin { Scope::Policy } else { Scope::Vcpu };
    if !leaves.has_vcpu_leaves() {
        bail!("the host's exitscope is older than this program and has no leaves for this: update it");
    }
    let cpu =
        if args.no_pin { None } else { Some(vcpu::stay().context("cannot stay on one CPU: try --no-pin")?) };
    let mut watch =
        Watch { args, leaves, scope, cpu, out: Out::open(args.output.as_deref())?, stop: Stop::watch()? };
    watch.run()
}

struct Watch<'a> {
    args: &'a Args,
    leaves: Leaves,
    scope: Scope,
    /// The CPU that the command stays on.
    cpu: Option<u32>,
    out: Out,
    stop: Stop,
}

/// A moment: what the leaves said, and what else the vCPU had done.
struct Moment {
    at: Instant,
    ticks: u64,
    reading: Reading,
    elsewhere: Elsewhere,
}

impl Watch<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        // Twice: the second tells what the reading itself costs.
        let (first, before) = (self.moment()?, self.moment()?);
        let cost = before.reading.cost_of_reading(&first.reading);
        let mut running =
            Running::start(&self.args.command, self.args.json && self.args.output.is_none(), |_| {})?;
        let watched = self.watch(&mut running, before, cost);
        running.finish_after(&watched, &self.stop).map(ExitCode::from)
    }

    /// Shows what comes, until the command's end.
    fn watch(&mut self, running: &mut Running, before: Moment, cost: u64) -> anyhow::Result<()> {
        let start = before.at;
        let step = self.args.interval.map(Duration::from_millis);
        let mut earlier = before;
        loop {
            let until = step.and_then(|step| next(start, step));
            let over = wait(Some(running), until, self.args.output.is_none(), &self.stop, || {}).is_over()?;
            let now = self.moment()?;
            if now.reading.has_begun_anew(&earlier.reading) {
                bail!("the host's module has been loaded anew meanwhile: what it had counted is lost");
            }
            self.show(&earlier, &now, cost)?;
            if over {
                return Ok(());
            }
            earlier = now;
        }
    }

    fn moment(&self) -> anyhow::Result<Moment> {
        let elsewhere = Elsewhere::now(self.cpu);
        let (at, ticks) = (Instant::now(), vcpu::ticks());
        Ok(Moment { at, ticks, reading: self.read()?, elsewhere })
    }

    /// Every reason's account. CPUID comes first, so that it is known how many of its exits the reading itself caused
    /// before and after that. An error if the leaves do not say any more what they said at first.
    fn read(&self) -> anyhow::Result<Reading> {
        let isa = self.leaves.discovery().isa;
        let mut reading = Reading::new(isa);
        let codes = isa.reasons().iter().map(|reason| reason.code);
        for code in std::iter::once(isa.cpuid()).chain(codes.filter(|&code| code != isa.cpuid())) {
            let figures = match self.scope {
                Scope::Vcpu => self.leaves.vcpu_reason(code),
                Scope::Policy => self.leaves.reason(code),
            };
            reading.asked(if self.scope == Scope::Vcpu { 1 } else { 2 });
            let Some(figures) = figures.filter(|figures| figures.exits > 0) else { continue };
            let parts = self.leaves.parts(self.scope, code).unwrap_or_default();
            reading.asked(2);
            reading.add(code, figures, parts);
        }
        let undefined = match self.scope {
            Scope::Vcpu => self.leaves.vcpu_undefined().unwrap_or_default(),
            Scope::Policy => self.leaves.undefined(),
        };
        reading.add_undefined(undefined);
        self.leaves.check()?;
        reading.asked(2);
        Ok(reading)
    }

    fn show(&mut self, earlier: &Moment, now: &Moment, cost: u64) -> anyhow::Result<()> {
        let wall = now.at.duration_since(earlier.at);
        let ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        // The guest's own clock says how many ticks a ms has.
        let khz = (now.ticks.wrapping_sub(earlier.ticks) as u128 * 1_000_000).checked_div(ns.into());
        let stat = GuestStat::between(&earlier.reading, &now.reading, ns, khz.unwrap_or(0) as u32, cost);
        let since = now.elsewhere.since(&earlier.elsewhere);
        let stat = GuestStat {
            cpu: self.cpu,
            whole_host: self.scope == Scope::Policy && self.leaves.discovery().expose == Expose::Host,
            interrupts: since.interrupts,
            context_switches: since.context_switches,
            ..stat
        };
        if self.args.json {
            return self.out.print_json(&stat, self.args.interval.is_some());
        }
        let width = terminal_width().filter(|_| self.args.output.is_none());
        self.out.print(&view::text(&stat, width))
    }
}

/// Commands of `exitscope guest`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// The exits that a command causes, per reason, and where their time went; needs no root
    Stat(Args),
}

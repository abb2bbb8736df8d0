//! `exitscope stat`: the exits of this host's VMs while a command runs, for a time, or until Ctrl-C.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use exitscope_host::cpu::{Meter, Usage as CpuUsage};
use exitscope_host::names::Resolver;
use exitscope_host::source::Source;
use exitscope_model::document::{Context, CpuTimes, Document};
use exitscope_model::interval::Interval;
use exitscope_model::select::Selection;
use exitscope_model::snapshot::{Moment, Snapshot};
use exitscope_model::stat::Options;
use exitscope_view::stat as view;

use crate::output::{Usage, print, print_json};
use crate::select;
use crate::workload::{Running, Stop, Wake, next, wait};

/// Options of `exitscope stat`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    select: select::Args,
    /// Print what came in each interval of so many ms
    #[arg(short = 'I', long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    interval: Option<u64>,
    /// Stop after so many intervals
    #[arg(long, value_name = "N", requires = "interval")]
    count: Option<u64>,
    /// Run the command so many times, and show mean and standard deviation of a run
    #[arg(short = 'r', long = "repeat", value_name = "N", default_value_t = 1, conflicts_with = "interval",
        value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeat: u64,
    /// Watch for so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    duration: Option<Duration>,
    /// Print JSON: one document, or one on each line in intervals
    #[arg(short, long, conflicts_with = "separator")]
    json: bool,
    /// Print values separated by this, with a line of headings
    #[arg(short = 'x', long = "field-separator", value_name = "SEP")]
    separator: Option<String>,
    /// As -I, in seconds
    #[arg(value_name = "INTERVAL", conflicts_with_all = ["interval", "repeat"], value_parser = seconds)]
    every: Option<Duration>,
    /// As --count
    #[arg(value_name = "COUNT", conflicts_with = "count")]
    times: Option<u64>,
    /// Watch while this runs; its exit status is passed on
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("nothing happens in 0 s".into()) } else { Ok(duration) }
}

impl Args {
    /// The length of an interval, in interval mode.
    fn step(&self) -> Option<Duration> {
        self.interval.map(Duration::from_millis).or(self.every)
    }
}

/// Watches and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.repeat > 1 && args.command.is_empty() && args.duration.is_none() {
        bail!(Usage("-r wants a command to run, or --duration".into()));
    }
    if args.step().is_some_and(|step| step < Duration::from_millis(10)) {
        bail!(Usage("an interval has 10 ms at least".into()));
    }
    if args.separator.as_deref() == Some("") {
        bail!(Usage("-x wants a separator, such as -x,".into()));
    }
    // What is wrong with the command line is told before the source is asked for.
    args.select.selection(None)?;
    let options = args.select.options(args.json || args.separator.is_some())?;
    let source = Source::open(&args.select.source())?;
    let mut watch = Watch {
        args,
        options,
        selection: Selection::default(),
        names: Resolver::new(),
        meter: Meter::new(),
        cpu: CpuUsage::default(),
        stop: Stop::watch()?,
        headed: false,
        source,
    };
    watch.run()
}

struct Watch<'a> {
    args: &'a Args,
    options: Options,
    selection: Selection,
    source: Source,
    names: Resolver,
    meter: Meter,
    cpu: CpuUsage,
    stop: Stop,
    /// Whether the headings of separated values have been printed.
    headed: bool,
}

impl Watch<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        if !self.source.is_live() {
            let snapshot = self.source.snapshot();
            self.select(&snapshot)?;
            self.show(&Interval::since_the_beginning(&snapshot), &CpuTimes::new(), false)?;
            self.found(&snapshot)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut runs = Vec::new();
        let (mut code, mut last) = (ExitCode::SUCCESS, Snapshot::default());
        for _ in 0..self.args.repeat {
            let before = self.read()?;
            let cpu = self.cpu.clone();
            let running = match self.args.command.as_slice() {
                [] => None,
                command => Some(Running::start(command)?),
            };
            let after = self.watch(running.as_ref(), &before)?;
            if let Some(running) = running {
                code = running.finish()?;
            }
            if self.args.step().is_none() {
                let times = self.cpu.since(&cpu);
                runs.push((Interval::between(&before, &after), times));
            }
            last = after;
            if self.stop.is_asked_for() {
                break;
            }
        }
        match runs.as_slice() {
            [] => {}
            [(interval, cpu)] => self.show(interval, cpu, false)?,
            _ => self.show_runs(runs.into_iter().map(|(interval, _)| interval).collect())?,
        }
        self.found(&last)?;
        Ok(code)
    }

    /// Reads the source, and what goes with it.
    fn read(&mut self) -> anyhow::Result<Snapshot> {
        let snapshot = self.source.snapshot();
        self.cpu = self.meter.read(&snapshot.accounts);
        self.meter.forget(&snapshot.accounts);
        self.select(&snapshot)?;
        Ok(snapshot)
    }

    fn select(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.names.update(self.source.live_vms());
        self.selection = self.args.select.selection(snapshot.isa)?;
        if self.source.is_live() {
            self.selection.check(snapshot.accounts.vms(), self.names.names())?;
        }
        Ok(())
    }

    /// Waits for the end of a run, showing intervals on the way; gives the last snapshot.
    fn watch(&mut self, running: Option<&Running>, before: &Snapshot) -> anyhow::Result<Snapshot> {
        let start = Instant::now();
        let end = self.args.duration.and_then(|duration| start.checked_add(duration));
        let step = self.args.step();
        let count = self.args.count.or(self.args.times);
        let mut earlier = before.clone();
        let mut number = 0_u64;
        loop {
            number += 1;
            let until = [step.and_then(|step| next(start, step)), end].into_iter().flatten().min();
            let Self { names, source, stop, .. } = self;
            let mut wake = wait(running, until, stop, || names.update(source.live_vms()));
            if wake == Wake::Time && (until == end || count == Some(number)) {
                // With a command, a duration ends the watching, not the command.
                wake = Wake::Over;
            }
            let cpu = self.cpu.clone();
            let now = self.read()?;
            if step.is_some() {
                let times = self.cpu.since(&cpu);
                self.show(&Interval::between(&earlier, &now), &times, true)?;
            }
            if wake == Wake::Over {
                return Ok(now);
            }
            earlier = now;
        }
    }

    fn context<'a>(&'a self, cpu: &'a CpuTimes) -> Context<'a> {
        Context {
            selection: &self.selection,
            names: self.names.names(),
            cpu,
            origin: self.source.origin(),
            options: self.options,
            cycles: self.args.select.cycles(),
        }
    }

    fn show(&mut self, interval: &Interval, cpu: &CpuTimes, in_intervals: bool) -> anyhow::Result<()> {
        let headed = std::mem::replace(&mut self.headed, true);
        let context = self.context(cpu);
        if self.args.json {
            let document = Document::new(interval, context);
            return if in_intervals {
                print(&format!("{}\n", serde_json::to_string(&document)?))
            } else {
                print_json(&document)
            };
        }
        if let Some(separator) = &self.args.separator {
            let head = if headed { String::new() } else { view::csv_header(separator, context) };
            return print(&(head + &view::csv(interval, context, separator)));
        }
        let stamp = in_intervals.then(|| stamp(interval.to));
        print(&view::text(interval, context, stamp.as_deref(), terminal_width()))
    }

    fn show_runs(&self, runs: Vec<Interval>) -> anyhow::Result<()> {
        let cpu = CpuTimes::new();
        let context = self.context(&cpu);
        if self.args.json {
            return print_json(&Document::of_runs(&runs, context));
        }
        if let Some(separator) = &self.args.separator {
            let lines: String = runs.iter().map(|run| view::csv(run, context, separator)).collect();
            return print(&(view::csv_header(separator, context) + &lines));
        }
        print(&view::repeated(&runs, context, terminal_width()))
    }

    fn found(&self, last: &Snapshot) -> anyhow::Result<()> {
        select::all_found(&self.selection, &last.accounts, self.names.names())
    }
}

/// A moment's UTC time of day.
fn stamp(moment: Moment) -> String {
    let ms = moment.wall_ns / 1_000_000;
    let (seconds, ms) = (ms / 1000, ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Columns of the terminal that stdout is; `None` where it is none.
pub fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())??;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

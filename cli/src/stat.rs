//! `exitscope stat`: the exits of this host's VMs while a command runs, for a time, or until Ctrl-C.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use exitscope_host::cpu::{Meter, Usage as CpuUsage};
use exitscope_host::names::Resolver;
use exitscope_host::source::Source;
use exitscope_model::accounts::RETIRED;
use exitscope_model::document::{Context, CpuTimes, Document};
use exitscope_model::interval::Interval;
use exitscope_model::select::{Selection, VmKey};
use exitscope_model::snapshot::{Moment, Snapshot};
use exitscope_model::stat::Options;
use exitscope_view::stat as view;

use crate::output::{Out, Usage};
use crate::select;
use crate::workload::{Running, Stop, next, wait};

/// Options of `exitscope stat`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    select: select::Args,
    /// Print what came in each interval of so many ms
    #[arg(short = 'I', long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    interval: Option<u64>,
    /// Stop after so many intervals
    #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
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
    /// Write to this file instead of to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// As -I, in seconds
    #[arg(value_name = "INTERVAL", conflicts_with_all = ["interval", "repeat"], value_parser = seconds)]
    every: Option<Duration>,
    /// As --count
    #[arg(value_name = "COUNT", conflicts_with = "count", value_parser = clap::value_parser!(u64).range(1..))]
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
        bound: None,
        missing: Vec::new(),
        out: Out::open(args.output.as_deref())?,
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
    /// The VMs that are asked for, each by what it means since the first reading.
    bound: Option<Vec<VmKey>>,
    /// Those that have never been there.
    missing: Vec<VmKey>,
    out: Out,
}

impl Watch<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        if !self.source.is_live() {
            return self.show_copy();
        }
        let mut runs = Vec::new();
        let (mut status, mut last) = (0, Snapshot::default());
        for number in 1..=self.args.repeat {
            let before = self.read()?;
            let cpu = self.cpu.clone();
            let aside = (self.args.json || self.args.separator.is_some()) && self.args.output.is_none();
            let mut running = match self.args.command.as_slice() {
                [] => None,
                command => Some(Running::start(command, aside, |command| self.meter.leave_limit(command))?),
            };
            let watched = self.watch(running.as_mut(), &before);
            let is_last = number == self.args.repeat || self.stop.is_asked_for();
            // What is known is shown before the command's end is waited for.
            let shown = watched.and_then(|after| {
                let interval = Interval::between(&before, &after);
                last = after;
                if self.args.step().is_some() {
                    return self.tell_quality(&interval);
                }
                // A run that was cut off is none of several.
                if runs.is_empty() || !self.stop.is_asked_for() {
                    runs.push((interval, self.cpu.since(&cpu)));
                }
                if is_last { self.show_runs(&mut runs) } else { Ok(()) }
            });
            match running {
                Some(running) => status = running.finish_after(shown, &self.stop)?,
                None => shown?,
            }
            if is_last {
                break;
            }
        }
        self.found(&last)?;
        Ok(ExitCode::from(status))
    }

    /// Shows what a copy of the region holds, of which no time is known.
    fn show_copy(&mut self) -> anyhow::Result<ExitCode> {
        let args = self.args;
        if args.step().is_some() || args.repeat > 1 || args.duration.is_some() || !args.command.is_empty() {
            bail!(Usage(
                "a file is a copy, in which nothing happens: it knows no -I, -r, --duration or CMD".into()
            ));
        }
        let snapshot = self.source.snapshot();
        self.select(&snapshot)?;
        self.show_runs(&mut vec![(Interval::since_the_beginning(&snapshot), CpuTimes::new())])?;
        self.found(&snapshot)?;
        Ok(ExitCode::SUCCESS)
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
        let vms = snapshot.accounts.vms();
        if self.source.is_live() {
            let live = vms.iter().filter(|vm| vm.id != RETIRED && !vm.finished);
            self.names.update(live.map(|vm| (vm.id, vm.pid)));
        }
        let names = self.names.names();
        self.selection = self.args.select.selection(snapshot.isa)?;
        match &self.bound {
            Some(bound) => self.selection.vms.clone_from(bound),
            // Later, others may be called so: that is no reason to stop.
            None => {
                self.selection.check(vms, names)?;
                self.selection.bind(vms, names);
                self.bound = Some(self.selection.vms.clone());
                self.missing.clone_from(&self.selection.vms);
            }
        }
        let missing = Selection { vms: std::mem::take(&mut self.missing), ..Selection::default() };
        self.missing = missing.without_vm(vms, names).into_iter().cloned().collect();
        Ok(())
    }

    /// Waits for the end of a run, showing intervals on the way; gives the last snapshot.
    fn watch(&mut self, mut running: Option<&mut Running>, before: &Snapshot) -> anyhow::Result<Snapshot> {
        /// How often VMs are looked for, so that the names are known of those that end in between.
        const LOOK: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let end = self.args.duration.and_then(|duration| start.checked_add(duration));
        let step = self.args.step();
        let count = self.args.count.or(self.args.times);
        let mut earlier = before.clone();
        let mut looked = start;
        let mut number = 0_u64;
        loop {
            number += 1;
            let until = [step.and_then(|step| next(start, step)), end].into_iter().flatten().min();
            let Self { names, source, stop, .. } = self;
            let stdout = self.args.output.is_none();
            let wake = wait(running.as_deref_mut(), until, stdout, stop, || {
                if looked.elapsed() >= LOOK {
                    looked = Instant::now();
                    names.update(source.live_vms());
                }
            });
            // With a command, a duration ends the watching, not the command.
            let over = wake.is_over()? || until.is_some() && until == end || count == Some(number);
            let cpu = self.cpu.clone();
            let now = self.read()?;
            if step.is_some() {
                let times = self.cpu.since(&cpu);
                self.show(&Interval::between(&earlier, &now), &times, true)?;
            }
            if over {
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
            return self.out.print_json(&document, in_intervals);
        }
        let text = match &self.args.separator {
            Some(separator) if headed => view::csv(interval, context, separator),
            Some(separator) => {
                view::csv_header(separator, context) + &view::csv(interval, context, separator)
            }
            None => {
                let stamp = interval.to.filter(|_| in_intervals).map(stamp);
                view::text(interval, context, stamp.as_deref(), self.width())
            }
        };
        self.out.print(&text)
    }

    fn show_runs(&mut self, runs: &mut Vec<(Interval, CpuTimes)>) -> anyhow::Result<()> {
        if let [(interval, cpu)] = runs.as_slice() {
            self.show(interval, cpu, false)?;
            return self.tell_quality(interval);
        }
        let runs: Vec<Interval> = runs.drain(..).map(|(interval, _)| interval).collect();
        let cpu = CpuTimes::new();
        let context = self.context(&cpu);
        if self.args.json {
            let document = Document::of_runs(&runs, context);
            return self.out.print_json(&document, false);
        }
        let Some(separator) = &self.args.separator else {
            let text = view::repeated(&runs, context, self.width());
            return self.out.print(&text);
        };
        let lines: String = runs.iter().map(|run| view::csv(run, context, separator)).collect();
        let text = view::csv_header(separator, context) + &lines;
        eprintln!("{}", view::quality_of_runs(&runs, context));
        self.out.print(&text)
    }

    /// Says on stderr how the numbers are to be judged, where a program reads the output and that has no place for it.
    fn tell_quality(&self, interval: &Interval) -> anyhow::Result<()> {
        if self.args.separator.is_some() {
            eprintln!("{}", view::quality_of(interval, self.context(&CpuTimes::new())));
        }
        Ok(())
    }

    /// Columns of what is written to, if it is a terminal.
    fn width(&self) -> Option<usize> {
        terminal_width().filter(|_| self.args.output.is_none())
    }

    fn found(&self, last: &Snapshot) -> anyhow::Result<()> {
        match self.missing.first() {
            Some(key) => Err(select::not_found(key, &last.accounts, self.names.names())),
            None => Ok(()),
        }
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

//! `exitscope stat`: the exits of this host's VMs while a command runs, for a time, or until Ctrl-C.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use exitscope_host::cpu::{Meter, Usage as CpuUsage};
use exitscope_host::names::Resolver;
use exitscope_host::source::{Choice, Look, Source};
use exitscope_model::accounts::RETIRED;
use exitscope_model::document::{Context, CpuTimes, Document};
use exitscope_model::interval::Interval;
use exitscope_model::snapshot::{Moment, Snapshot};
use exitscope_model::stat::Options;
use exitscope_view::stat as view;

use crate::output::{Out, Usage, tell};
use crate::select::{self, Wanted};
use crate::workload::{Running, Stop, as_status, next, wait};

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

    /// Whether there is something to wait for.
    fn waits(&self) -> bool {
        self.step().is_some() || self.repeat > 1 || self.duration.is_some() || !self.command.is_empty()
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
        wanted: Wanted::default(),
        names: Resolver::new(),
        meter: Meter::new(),
        cpu: CpuUsage::default(),
        stop: Stop::watch()?,
        headed: false,
        looked: None,
        out: Out::Stdout,
        source,
    };
    watch.run()
}

struct Watch<'a> {
    args: &'a Args,
    options: Options,
    wanted: Wanted,
    source: Source,
    names: Resolver,
    meter: Meter,
    cpu: CpuUsage,
    stop: Stop,
    /// Whether the headings of separated values have been printed.
    headed: bool,
    /// When it was looked for new VMs last.
    looked: Option<Look>,
    out: Out,
}

/// What a run counted, and the CPU time of its VMs.
type Run = (Interval, CpuTimes);

impl Watch<'_> {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        if !self.source.is_live() {
            return self.show_copy();
        }
        // What is wrong with the selection is told before a file of earlier numbers is emptied.
        self.read()?;
        self.out = Out::open(self.args.output.as_deref())?;
        let (mut runs, mut last) = (Vec::new(), None);
        loop {
            let begun = self.read().and_then(|before| Ok((before, self.start()?)));
            let (before, mut running) = match begun {
                Ok(begun) => begun,
                Err(error) => {
                    // What other runs have told is worth as much as before.
                    if let Some(last) = &last {
                        self.conclude(&runs, last)?;
                    }
                    return Err(error);
                }
            };
            let cpu = self.cpu.clone();
            // What is known is shown before the command's end is waited for.
            let watched = self.watch(running.as_mut(), &before).and_then(|after| {
                // A run that was cut off is none of several.
                if runs.is_empty() || !self.stop.is_asked_for() {
                    runs.push((Interval::between(&before, &after), self.cpu.since(&cpu)));
                }
                let is_last = runs.len() as u64 >= self.args.repeat || self.stop.is_asked_for();
                if is_last { self.conclude(&runs, &after).map(|()| None) } else { Ok(Some(after)) }
            });
            let (more, watched) = match watched {
                Ok(more) => (more, Ok(())),
                Err(error) => (None, Err(error)),
            };
            let status = match running {
                Some(running) => running.finish_after(&watched, &self.stop)?,
                None => watched.map(|()| 0)?,
            };
            last = match more {
                Some(after) if !self.stop.is_asked_for() => Some(after),
                Some(after) => return as_status(self.conclude(&runs, &after), status).map(ExitCode::from),
                None => return Ok(ExitCode::from(status)),
            };
        }
    }

    /// Starts the command, if there is one.
    fn start(&self) -> anyhow::Result<Option<Running>> {
        let aside = (self.args.json || self.args.separator.is_some()) && self.args.output.is_none();
        match self.args.command.as_slice() {
            [] => Ok(None),
            command => Running::start(command, aside, |command| self.meter.leave_limit(command)).map(Some),
        }
    }

    /// Shows what a copy of the region holds, of which no time is known.
    fn show_copy(&mut self) -> anyhow::Result<ExitCode> {
        if self.args.waits() {
            bail!(Usage(
                "a file is a copy, in which nothing happens: it knows no -I, -r, --duration or CMD".into()
            ));
        }
        let snapshot = self.source.snapshot();
        self.select(&snapshot)?;
        if let Choice::File(copy) = self.args.select.source()
            && self.args.output.as_ref().is_some_and(|output| is_same_file(output, &copy))
        {
            bail!(Usage("-o would overwrite what --source reads".into()));
        }
        self.out = Out::open(self.args.output.as_deref())?;
        self.conclude(&[(Interval::since_the_beginning(&snapshot), CpuTimes::new())], &snapshot)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Reads the source, and what goes with it.
    fn read(&mut self) -> anyhow::Result<Snapshot> {
        if self.source.is_stale() {
            bail!("KVM's part for this CPU was replaced, or the pinned programs were: start again");
        }
        let snapshot = self.source.snapshot();
        // Separated values have no place for it.
        if self.args.separator.is_none() {
            self.cpu = self.meter.read(&snapshot.accounts);
            self.meter.forget(&snapshot.accounts);
        }
        self.select(&snapshot)?;
        Ok(snapshot)
    }

    fn select(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let vms = snapshot.accounts.vms();
        if self.source.is_live() {
            let live = vms.iter().filter(|vm| vm.id != RETIRED && !vm.finished);
            self.names.update(live.map(|vm| (vm.id, vm.pid)));
        }
        self.wanted.update(&self.args.select, snapshot.isa)?;
        self.wanted.look(vms, self.names.names())
    }

    /// Waits for the end of a run, showing intervals on the way; gives the last snapshot.
    fn watch(&mut self, mut running: Option<&mut Running>, before: &Snapshot) -> anyhow::Result<Snapshot> {
        let start = Instant::now();
        let end = self.args.duration.and_then(|duration| start.checked_add(duration));
        let step = self.args.step();
        let count = self.args.count.or(self.args.times);
        let mut earlier = before.clone();
        let mut number = 0_u64;
        loop {
            number += 1;
            let until = [step.and_then(|step| next(start, step)), end].into_iter().flatten().min();
            let Self { names, source, stop, looked, .. } = self;
            let stdout = self.args.output.is_none();
            // So that names are known of VMs that come and go in between.
            let look = || names.update(source.arrivals(looked));
            let wake = wait(running.as_deref_mut(), until, stdout, stop, look);
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
            selection: &self.wanted.selection,
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

    /// Shows what has not been shown yet, and what must be known to judge it.
    fn conclude(&mut self, runs: &[Run], last: &Snapshot) -> anyhow::Result<()> {
        if (runs.len() as u64) < self.args.repeat && self.stop.is_asked_for() {
            tell(format_args!("interrupted: {} of {} runs are shown", runs.len(), self.args.repeat));
        }
        let intervals: Vec<Interval> = runs.iter().map(|(interval, _)| interval.clone()).collect();
        match runs {
            _ if self.args.step().is_some() => {}
            [(interval, cpu)] => self.show(interval, cpu, false)?,
            _ => self.show_runs(&intervals)?,
        }
        if self.args.separator.is_some() {
            // The values have no place for it.
            tell(view::quality_of_runs(&intervals, self.context(&CpuTimes::new())));
        }
        self.wanted.all_found(&last.accounts, self.names.names())
    }

    fn show_runs(&mut self, runs: &[Interval]) -> anyhow::Result<()> {
        let cpu = CpuTimes::new();
        let context = self.context(&cpu);
        if self.args.json {
            let document = Document::of_runs(runs, context);
            return self.out.print_json(&document, false);
        }
        let text = match &self.args.separator {
            Some(separator) => {
                let lines: String = runs.iter().map(|run| view::csv(run, context, separator)).collect();
                view::csv_header(separator, context) + &lines
            }
            None => view::repeated(runs, context, self.width()),
        };
        self.out.print(&text)
    }

    /// Columns of what is written to, if it is a terminal.
    fn width(&self) -> Option<usize> {
        terminal_width().filter(|_| self.args.output.is_none())
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    canonical(one).is_some_and(|path| canonical(other) == Some(path))
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use exitscope_host::generated::{self, Shape};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// What is wrong with these options on a copy of a region, in which VM 2 is not that of process 2.
    fn wrong(options: &str) -> anyhow::Error {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shape = Shape { vms: 3, vcpus: 1, reasons: 1, exits: 6 };
        std::fs::write(file.path(), generated::region(shape, |vm| vm + 2)).unwrap();
        let line = ["stat", "--source", file.path().to_str().unwrap()].into_iter().chain(options.split(' '));
        run(&Line::try_parse_from(line).unwrap().args).unwrap_err()
    }

    #[test]
    fn a_copy_is_not_waited_for() {
        for options in ["-I 100", "1 2", "-r 2 --duration 1", "--duration 1", "-- true"] {
            assert!(wrong(options).is::<Usage>(), "{options}");
        }
    }

    #[test]
    fn what_is_unclear_in_a_copy_is_told() {
        assert!(wrong("--vm 2").to_string().contains("say id:2 or pid:2"));
    }

    #[test]
    fn no_interval_at_all_is_a_wrong_usage() {
        for options in [&["-I", "100", "--count", "0"][..], &["1", "0"]] {
            assert!(Line::try_parse_from([&["stat"], options].concat()).is_err(), "{options:?}");
        }
    }
}

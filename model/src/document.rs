//! An interval as one JSON document, schema `exitscope-stat/1`: what `exitscope stat --json` prints.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::accounts::{Accounts, RETIRED};
use crate::interval::Interval;
use crate::name;
use crate::select::{Names, Selection};
use crate::snapshot::Clock;
use crate::stat::{Options, Rows, Spread, cost, repeat};
use crate::tally::Tally;

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-stat/1";

/// Where numbers come from and how they are to be judged: what an interval does not know itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `module`, `bpf`, or a file's name.
    pub source: String,
    /// Why this source, where it was chosen.
    pub why: String,
    /// The emulator of the CPU; empty on a real one.
    pub emulator: String,
    /// Whether it is a copy, made at an unknown time on an unknown machine.
    pub copy: bool,
}

/// CPU time of a VM's process in an interval, in ns: what the operating system says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuTime {
    /// All of the process.
    pub total: u64,
    /// Of this, in guests.
    pub guest: u64,
    /// Of this, by threads that run no vCPU: work of the VMM's that no exit caused. `None` where it is not known of each
    /// vCPU which thread runs it.
    pub elsewhere: Option<u64>,
    /// VMs that share the process, this one included.
    pub vms: u32,
}

/// The CPU time of every VM of which it is known.
pub type CpuTimes = BTreeMap<u64, CpuTime>;

/// One document.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// `module`, `bpf`, or a file's name.
    pub source: String,
    /// Whether an emulated CPU ran it, so that times say nothing about a real one; `None` where that is unknown.
    pub emulated: Option<bool>,
    /// When the interval ended, in seconds since 1970, if that is known.
    pub time: Option<f64>,
    /// Its length, if that is known.
    pub seconds: Option<f64>,
    /// What must be known to judge the numbers.
    pub quality: Quality,
    /// All that was selected.
    pub total: Figures,
    /// Per reason.
    pub reasons: Vec<Reason>,
    /// Per VM and vCPU.
    pub vms: Vec<Vm>,
    /// How many runs these are the sum of, with several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<usize>,
}

/// What must be known to judge the numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Quality {
    /// Where the numbers come from, and why from there.
    #[serde(flatten)]
    pub origin: Origin,
    /// Exits less exits whose duration is known; negative where more ended than began.
    pub untimed: i64,
    /// Entries without an exit before them: exits that KVM did not announce.
    pub unannounced: u64,
    /// Exits without a duration, as the clock went backwards.
    pub backwards: u64,
    /// Events that were not seen: counters lose nothing, but eBPF programs may not be run, which the kernel counts.
    pub lost: u64,
    /// Exits that found no room for an account; they are in no other number.
    pub unaccounted: u64,
    /// Whether memory has been short, so that some exits lack their reason.
    pub overflowed: bool,
    /// Whether the source began anew in the interval.
    pub restarted: bool,
    /// Whether exits of a VM began before the interval for sure: their times, which count where an exit ends, are more
    /// than all its vCPUs had.
    pub began_before: bool,
    /// Ticks of the clock in a ms; 0 when unknown.
    pub clock_khz: u32,
    /// What `p50_ns`, `p99_ns` and `max_ns` are.
    pub quantiles: &'static str,
}

/// Times by where they were spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// In the host's kernel.
    pub kernel: u64,
    /// In the VMM's user space.
    pub user: u64,
    /// In the kernel, polling for the end of a halt.
    pub polled: u64,
    /// Halted or blocked.
    pub halted: u64,
}

/// The figures of a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Exits.
    pub exits: u64,
    /// Their time in ns; `None` when the clock's frequency is unknown.
    pub ns: Option<Parts>,
    /// Their time in ticks, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Parts>,
    /// Mean time of a timed exit.
    pub mean_ns: Option<u64>,
    /// Half of the timed exits took at most this.
    pub p50_ns: Option<u64>,
    /// 99 of 100 took at most this.
    pub p99_ns: Option<u64>,
    /// All took at most this.
    pub max_ns: Option<u64>,
    /// Exits less exits whose duration is known.
    pub untimed: i64,
}

/// A reason's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    /// Its code; none for the sum of those that are not shown.
    pub code: Option<u64>,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// What caused it, where that is known.
    pub details: Vec<()>,
    /// Exits of a run, with several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits_per_run: Option<Spread>,
    /// Kernel and user time of a run in ns, with several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_ns_per_run: Option<Spread>,
}

/// A VM.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    /// The source's number of it, or `retired`.
    pub id: String,
    /// Its name; none when it is not known.
    pub name: Option<String>,
    /// Process that ran its first vCPU.
    pub pid: u32,
    /// Whether KVM has destroyed it.
    pub finished: bool,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// CPU time of its process in ns, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<CpuTime>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
}

/// A vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct Vcpu {
    /// KVM's id of it; none for all those of the sum of retired VMs.
    pub id: Option<u32>,
    /// Its reasons.
    pub reasons: Vec<Reason>,
}

impl Parts {
    /// The parts of a sum, in ticks.
    pub fn ticks(tally: &Tally) -> Self {
        let Tally { user, polled, halted, .. } = *tally;
        Self { kernel: tally.kernel(), user, polled, halted }
    }

    /// The same in ns.
    pub fn ns(self, clock: Clock) -> Option<Self> {
        let Self { kernel, user, polled, halted } = self;
        let ns = |ticks| clock.ns(ticks);
        Some(Self { kernel: ns(kernel)?, user: ns(user)?, polled: ns(polled)?, halted: ns(halted)? })
    }
}

impl Figures {
    /// The figures of a sum.
    pub fn of(tally: &Tally, clock: Clock, cycles: bool) -> Self {
        let ns = |ticks: Option<u64>| ticks.and_then(|ticks| clock.ns(ticks));
        let parts = Parts::ticks(tally);
        Self {
            exits: tally.exits,
            ns: parts.ns(clock),
            cycles: cycles.then_some(parts),
            mean_ns: ns(tally.mean()),
            p50_ns: ns(tally.quantile(500)),
            p99_ns: ns(tally.quantile(990)),
            max_ns: ns((tally.timed() > 0).then_some(tally.max)),
            untimed: tally.untimed(),
        }
    }
}

impl Quality {
    /// Of an interval's selected part.
    pub fn of(
        interval: &Interval,
        selection: &Selection,
        names: &Names,
        origin: &Origin,
        untimed: i64,
    ) -> Self {
        let vms = interval.accounts.vms().iter().filter(|vm| selection.has_vm(vm, names));
        let vcpus = vms
            .flat_map(|vm| interval.accounts.vcpus(vm).iter().filter(|vcpu| selection.has_vcpu(vm, vcpu.id)));
        let (unannounced, backwards) = vcpus.fold((0_u64, 0_u64), |(unannounced, backwards), vcpu| {
            (unannounced.wrapping_add(vcpu.unannounced), backwards.wrapping_add(vcpu.backwards))
        });
        Self {
            origin: origin.clone(),
            untimed,
            unannounced,
            backwards,
            lost: interval.quality.missed,
            unaccounted: interval.quality.unaccounted,
            overflowed: interval.quality.overflowed,
            restarted: interval.restarted,
            began_before: began_before(interval, selection, names),
            clock_khz: interval.clock.khz,
            quantiles: "upper bounds, from a histogram of powers of two",
        }
    }
}

/// Whether the times of a selected VM are more than all its vCPUs had in the interval.
fn began_before(interval: &Interval, selection: &Selection, names: &Names) -> bool {
    let accounts = &interval.accounts;
    let mut vms = accounts.vms().iter().filter(|vm| vm.id != RETIRED && selection.has_vm(vm, names));
    let Some(length) = interval.ns() else { return false };
    vms.any(|vm| {
        let vcpus = accounts.vcpus(vm);
        let ticks = vcpus.iter().flat_map(|vcpu| accounts.reasons(vcpu)).map(|account| account.cycles);
        let time = interval.clock.ns(ticks.fold(0, u64::saturating_add));
        time.is_some_and(|time| time > length.saturating_mul(vcpus.len() as u64))
    })
}

impl Quality {
    /// Of several runs of the same.
    pub fn of_runs(runs: &[Interval], context: Context<'_>, untimed: i64) -> Self {
        let Context { selection, names, origin, .. } = context;
        let mut all = runs.iter().map(|run| Self::of(run, selection, names, origin, untimed));
        let first = all.next().unwrap_or_default();
        all.fold(first, |sum, run| Self {
            unannounced: sum.unannounced.wrapping_add(run.unannounced),
            backwards: sum.backwards.wrapping_add(run.backwards),
            unaccounted: sum.unaccounted.wrapping_add(run.unaccounted),
            overflowed: sum.overflowed || run.overflowed,
            restarted: sum.restarted || run.restarted,
            began_before: sum.began_before || run.began_before,
            ..run
        })
    }
}

/// What an interval is shown with.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What is selected.
    pub selection: &'a Selection,
    /// Names of VMs.
    pub names: &'a Names,
    /// CPU time of VMs.
    pub cpu: &'a CpuTimes,
    /// Where the numbers come from.
    pub origin: &'a Origin,
    /// How rows are ranked, and how many there are.
    pub options: Options,
    /// Whether ticks are shown, too.
    pub cycles: bool,
}

impl Document {
    /// The document of an interval; `options.by` does not matter, as all is told.
    pub fn new(interval: &Interval, context: Context<'_>) -> Self {
        let Context { selection, names, origin, options, cycles, .. } = context;
        let by = crate::stat::By { reason: true, ..Default::default() };
        let rows = Rows::of(interval, selection, names, Options { by, ..options });
        let clock = interval.clock;
        let mut reasons: Vec<Reason> = rows
            .rows
            .iter()
            .map(|row| reason(interval, row.subject.code, &row.tally, clock, cycles))
            .collect();
        reasons.extend(rows.other.iter().map(|(_, tally)| reason(interval, None, tally, clock, cycles)));
        let total = Figures::of(&rows.total, clock, cycles);
        Self {
            schema: SCHEMA,
            source: origin.source.clone(),
            emulated: (!origin.copy).then_some(!origin.emulator.is_empty()),
            time: interval.to.map(|to| to.wall_ns as f64 / 1e9),
            seconds: interval.ns().map(|ns| ns as f64 / 1e9),
            quality: Quality::of(interval, selection, names, origin, total.untimed),
            total,
            reasons,
            vms: vms(interval, context),
            runs: None,
        }
    }
}

impl Document {
    /// The document of several runs of the same: sums, and for each reason the mean and the deviation of a run.
    pub fn of_runs(runs: &[Interval], context: Context<'_>) -> Self {
        let Some(last) = runs.last() else { return Self::new(&Interval::default(), context) };
        let Context { selection, names, options, cycles, .. } = context;
        let by = crate::stat::By { reason: true, ..Default::default() };
        let all = Options { by, top: 0, ..options };
        let rows: Vec<Rows> = runs.iter().map(|run| Rows::of(run, selection, names, all)).collect();
        let mut total = Tally::default();
        rows.iter().for_each(|rows| total.merge(&rows.total));
        let (shown, other) = repeat(&rows, Options { by, ..options });
        let reasons = shown.into_iter().chain(other.map(|(_, row)| row)).map(|row| {
            let cost_ns = |run: &Tally| last.clock.ns(cost(run, options.with_halt)).unwrap_or(0);
            Reason {
                exits_per_run: Some(row.spread(|run| run.exits)),
                cost_ns_per_run: (last.clock.khz > 0).then(|| row.spread(cost_ns)),
                ..reason(last, row.subject.code, &row.tally, last.clock, cycles)
            }
        });
        let figures = Figures::of(&total, last.clock, cycles);
        let accounts = Accounts::sum(runs.iter().map(|run| &run.accounts));
        let all_runs = Interval { accounts, ..last.clone() };
        let lengths: Option<Vec<u64>> = runs.iter().map(Interval::ns).collect();
        Self {
            seconds: lengths.map(|lengths| lengths.into_iter().sum::<u64>() as f64 / 1e9),
            quality: Quality::of_runs(runs, context, figures.untimed),
            total: figures,
            reasons: reasons.collect(),
            vms: vms(&all_runs, context),
            runs: Some(runs.len()),
            ..Self::new(last, context)
        }
    }
}

fn reason(interval: &Interval, code: Option<u64>, tally: &Tally, clock: Clock, cycles: bool) -> Reason {
    let known = code.zip(interval.isa).map(|(code, isa)| name(isa, code));
    Reason {
        code,
        name: known.unwrap_or_else(|| "other".into()),
        figures: Figures::of(tally, clock, cycles),
        details: Vec::new(),
        exits_per_run: None,
        cost_ns_per_run: None,
    }
}

fn vms(interval: &Interval, context: Context<'_>) -> Vec<Vm> {
    let Context { selection, names, cpu, cycles, .. } = context;
    let accounts = &interval.accounts;
    let shown = accounts.vms().iter().filter(|vm| selection.has_vm(vm, names));
    let mut vms = Vec::new();
    for vm in shown {
        let mut sum = Tally::default();
        let mut vcpus = Vec::new();
        for vcpu in accounts.vcpus(vm).iter().filter(|vcpu| selection.has_vcpu(vm, vcpu.id)) {
            let mut reasons = Vec::new();
            for account in accounts.reasons(vcpu).iter().filter(|account| selection.has_code(account.code)) {
                let tally = Tally::of(account, accounts.histogram(account));
                sum.merge(&tally);
                reasons.push(reason(interval, Some(account.code), &tally, interval.clock, cycles));
            }
            reasons.sort_by_key(|reason| std::cmp::Reverse(reason.figures.exits));
            if !reasons.is_empty() {
                vcpus.push(Vcpu { id: (vm.id != RETIRED).then_some(vcpu.id), reasons });
            }
        }
        if vcpus.is_empty() && (vm.finished || !selection.codes.is_empty() || !selection.vcpus.is_empty()) {
            continue;
        }
        vms.push(Vm {
            id: if vm.id == RETIRED { "retired".into() } else { vm.id.to_string() },
            name: names.get(&vm.id).cloned(),
            pid: vm.pid,
            finished: vm.finished,
            figures: Figures::of(&sum, interval.clock, cycles),
            cpu_ns: cpu.get(&vm.id).copied(),
            vcpus,
        });
    }
    vms
}

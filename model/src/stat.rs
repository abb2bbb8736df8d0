//! An interval as rows that a person or a program reads: grouped, ranked, cut to a number of rows.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::accounts::RETIRED;
use crate::interval::Interval;
use crate::name;
use crate::select::{Names, Selection};
use crate::tally::Tally;

/// What rows are told apart by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// The VM.
    pub vm: bool,
    /// The vCPU.
    pub vcpu: bool,
    /// The exit reason.
    pub reason: bool,
}

/// What rows are ranked by, most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    /// Time in the kernel and in the VMM, with [`Options::with_halt`] polled and halted time, too.
    #[default]
    Cost,
    /// Exits.
    Exits,
    /// Mean time of an exit.
    Mean,
    /// The longest exit.
    Max,
}

/// How an interval is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What rows are told apart by.
    pub by: By,
    /// What they are ranked by.
    pub key: Key,
    /// The most rows; what does not fit is in [`Rows::other`]. 0 for all.
    pub top: usize,
    /// Whether polled and halted time is a part of the cost.
    pub with_halt: bool,
}

/// What a row is of; what it is not told apart by is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The VM's number.
    pub vm: Option<u64>,
    /// The vCPU's id; the sum of retired VMs has none.
    pub vcpu: Option<u32>,
    /// The reason's code.
    pub code: Option<u64>,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is of.
    pub subject: Subject,
    /// Its numbers.
    pub tally: Tally,
}

/// Rows, ranked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The first of them.
    pub rows: Vec<Row>,
    /// How many more there are, and their sum.
    pub other: Option<(usize, Tally)>,
    /// All of them together.
    pub total: Tally,
}

/// Ticks that an exit cost the host.
pub fn cost(tally: &Tally, with_halt: bool) -> u64 {
    let busy = tally.kernel().saturating_add(tally.user);
    if with_halt { busy.saturating_add(tally.polled).saturating_add(tally.halted) } else { busy }
}

impl Rows {
    /// The selected accounts of an interval.
    pub fn of(interval: &Interval, selection: &Selection, names: &Names, options: Options) -> Self {
        let mut sums: BTreeMap<Subject, Tally> = BTreeMap::new();
        let mut total = Tally::default();
        let By { vm: by_vm, vcpu: by_vcpu, reason: by_reason } = options.by;
        for (vm, vcpu, account) in interval.accounts.iter() {
            let selected = selection.has_code(account.code)
                && selection.has_vcpu(vm, vcpu.id)
                && selection.has_vm(vm, names);
            if selected {
                let subject = Subject {
                    vm: by_vm.then_some(vm.id),
                    vcpu: (by_vcpu && vm.id != RETIRED).then_some(vcpu.id),
                    code: by_reason.then_some(account.code),
                };
                sums.entry(subject).or_default().add(&interval.accounts, account);
                total.add(&interval.accounts, account);
            }
        }
        let mut rows: Vec<Row> = sums.into_iter().map(|(subject, tally)| Row { subject, tally }).collect();
        rank(&mut rows, options);
        let other = cut(&mut rows, options.top);
        Self { rows, other, total }
    }
}

fn rank(rows: &mut [Row], options: Options) {
    rows.sort_by_cached_key(|Row { subject, tally }| {
        let value = match options.key {
            Key::Cost => cost(tally, options.with_halt),
            Key::Exits => tally.exits,
            Key::Mean => tally.mean().unwrap_or(0),
            Key::Max => tally.max,
        };
        (Reverse(value), Reverse(tally.exits), subject.clone())
    });
}

fn cut(rows: &mut Vec<Row>, top: usize) -> Option<(usize, Tally)> {
    if top == 0 || rows.len() <= top {
        return None;
    }
    let rest = rows.split_off(top);
    let mut sum = Tally::default();
    rest.iter().for_each(|row| sum.merge(&row.tally));
    Some((rest.len(), sum))
}

impl Subject {
    /// The reason's name.
    pub fn reason(&self, interval: &Interval) -> Option<Cow<'static, str>> {
        Some(name(interval.isa?, self.code?))
    }
}

/// Mean and deviation of a number over several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the runs (with n - 1); 0 of a single run.
    pub deviation: f64,
}

impl Spread {
    /// Of one number for each run.
    pub fn of(numbers: &[f64]) -> Self {
        let count = numbers.len() as f64;
        if numbers.is_empty() {
            return Self::default();
        }
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        let deviation = if numbers.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation }
    }

    /// The deviation in percent of the mean.
    pub fn percent(self) -> f64 {
        if self.mean == 0.0 { 0.0 } else { 100.0 * self.deviation / self.mean }
    }
}

/// A row of several runs, with what each run had of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeated {
    /// What it is of.
    pub subject: Subject,
    /// The sum of all runs.
    pub tally: Tally,
    /// One for each run.
    pub runs: Vec<Tally>,
}

impl Repeated {
    /// Mean and deviation of one number of each run.
    pub fn spread(&self, of: impl Fn(&Tally) -> u64) -> Spread {
        Spread::of(&self.runs.iter().map(|run| of(run) as f64).collect::<Vec<_>>())
    }
}

/// The rows of several runs, each told apart by the same; ranked by the sum of the runs. What does not fit is one row
/// more, and how many it is of.
pub fn repeat(runs: &[Rows], options: Options) -> (Vec<Repeated>, Option<(usize, Repeated)>) {
    let mut sums: BTreeMap<&Subject, Vec<Tally>> = BTreeMap::new();
    for (number, run) in runs.iter().enumerate() {
        for row in &run.rows {
            let tallies = sums.entry(&row.subject).or_insert_with(|| vec![Tally::default(); runs.len()]);
            tallies[number] = row.tally.clone();
        }
    }
    let sum = |tallies: &[Tally]| {
        let mut sum = Tally::default();
        tallies.iter().for_each(|tally| sum.merge(tally));
        sum
    };
    let mut rows: Vec<Row> = sums
        .iter()
        .map(|(subject, tallies)| Row { subject: (*subject).clone(), tally: sum(tallies) })
        .collect();
    rank(&mut rows, options);
    let shown: Vec<Repeated> = rows
        .iter()
        .take(if options.top == 0 { rows.len() } else { options.top })
        .map(|Row { subject, tally }| {
            let runs = sums.remove(subject).unwrap_or_default();
            Repeated { subject: subject.clone(), tally: tally.clone(), runs }
        })
        .collect();
    if sums.is_empty() {
        return (shown, None);
    }
    let mut rest = vec![Tally::default(); runs.len()];
    for tallies in sums.values() {
        rest.iter_mut().zip(tallies).for_each(|(rest, tally)| rest.merge(tally));
    }
    let other = Repeated { subject: Subject::default(), tally: sum(&rest), runs: rest };
    (shown, Some((sums.len(), other)))
}

#[cfg(test)]
mod tests {
    use exitscope_abi::reason::Isa;
    use exitscope_abi::region::bucket;

    use super::*;
    use crate::accounts::Accounts;
    use crate::snapshot::Clock;

    fn interval() -> Interval {
        let mut accounts = Accounts::default();
        let add = |accounts: &mut Accounts, code, exits: u64, ticks: u64, halted| {
            let mut tally =
                Tally { exits, cycles: exits * ticks, halted, min: ticks, max: ticks, ..Tally::default() };
            tally.histogram[bucket(ticks)] = exits;
            accounts.add_tally(code, &tally);
        };
        for (id, pid) in [(1, 23), (2, 123)] {
            accounts.begin_vm(id, pid, false, None);
            for vcpu in 0..2 {
                accounts.begin_vcpu(vcpu, 0, 0, 0);
                add(&mut accounts, 0x72, 10 * id, 1_000, 0);
                add(&mut accounts, 0x78, 2, 1_000_000, 2_000_000);
            }
        }
        Interval { isa: Some(Isa::Svm), clock: Clock { khz: 1_000_000 }, accounts, ..Interval::default() }
    }

    fn rows(options: Options, selection: &Selection) -> Vec<(Subject, u64)> {
        let rows = Rows::of(&interval(), selection, &Names::new(), options);
        let sum: u64 = rows.rows.iter().map(|row| row.tally.exits).sum();
        assert_eq!(rows.total.exits, sum + rows.other.as_ref().map_or(0, |(_, tally)| tally.exits));
        rows.rows.into_iter().map(|row| (row.subject, row.tally.exits)).collect()
    }

    const REASON: By = By { vm: false, vcpu: false, reason: true };

    #[test]
    fn halts_lead_only_when_they_count() {
        let first = |with_halt| {
            let options = Options { by: REASON, with_halt, ..Options::default() };
            rows(options, &Selection::default())[0].0.code
        };
        assert_eq!([first(false), first(true)], [Some(0x72), Some(0x78)]);
    }

    #[test]
    fn rows_are_told_apart_as_asked_and_selected() {
        let by = By { vm: true, vcpu: true, reason: true };
        let options = Options { by, key: Key::Exits, ..Options::default() };
        assert_eq!(rows(options, &Selection::default()).len(), 8);
        let selection = Selection { vcpus: vec![1], codes: vec![0x72], ..Selection::default() };
        let subject = |vm| Subject { vm: Some(vm), vcpu: Some(1), code: Some(0x72) };
        assert_eq!(rows(options, &selection), [(subject(2), 20), (subject(1), 10)]);
        let one = Options { by: By::default(), ..options };
        assert_eq!(rows(one, &selection), [(Subject::default(), 30)]);
    }

    #[test]
    fn what_does_not_fit_is_one_sum() {
        let by = By { vm: true, vcpu: true, reason: true };
        let options = Options { by, key: Key::Exits, top: 3, ..Options::default() };
        assert_eq!(rows(options, &Selection::default()).len(), 3);
        let all = Rows::of(&interval(), &Selection::default(), &Names::new(), options);
        assert_eq!(all.other.map(|(count, _)| count), Some(5));
    }

    #[test]
    fn runs_are_compared_by_subject() {
        let options = Options { by: REASON, ..Options::default() };
        let whole = Rows::of(&interval(), &Selection::default(), &Names::new(), options);
        let mut less = whole.clone();
        less.rows.remove(0);
        let cut = Options { top: 1, ..options };
        let (shown, other) = repeat(&[whole.clone(), less.clone()], cut);
        let (count, other) = other.unwrap();
        assert_eq!((shown.len(), count, other.runs[1].exits), (1, 1, less.total.exits - 60));
        let (repeated, other) = repeat(&[whole, less], options);
        assert_eq!(other, None);
        let exits: Vec<u64> = repeated[0].runs.iter().map(|run| run.exits).collect();
        assert_eq!((repeated.len(), exits), (2, vec![60, 0]));
        let spread = Spread::of(&[60.0, 0.0]);
        assert_eq!(spread.mean, 30.0);
        assert!((spread.deviation - 42.426).abs() < 0.001);
        assert_eq!(Spread::of(&[5.0]).deviation, 0.0);
    }
}

//! Several runs of the same: the mean of each reason, and how far the runs are apart.

use std::fmt::Write;

use exitscope_model::document::{Context, Quality};
use exitscope_model::interval::Interval;
use exitscope_model::stat::{Repeated, Rows, Spread, cost, repeat};

use super::{only, quality, subject, table_of};
use crate::units::{duration, grouped};

/// The runs as text: for a run, exits and cost with their standard deviation.
pub fn repeated(runs: &[Interval], context: Context<'_>, width: Option<usize>) -> String {
    let Some(last) = runs.last() else { return String::new() };
    let all = exitscope_model::stat::Options { top: 0, ..context.options };
    let rows: Vec<Rows> =
        runs.iter().map(|run| Rows::of(run, context.selection, context.names, all)).collect();
    let (repeated, other) = repeat(&rows, context.options);
    let lengths: Vec<f64> = runs.iter().filter_map(Interval::ns).map(|ns| ns as f64).collect();
    let length = Spread::of(&lengths);
    let mut out = format!(
        "{} runs of {} ± {:.2}%: mean of a run ± standard deviation\n\n",
        runs.len(),
        duration(length.mean as u64),
        length.percent()
    );
    let mut table = table_of(context.options.by, &["EXITS", "±", "COST", "±", "MEAN"]);
    for row in &repeated {
        let cells = subject(&row.subject, last, context);
        table.row(cells.into_iter().chain(figures(row, last, context)));
    }
    if let Some((_, other)) = &other {
        table.row(only("other", context.options.by).into_iter().chain(figures(other, last, context)));
    }
    let _ = write!(out, "{}", table.fitting(width, &["MEAN", "NAME"]));
    let untimed = rows.iter().map(|run| run.total.untimed()).sum();
    let _ = writeln!(out, "\n{}", quality(&Quality::of_runs(runs, context, untimed)));
    out
}

fn figures(row: &Repeated, interval: &Interval, context: Context<'_>) -> Vec<String> {
    let exits = row.spread(|run| run.exits);
    let time = |ticks: f64| match interval.clock.ns(ticks as u64) {
        Some(ns) if !context.cycles => duration(ns),
        _ => grouped(ticks as u64),
    };
    let cost = row.spread(|run| cost(run, context.options.with_halt));
    let percent = |spread: Spread| format!("{:.2}%", spread.percent());
    vec![
        grouped(exits.mean.round() as u64),
        percent(exits),
        time(cost.mean),
        percent(cost),
        row.tally.mean().map_or("-".into(), |ticks| time(ticks as f64)),
    ]
}

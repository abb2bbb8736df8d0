//! The table of an interval.

use std::fmt::Write;

use exitscope_model::document::{Context, Figures, Quality};
use exitscope_model::interval::Interval;
use exitscope_model::stat::{Rows, cost};
use exitscope_model::tally::Tally;

use super::{only, parts, quality, subject, table_of, usage};
use crate::text::{Table, grouped, share};
use crate::units::{duration, rate};

/// Columns after those that tell rows apart.
const COLUMNS: [&str; 12] = [
    "EXITS", "EXITS%", "EXITS/S", "COST%", "KERNEL", "USER", "POLLED", "HALTED", "MEAN", "P50", "P99", "MAX",
];
/// The columns that a narrow terminal does without, first to go first.
const DISPENSABLE: [&str; 12] =
    ["P50", "P99", "MAX", "MEAN", "EXITS/S", "EXITS%", "HALTED", "POLLED", "USER", "KERNEL", "NAME", "COST%"];

/// An interval as text, `width` columns wide at most where columns can be left out for that; ends with the quality.
/// `stamp` begins it: when the interval ended, in interval mode.
pub fn text(interval: &Interval, context: Context<'_>, stamp: Option<&str>, width: Option<usize>) -> String {
    let rows = Rows::of(interval, context.selection, context.names, context.options);
    let mut out = String::new();
    let length = interval.ns().map_or(String::new(), |ns| format!(" in {:.3} s", ns as f64 / 1e9));
    let exits = grouped(rows.total.exits);
    let _ = match stamp {
        Some(stamp) => writeln!(out, "{stamp}: {exits} exits{length}"),
        None => writeln!(out, "{exits} exits{length}\n"),
    };
    if rows.rows.is_empty() {
        let _ =
            writeln!(out, "no exits{}", if context.selection.is_all() { "" } else { " of what is selected" });
    } else {
        let _ = write!(out, "{}", table(interval, context, &rows).fitting(width, &DISPENSABLE));
    }
    let usage = usage::text(interval, context, width);
    if !usage.is_empty() {
        let _ = write!(out, "\n{usage}");
    }
    let Context { selection, names, origin, .. } = context;
    let quality = quality(&Quality::of(interval, selection, names, origin, rows.total.untimed()));
    let _ = writeln!(out, "{}{quality}", if stamp.is_none() { "\n" } else { "" });
    out
}

fn table(interval: &Interval, context: Context<'_>, rows: &Rows) -> Table {
    let by = context.options.by;
    let mut table = table_of(by, &COLUMNS);
    for row in &rows.rows {
        let cells = subject(&row.subject, interval, context);
        table.row(cells.into_iter().chain(figures(interval, context, rows, &row.tally)));
    }
    if let Some((_, tally)) = &rows.other {
        table.row(only("other", by).into_iter().chain(figures(interval, context, rows, tally)));
    }
    if rows.rows.len() > 1 {
        table.row(only("total", by).into_iter().chain(figures(interval, context, rows, &rows.total)));
    }
    table
}

fn figures(interval: &Interval, context: Context<'_>, rows: &Rows, tally: &Tally) -> Vec<String> {
    let figures = Figures::of(tally, interval.clock, true);
    let with_halt = context.options.with_halt;
    let cycles = context.cycles || interval.clock.khz == 0;
    let mut cells = vec![
        grouped(tally.exits),
        share(tally.exits, rows.total.exits),
        interval.ns().map_or("-".into(), |ns| rate(tally.exits, ns)),
        share(cost(tally, with_halt), cost(&rows.total, with_halt)),
    ];
    cells.extend(parts(&figures, cycles));
    let ticks =
        [tally.mean(), tally.quantile(500), tally.quantile(990), (tally.timed() > 0).then_some(tally.max)];
    let ns = [figures.mean_ns, figures.p50_ns, figures.p99_ns, figures.max_ns];
    let shown = if cycles { ticks.map(|ticks| ticks.map(grouped)) } else { ns.map(|ns| ns.map(duration)) };
    cells.extend(shown.map(|cell| cell.unwrap_or_else(|| "-".into())));
    cells
}

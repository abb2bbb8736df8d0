//! An interval as separated values: the same columns on each line, times in ns.

use exitscope_model::document::{Context, Figures, Parts};
use exitscope_model::interval::Interval;
use exitscope_model::stat::{Row, Rows, Subject, cost};
use exitscope_model::tally::Tally;

/// The line above all others.
pub fn csv_header(separator: &str, context: Context<'_>) -> String {
    let by = context.options.by;
    let keys = [
        (true, "time"),
        (true, "seconds"),
        (by.vm, "vm"),
        (by.vm, "vm_name"),
        (by.vm, "pid"),
        (by.vcpu, "vcpu"),
        (by.reason, "reason"),
        (by.reason, "code"),
    ];
    let figures = [
        "exits",
        "exits_percent",
        "exits_per_second",
        "cost_percent",
        "kernel_ns",
        "user_ns",
        "polled_ns",
        "halted_ns",
        "mean_ns",
        "p50_ns",
        "p99_ns",
        "max_ns",
    ];
    let cycles = ["kernel_cycles", "user_cycles", "polled_cycles", "halted_cycles"];
    let mut names: Vec<&str> = keys.into_iter().filter(|(shown, _)| *shown).map(|(_, name)| name).collect();
    names.extend(figures);
    if context.cycles {
        names.extend(cycles);
    }
    line(separator, names.into_iter().map(str::to_owned))
}

/// A line for each row. What is not known is empty.
pub fn csv(interval: &Interval, context: Context<'_>, separator: &str) -> String {
    let rows = Rows::of(interval, context.selection, context.names, context.options);
    let mut text = String::new();
    for Row { subject, tally } in &rows.rows {
        text += &row(interval, context, separator, &rows, Some(subject), tally);
    }
    if let Some((_, tally)) = &rows.other {
        text += &row(interval, context, separator, &rows, None, tally);
    }
    text
}

fn row(
    interval: &Interval,
    context: Context<'_>,
    separator: &str,
    rows: &Rows,
    subject: Option<&Subject>,
    tally: &Tally,
) -> String {
    let by = context.options.by;
    let mut cells = vec![
        interval.to.map_or(String::new(), |to| format!("{:.3}", to.wall_ns as f64 / 1e9)),
        interval.ns().map_or(String::new(), |ns| format!("{:.6}", ns as f64 / 1e9)),
    ];
    if by.vm {
        let vm = subject.and_then(|subject| subject.vm);
        let entry = vm.and_then(|id| interval.accounts.vms().iter().find(|vm| vm.id == id));
        cells.push(vm.map_or("other".into(), |id| super::vm_id(id).into_owned()));
        cells.push(vm.and_then(|id| context.names.get(&id)).cloned().unwrap_or_default());
        cells.push(entry.map(|vm| vm.pid.to_string()).unwrap_or_default());
    }
    if by.vcpu {
        let other = if subject.is_none() && !by.vm { "other" } else { "" };
        let vcpu = subject.and_then(|subject| subject.vcpu);
        cells.push(vcpu.map_or(other.into(), |vcpu| vcpu.to_string()));
    }
    if by.reason {
        let name = subject.and_then(|subject| subject.reason(interval));
        cells.push(name.map_or("other".into(), |name| name.into_owned()));
        cells.push(subject.and_then(|subject| subject.code).map(|code| code.to_string()).unwrap_or_default());
    }
    cells.extend(figures(interval, context, rows, tally));
    line(separator, cells.into_iter())
}

fn figures(interval: &Interval, context: Context<'_>, rows: &Rows, tally: &Tally) -> Vec<String> {
    let Figures { ns, cycles, mean_ns, p50_ns, p99_ns, max_ns, .. } =
        Figures::of(tally, interval.clock, true);
    let percent = |part: u64, whole: u64| {
        if whole == 0 { String::new() } else { format!("{:.2}", 100.0 * part as f64 / whole as f64) }
    };
    let with_halt = context.options.with_halt;
    let rate = match interval.ns() {
        None | Some(0) => String::new(),
        Some(ns) => format!("{:.2}", tally.exits as f64 * 1e9 / ns as f64),
    };
    let known = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let parts = |parts: Option<Parts>| {
        [
            known(parts.map(|parts| parts.kernel)),
            known(parts.map(|parts| parts.user)),
            known(parts.map(|parts| parts.polled)),
            known(parts.map(|parts| parts.halted)),
        ]
    };
    let mut cells = vec![
        tally.exits.to_string(),
        percent(tally.exits, rows.total.exits),
        rate,
        percent(cost(tally, with_halt), cost(&rows.total, with_halt)),
    ];
    cells.extend(parts(ns));
    cells.extend([mean_ns, p50_ns, p99_ns, max_ns].map(known));
    if context.cycles {
        cells.extend(parts(cycles));
    }
    cells
}

/// A line of cells; those that hold the separator, a quote or a line's end are quoted, as RFC 4180 has it.
fn line(separator: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells
        .map(|cell| match cell.contains(['"', '\n', '\r']) || cell.contains(separator) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell,
        })
        .collect();
    cells.join(separator) + "\n"
}

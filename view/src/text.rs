//! Shows a report to a person.

use std::fmt::{self, Display, Write};

use exitscope_model::{GuestView, Phase, Quality, Reason, Report, Tick, Total};

/// Columns of text, the first aligned left, the others right unless told otherwise.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    left: Vec<usize>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()], left: vec![0] }
    }

    /// Aligns a column left.
    #[must_use]
    pub fn left(mut self, column: usize) -> Self {
        self.left.push(column);
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Leaves out columns, the first of `dispensable` first, until the table is at most `width` characters wide, or
    /// nothing more can go.
    #[must_use]
    pub fn fitting(mut self, width: Option<usize>, dispensable: &[&str]) -> Self {
        for heading in dispensable {
            if width.is_none_or(|width| self.width() <= width) {
                break;
            }
            let column = self.rows.first().and_then(|row| row.iter().position(|cell| cell == heading));
            if let Some(column) = column {
                self.drop_column(column);
            }
        }
        self
    }

    fn drop_column(&mut self, column: usize) {
        self.rows.iter_mut().filter(|row| column < row.len()).for_each(|row| drop(row.remove(column)));
        self.left.retain(|&left| left != column);
        self.left.iter_mut().filter(|left| **left > column).for_each(|left| *left -= 1);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }

    /// Characters of the longest line.
    fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                line.push_str(if column == 0 { "" } else { "  " });
                match self.left.contains(&column) {
                    true => write!(line, "{cell:<width$}")?,
                    false => write!(line, "{cell:>width$}")?,
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with its thousands apart: 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part in percent of the whole; `-` of nothing.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.2}%", 100.0 * part as f64 / whole as f64) }
}

/// The ranked table of reasons: exits, share, total cycles, where they went, min, mean, max.
pub fn reasons(reasons: &[Reason], total: Total) -> String {
    let mut table = Table::new(&[
        "EXIT", "CODE", "EXITS", "EXITS%", "CYCLES", "CYCLES%", "KERNEL", "USER", "POLLED", "HALTED", "MIN",
        "MEAN", "MAX",
    ]);
    for reason in reasons {
        table.row([
            reason.name.to_string(),
            reason.code.to_string(),
            grouped(reason.exits),
            share(reason.exits, total.exits),
            grouped(reason.cycles),
            share(reason.cycles, total.cycles),
            share(reason.kernel, reason.cycles),
            share(reason.user, reason.cycles),
            share(reason.polled, reason.cycles),
            share(reason.halted, reason.cycles),
            grouped(reason.min),
            reason.mean().map_or("-".into(), grouped),
            grouped(reason.max),
        ]);
    }
    table.row(["total".into(), String::new(), grouped(total.exits), String::new(), grouped(total.cycles)]);
    table.to_string()
}

/// The whole report as text.
pub fn report(report: &Report) -> String {
    let mut text = String::new();
    write_report(&mut text, report).unwrap_or_default();
    text
}

fn write_report(out: &mut String, report: &Report) -> fmt::Result {
    let machine = &report.machine;
    writeln!(
        out,
        "KVM exits on Linux {} ({}, {} paging), source {}, layout {}, expose {}",
        machine.kernel,
        report.isa.to_uppercase(),
        machine.paging,
        report.source,
        report.layout,
        report.expose
    )?;
    if machine.emulated {
        writeln!(
            out,
            "Cycles are *emulated* ({}): compare them with each other, not with a real CPU.",
            machine.emulator
        )?;
    }
    if report.source == "bpf" {
        writeln!(
            out,
            "Counted by eBPF: a cycle is a ns of the kernel's clock here, and the guest is not answered."
        )?;
    }
    if let Some(instructions) = machine.instructions_to_module {
        writeln!(out, "The module was loaded {} emulated instructions after reset.", grouped(instructions))?;
    }
    writeln!(out, "\n{} exits, {} cycles", grouped(report.total.exits), grouped(report.total.cycles))?;
    writeln!(out, "{}\n", time_split(report))?;
    write!(out, "{}", reasons(&report.reasons, report.total))?;
    if let Some(guest) = &report.guest {
        writeln!(
            out,
            "\nWhat the guest read through CPUID, beside what the host counted until the guest ended:\n"
        )?;
        write!(out, "{}", guest_and_host(guest, report))?;
    } else if report.expose == "off" {
        writeln!(out, "\nThe guest was told nothing (expose off).")?;
    }
    if report.timeline.len() > 1 {
        writeln!(out, "\nExits over the guest's life:\n")?;
        write!(out, "{}", timeline(&report.timeline, &report.phases))?;
    }
    if !report.phases.is_empty() {
        write!(out, "\n{}", phases(&report.phases))?;
    }
    if report.quality != Quality::default() {
        write!(out, "\n{}", memory_shortage(&report.quality))?;
    }
    Ok(())
}

/// What a shortage of memory did.
pub fn memory_shortage(quality: &Quality) -> String {
    let unaccounted = grouped(quality.unaccounted);
    format!("Memory was short: some exits lack their reason (OVERFLOW), {unaccounted} are in no account.\n")
}

/// Where the cycles of all exits went.
fn time_split(report: &Report) -> String {
    let part = |of: fn(&Reason) -> u64| share(report.reasons.iter().map(of).sum(), report.total.cycles);
    format!(
        "of them {} in the kernel, {} in the VMM's user space, {} polled, {} halted",
        part(|reason| reason.kernel),
        part(|reason| reason.user),
        part(|reason| reason.polled),
        part(|reason| reason.halted)
    )
}

fn guest_and_host(guest: &GuestView, report: &Report) -> String {
    let mut table = Table::new(&["EXIT", "GUEST READ", "HOST COUNTED", "SINCE THEN"]);
    let mut row = |name: &str, read: u64, counted: u64| {
        let since = counted.checked_sub(read).map_or_else(|| format!("-{}", read - counted), grouped);
        table.row([name.into(), grouped(read), grouped(counted), since]);
    };
    for reason in &report.reasons {
        let read = guest.reasons.iter().find(|read| read.code == reason.code).map_or(0, |read| read.exits);
        row(&reason.name, read, reason.exits);
    }
    for read in guest.reasons.iter().filter(|read| report.reasons.iter().all(|known| known.code != read.code))
    {
        row(&read.name, read.exits, 0);
    }
    row("total", guest.total.exits, report.total.exits);
    table.to_string()
}

/// Rows of a timeline at most.
const ROWS: u64 = 20;
/// Characters of its longest bar.
const BAR: u64 = 40;

/// A timeline as bars of exits per equal stretch of time, each with the phases that begin in it.
pub fn timeline(ticks: &[Tick], phases: &[Phase]) -> String {
    let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else { return String::new() };
    let length = (last.t_ms - first.t_ms).max(1);
    let step = length.div_ceil(ROWS).next_multiple_of(50);
    let at = |time: u64| ticks.iter().rev().find(|tick| tick.t_ms <= time).map_or(0, |tick| tick.exits);
    let starts: Vec<u64> = (0..length.div_ceil(step)).map(|row| first.t_ms + row * step).collect();
    let rows: Vec<(u64, u64)> =
        starts.iter().map(|&start| (start, at(start + step).saturating_sub(at(start)))).collect();
    let most = rows.iter().map(|&(_, exits)| exits).max().unwrap_or(0).max(1);
    let mut text = String::new();
    for (start, exits) in rows {
        let bar = "#".repeat((exits * BAR).div_ceil(most) as usize);
        let rate = exits * 1000 / step;
        let begins = |phase: &&Phase| (start..start + step).contains(&phase.start_ms.max(first.t_ms));
        let names: Vec<&str> = phases.iter().filter(begins).map(|phase| phase.name.as_str()).collect();
        let line = format!(
            "{:>7} ms  {bar:<40}  {:>9}/s  {}",
            grouped(start - first.t_ms),
            grouped(rate),
            names.join(", ")
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The phases of a boot.
pub fn phases(phases: &[Phase]) -> String {
    let mut table = Table::new(&["PHASE", "FROM", "TO", "EXITS", "EXITS/S"]);
    for phase in phases {
        table.row([
            phase.name.clone(),
            format!("{} ms", grouped(phase.start_ms)),
            format!("{} ms", grouped(phase.end_ms)),
            grouped(phase.exits),
            phase.rate().map_or("-".into(), grouped),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let text = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(text, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_table_shows_shares_and_means() {
        let cpuid = Reason {
            code: 114,
            name: "CPUID".into(),
            exits: 3,
            cycles: 300,
            kernel: 270,
            user: 30,
            min: 90,
            max: 120,
            ..Reason::default()
        };
        let text = reasons(&[cpuid], Total { exits: 4, cycles: 1200 });
        let row = text.lines().nth(1).unwrap();
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>(),
            [
                "CPUID", "114", "3", "75.00%", "300", "25.00%", "90.00%", "10.00%", "0.00%", "0.00%", "90",
                "100", "120"
            ]
        );
    }

    #[test]
    fn a_timeline_adds_up_to_its_exits() {
        let ticks: Vec<Tick> = (0..=40).map(|i| Tick { t_ms: 100 + i * 50, exits: i * i }).collect();
        let text = timeline(&ticks, &[]);
        assert_eq!(text.lines().count(), 20);
        assert!(text.lines().last().unwrap().contains('#'));
        assert_eq!(timeline(&[], &[]), "");
    }

    #[test]
    fn a_timeline_marks_where_phases_begin() {
        let ticks = [0, 50, 100, 150].map(|t_ms| Tick { t_ms, exits: 2 * t_ms });
        let phase = |name: &str, start_ms, end_ms| Phase {
            name: name.into(),
            start_ms,
            end_ms,
            exits: 2 * (end_ms - start_ms),
        };
        let boot = [phase("firmware", 0, 10), phase("kernel", 10, 110), phase("userspace", 110, 150)];
        let marked = timeline(&ticks, &boot);
        let ends: Vec<&str> = marked.lines().filter_map(|line| line.split("/s").nth(1)).collect();
        assert_eq!(ends, ["  firmware, kernel", "", "  userspace"]);
        let table = phases(&boot);
        let row: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(row, ["kernel", "10", "ms", "110", "ms", "200", "2,000"]);
    }

    #[test]
    fn an_empty_report_is_shown() {
        assert!(report(&Report::default()).contains("0 exits"));
    }
}

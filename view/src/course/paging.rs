//! Nested against shadow paging (A4).

use super::document::{Bars, Block, Chart, Figure, Grid, Kind, Section, list, measured};
use crate::compare::cells;
use crate::text::grouped;
use exitscope_model::Machine;
use exitscope_model::compare::{Change, Comparison, Row};

/// The section A4.
pub fn section(comparisons: &[Comparison]) -> Section {
    Section {
        label: "A4",
        title: "Nested against shadow paging",
        question: "How do the exits of the same boot change when KVM pages its guest with shadow page tables instead of nested ones?",
        commands: comparisons
            .iter()
            .map(|pair| format!("exitscope lab compare --vendor {}", pair.b.machine.vendor))
            .collect(),
        answer: measured(comparisons.iter().map(what_changed)),
        evidence: comparisons.iter().flat_map(|pair| [paired_bars(pair), paired_table(pair)]).collect(),
    }
}

fn what_changed(pair: &Comparison) -> String {
    let [a, b] = [&pair.a, &pair.b];
    let [exits_a, exits_b] = [a.total.exits, b.total.exits];
    let mut text = format!(
        "On {}, the boot took {} exits with {} and {} with {} paging",
        b.machine.cpu(),
        grouped(exits_a),
        a.label,
        grouped(exits_b),
        b.label
    );
    if exits_a > 0 {
        text += &format!(": {:.1} times as many", exits_b as f64 / exits_a as f64);
    }
    text += ".";
    for (change, side) in [(Change::Appeared, b), (Change::Vanished, a)] {
        let names = reasons(pair, |row| row.change == change, |row| grouped(row.a.exits.max(row.b.exits)));
        if !names.is_empty() {
            text += &format!(" Only with {}: {}.", side.label, list(&names));
        }
    }
    let multiplied = reasons(
        pair,
        |row| row.ratio.is_some_and(|ratio| ratio >= 2.0),
        |row| format!("{} to {}", grouped(row.a.exits), grouped(row.b.exits)),
    );
    if !multiplied.is_empty() {
        text += &format!(" At least doubled: {}.", list(&multiplied));
    }
    text
}

/// Reasons that fit, each with what is said of it.
fn reasons(pair: &Comparison, fits: impl Fn(&Row) -> bool, said: impl Fn(&Row) -> String) -> Vec<String> {
    let rows = pair.reasons.iter().filter(|row| fits(row));
    rows.map(|row| format!("{} ({})", row.name, said(row))).collect()
}

fn paired_bars(pair: &Comparison) -> Block {
    let rows = pair.reasons.iter().map(|row| (row.name.clone(), vec![row.a.exits, row.b.exits])).collect();
    Block::Figure(Figure {
        title: format!("Exits per reason on {}, log scale", pair.a.machine.vendor_name()),
        description: what_changed(pair),
        chart: Chart::Bars(Bars { series: vec![pair.a.label.clone(), pair.b.label.clone()], rows }),
    })
}

fn paired_table(pair: &Comparison) -> Block {
    let emulated = |machine: &Machine| if machine.emulated { "emulated cycles" } else { "cycles" };
    let columns = [
        ("Exit", Kind::Text),
        ("Code", Kind::Number),
        (&pair.a.label, Kind::Number),
        (&pair.b.label, Kind::Number),
        ("Difference", Kind::Number),
        ("Ratio", Kind::Number),
        (&format!("{}: {}", pair.a.label, emulated(&pair.a.machine)), Kind::Number),
        (&format!("{}: {}", pair.b.label, emulated(&pair.b.machine)), Kind::Number),
    ];
    let mut grid = Grid::new(format!("{}, what changed most first", pair.b.machine.describe()), &columns);
    for row in &pair.reasons {
        grid.row(cells(&row.name, Some(row.code), row.a, row.b));
    }
    grid.total = Some(cells("total", None, pair.a.total, pair.b.total).to_vec());
    Block::Table(grid)
}

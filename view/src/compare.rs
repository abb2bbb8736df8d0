//! Two runs side by side, as text.

use std::cmp::Ordering;

use exitscope_model::Total;
use exitscope_model::compare::{Change, Comparison, Side, difference, ratio};

use crate::text::{Table, grouped};

/// The comparison as text: what A and B are, then a table.
pub fn text(comparison: &Comparison) -> String {
    let mut table = Table::new(&["EXIT", "CODE", "A", "B", "DIFFERENCE", "RATIO", "CYCLES A", "CYCLES B"]);
    for row in &comparison.reasons {
        table.row(cells(&row.name, Some(row.code), row.a, row.b).into_iter().chain(mark(row.change)));
    }
    table.row(cells("total", None, comparison.a.total, comparison.b.total));
    let [a, b] = [&comparison.a, &comparison.b].map(describe);
    format!("A  {a}\nB  {b}\n{}\n{table}", caution(comparison))
}

/// Whose cycles are emulated, as a line; empty when nobody's are.
fn caution(comparison: &Comparison) -> String {
    let whose = match [&comparison.a, &comparison.b].map(|side| side.machine.emulated) {
        [true, true] => "A and B",
        [true, false] => "A",
        [false, true] => "B",
        [false, false] => return String::new(),
    };
    format!("Cycles of {whose} are *emulated*: compare them with each other, not with a real CPU.\n")
}

/// How it paged, where it ran, how often it exited.
fn describe(side: &Side) -> String {
    let exits = grouped(side.total.exits);
    format!("{} paging, {}, {exits} exits", side.machine.paging, side.machine.describe())
}

/// The word for what has no ratio.
pub fn mark(change: Change) -> Option<String> {
    match change {
        Change::Appeared => Some("appeared".into()),
        Change::Vanished => Some("vanished".into()),
        Change::Rose | Change::Fell | Change::Same => None,
    }
}

/// A number with its sign and its thousands apart: `+1,234`.
fn signed(number: i64) -> String {
    let sign = match number.cmp(&0) {
        Ordering::Greater => "+",
        Ordering::Equal => "",
        Ordering::Less => "-",
    };
    format!("{sign}{}", grouped(number.unsigned_abs()))
}

/// A line of the table, without its mark.
pub fn cells(name: &str, code: Option<u64>, a: Total, b: Total) -> [String; 8] {
    [
        name.into(),
        code.map(|code| code.to_string()).unwrap_or_default(),
        grouped(a.exits),
        grouped(b.exits),
        signed(difference(a, b)),
        ratio(a, b).map_or("-".into(), |ratio| format!("x{ratio:.2}")),
        grouped(a.cycles),
        grouped(b.cycles),
    ]
}

#[cfg(test)]
mod tests {
    use exitscope_model::{Machine, Report};

    use super::*;

    fn run(paging: &str, exits: u64) -> Report {
        let total = Total { exits, cycles: 100 * exits };
        let reason = exitscope_model::Reason {
            code: 19,
            name: "CR3_WRITE".into(),
            exits,
            cycles: total.cycles,
            ..Default::default()
        };
        let machine = Machine {
            emulated: true,
            emulator: "qemu-tcg".into(),
            vendor: "amd".into(),
            kernel: "6.12.1".into(),
            paging: paging.into(),
            ..Machine::default()
        };
        let reasons = if exits > 0 { vec![reason] } else { vec![] };
        Report { isa: "svm".into(), machine, total, reasons, ..Report::default() }
    }

    #[test]
    fn signs_are_shown() {
        assert_eq!([signed(-1_234), signed(0), signed(1)], ["-1,234", "0", "+1"]);
    }

    #[test]
    fn the_text_says_what_a_and_b_are() {
        let text = text(&Comparison::new(&run("nested", 0), &run("shadow", 40)).unwrap());
        assert!(text.starts_with(
            "A  nested paging, Linux 6.12.1 on an emulated AMD CPU (qemu-tcg), 0 exits\nB  shadow paging, "
        ));
        assert!(text.contains("Cycles of A and B are *emulated*"));
        let row: Vec<&str> =
            text.lines().find(|line| line.starts_with("CR3")).unwrap().split_whitespace().collect();
        assert_eq!(row, ["CR3_WRITE", "19", "0", "40", "+40", "-", "0", "4,000", "appeared"]);
        assert!(text.lines().last().unwrap().starts_with("total"));
    }
}

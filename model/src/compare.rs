//! Two runs side by side: which exits one has and the other has not, as in the JSON schema `exitscope-compare/1`.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Machine, Report, Total};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-compare/1";

/// Two runs on the same instruction set, reason by reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: String,
    /// `vmx` or `svm`.
    pub isa: String,
    /// The run compared with.
    pub a: Side,
    /// The run compared.
    pub b: Side,
    /// Per reason, what changed most first; equal ones by code.
    pub reasons: Vec<Row>,
}

/// One of the two runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// What tells it from the other: `nested` or `shadow`, else the kernel, else `A` or `B`.
    pub label: String,
    /// Where it ran.
    pub machine: Machine,
    /// All its reasons together.
    pub total: Total,
}

/// One reason in both runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Exit reason (VMX) or exit code (SVM).
    pub code: u64,
    /// The field's name of it.
    pub name: String,
    /// Its exits and cycles in run A.
    pub a: Total,
    /// Its exits and cycles in run B.
    pub b: Total,
    /// Exits of B less exits of A.
    pub difference: i64,
    /// Exits of B per exit of A; `None` when A has none.
    pub ratio: Option<f64>,
    /// What became of it from A to B.
    pub change: Change,
}

/// What became of a reason from A to B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// B has it, A has not.
    Appeared,
    /// A has it, B has not.
    Vanished,
    /// B has more.
    Rose,
    /// B has less.
    Fell,
    /// Both have as many.
    Same,
}

/// Why two runs cannot be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot compare {a} with {b}: VMX and SVM number their exits differently, so the same code means another exit; compare two runs on CPUs of one vendor"
)]
pub struct OtherIsa {
    /// The instruction set of A, in capitals.
    pub a: String,
    /// The instruction set of B, in capitals.
    pub b: String,
}

impl Comparison {
    /// Compares run B with run A.
    ///
    /// # Errors
    /// When the runs are of different instruction sets.
    pub fn new(a: &Report, b: &Report) -> Result<Self, OtherIsa> {
        if a.isa != b.isa {
            return Err(OtherIsa { a: a.isa.to_uppercase(), b: b.isa.to_uppercase() });
        }
        let [label_a, label_b] = labels(&a.machine, &b.machine);
        let side =
            |label, report: &Report| Side { label, machine: report.machine.clone(), total: report.total };
        Ok(Self {
            schema: SCHEMA.into(),
            isa: a.isa.clone(),
            a: side(label_a, a),
            b: side(label_b, b),
            reasons: rows(a, b),
        })
    }
}

impl Change {
    fn of(a: u64, b: u64) -> Self {
        match (a, b, b.cmp(&a)) {
            (_, _, Ordering::Equal) => Self::Same,
            (0, _, _) => Self::Appeared,
            (_, 0, _) => Self::Vanished,
            (_, _, Ordering::Greater) => Self::Rose,
            (_, _, Ordering::Less) => Self::Fell,
        }
    }
}

/// What tells two machines apart, in the words of the first thing in which they differ.
fn labels(a: &Machine, b: &Machine) -> [String; 2] {
    let differing = [(&a.paging, &b.paging), (&a.kernel, &b.kernel), (&a.emulator, &b.emulator)];
    let told = differing.into_iter().find(|(a, b)| a != b && !a.is_empty() && !b.is_empty());
    told.map_or(["A".into(), "B".into()], |(a, b)| [a.clone(), b.clone()])
}

fn rows(a: &Report, b: &Report) -> Vec<Row> {
    let mut both: BTreeMap<u64, (&str, [Total; 2])> = BTreeMap::new();
    for (side, report) in [a, b].into_iter().enumerate() {
        for reason in &report.reasons {
            let (_, totals) = both.entry(reason.code).or_insert((&reason.name, [Total::default(); 2]));
            totals[side] = Total { exits: reason.exits, cycles: reason.cycles };
        }
    }
    let mut rows: Vec<Row> = both
        .into_iter()
        .map(|(code, (name, [a, b]))| Row {
            code,
            name: name.into(),
            a,
            b,
            difference: difference(a, b),
            ratio: ratio(a, b),
            change: Change::of(a.exits, b.exits),
        })
        .collect();
    rows.sort_by_key(|row| (Reverse(row.difference.unsigned_abs()), row.code));
    rows
}

/// Exits of B less exits of A.
pub fn difference(a: Total, b: Total) -> i64 {
    i64::try_from(i128::from(b.exits) - i128::from(a.exits)).unwrap_or(i64::MAX)
}

/// Exits of B per exit of A; `None` when A has none.
pub fn ratio(a: Total, b: Total) -> Option<f64> {
    (a.exits > 0).then(|| b.exits as f64 / a.exits as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    fn run(isa: &str, paging: &str, reasons: &[(u64, &str, u64)]) -> Report {
        let account = |&(code, name, exits): &(u64, &str, u64)| Reason {
            code,
            name: name.to_owned().into(),
            exits,
            cycles: 100 * exits,
            ..Reason::default()
        };
        let reasons: Vec<Reason> = reasons.iter().map(account).collect();
        Report {
            isa: isa.into(),
            machine: Machine {
                emulated: true,
                emulator: "qemu-tcg".into(),
                vendor: "amd".into(),
                kernel: "6.12.1".into(),
                paging: paging.into(),
                ..Machine::default()
            },
            total: crate::total(&reasons),
            reasons,
            ..Report::default()
        }
    }

    fn example() -> Comparison {
        let nested = run("svm", "nested", &[(114, "CPUID", 50), (1024, "NPF", 40), (123, "IOIO", 9)]);
        let shadow = run("svm", "shadow", &[(19, "CR3_WRITE", 40), (114, "CPUID", 50), (123, "IOIO", 12)]);
        Comparison::new(&nested, &shadow).unwrap()
    }

    #[test]
    fn what_changed_most_comes_first() {
        let comparison = example();
        let rows = comparison.reasons.iter().map(|row| (row.code, row.difference, row.ratio, row.change));
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [
                (19, 40, None, Change::Appeared),
                (1024, -40, Some(0.0), Change::Vanished),
                (123, 3, Some(12.0 / 9.0), Change::Rose),
                (114, 0, Some(1.0), Change::Same),
            ]
        );
        let [a, b] = [&comparison.a, &comparison.b].map(|side| (side.label.as_str(), side.total.exits));
        assert_eq!([a, b], [("nested", 99), ("shadow", 102)]);
    }

    #[test]
    fn the_other_way_round_is_the_opposite() {
        assert_eq!(Change::of(3, 2), Change::Fell);
        assert_eq!(Change::of(0, 0), Change::Same);
    }

    #[test]
    fn instruction_sets_do_not_mix() {
        let error = Comparison::new(&run("vmx", "nested", &[]), &run("svm", "nested", &[])).unwrap_err();
        assert!(error.to_string().contains("VMX with SVM"));
    }

    #[test]
    fn equal_machines_are_called_a_and_b() {
        let same = run("svm", "nested", &[]);
        let comparison = Comparison::new(&same, &same).unwrap();
        assert_eq!([&comparison.a.label, &comparison.b.label], ["A", "B"]);
    }

    #[test]
    fn json_goes_and_comes_back() {
        let comparison = example();
        let text = serde_json::to_string(&comparison).unwrap();
        assert!(text.starts_with(r#"{"schema":"exitscope-compare/1""#));
        assert!(text.contains(r#""change":"appeared""#));
        assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), comparison);
    }
}

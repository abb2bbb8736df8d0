//! What a guest read from the course's leaves (A2, A2', A2'', A3).

use std::cmp::Ordering::{Equal, Greater};

use exitscope_abi::leaf::Question;

use super::document::{Block, Grid, Kind, Section, list, measured};
use super::{LayoutReading, Reading, isa_of, manual};
use crate::text::grouped;
use exitscope_model::Machine;

/// The layout whose leaves A3 speaks of.
const CLASSIC: &str = "classic";

/// What a layout's section says without data.
struct Totals {
    label: &'static str,
    title: &'static str,
    layout: &'static str,
    question: &'static str,
    leaf: &'static str,
}

const TOTALS: [Totals; 3] = [
    Totals {
        label: "A2",
        title: "All exits and their cycles, asked by CPUID",
        layout: "classic",
        question: "How often did this guest exit (leaf 0x4FFFFFFF, in EAX), and how many cycles did that take (leaf 0x4FFFFFFE, high half in EBX, low half in ECX)?",
        leaf: "0x4fffffff",
    },
    Totals {
        label: "A2\u{2032}",
        title: "The same in another year's numbering",
        layout: "reordered",
        question: "Leaf 0x4FFFFFFC total exits, 0x4FFFFFFD total cycles, 0x4FFFFFFE exits and 0x4FFFFFFF cycles of the reason in ECX: what do they say?",
        leaf: "0x4ffffffc",
    },
    Totals {
        label: "A2\u{2033}",
        title: "Exits and cycles in one leaf",
        layout: "combined",
        question: "Leaf 0x4FFFFFFF returns total exits in EAX and total cycles in EBX:ECX, 0x4FFFFFFE the exits of the reason in ECX: what do they say?",
        leaf: "0x4fffffff",
    },
];

/// The sections A2, A2' and A2''.
pub fn in_all(readings: &[LayoutReading]) -> Vec<Section> {
    TOTALS.iter().map(|of| totals(readings, of)).collect()
}

fn totals(readings: &[LayoutReading], of: &Totals) -> Section {
    let parts = parts(readings, of.layout, |question| of.layout != CLASSIC || !asks_reason(question));
    Section {
        label: of.label,
        title: of.title,
        question: of.question,
        commands: vec![
            format!("exitscope lab run --layout {}", of.layout),
            format!("cpuid -1 -r -l {}", of.leaf),
            "exitscope guest --course".into(),
        ],
        answer: measured(parts.iter().map(|part| format!("{} {}", part.read_in_all(), part.agreement()))),
        evidence: parts.iter().map(Part::table).collect(),
    }
}

/// The section A3.
pub fn per_reason(readings: &[LayoutReading]) -> Section {
    let parts = parts(readings, CLASSIC, asks_reason);
    Section {
        label: "A3",
        title: "Exits and cycles of one reason",
        question: "How often did this guest exit for the reason in ECX (leaf 0x4FFFFFFD), how many cycles did it take (leaf 0x4FFFFFFC), and what is the answer for a reason that is not defined, or never happens?",
        commands: vec!["cpuid -1 -r -l 0x4ffffffd -s 10".into(), "exitscope guest 10".into()],
        answer: measured(parts.iter().map(|part| {
            [part.most_frequent(), part.never_seen(), part.undefined(), part.agreement()]
                .into_iter()
                .filter(|sentence| !sentence.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        })),
        evidence: parts.iter().map(Part::table).collect(),
    }
}

/// What was read in a layout, machine by machine, as far as it is wanted.
fn parts<'a>(
    readings: &'a [LayoutReading],
    layout: &str,
    wanted: impl Fn(Question) -> bool,
) -> Vec<Part<'a>> {
    let readings = readings.iter().filter(|reading| reading.layout == layout);
    readings.map(|reading| Part::of(reading, &wanted)).filter(|part| !part.rows.is_empty()).collect()
}

fn asks_reason(question: Question) -> bool {
    reason_of(question).is_some()
}

fn reason_of(question: Question) -> Option<u32> {
    match question {
        Question::CourseReasonExits(code) | Question::CourseReasonCycles(code) => Some(code),
        _ => None,
    }
}

/// How a later reading compares with an earlier one.
#[derive(PartialEq)]
enum Verdict {
    Same,
    More,
    Other,
}

fn verdict(question: Question, row: &Reading) -> Verdict {
    let first = row.decode(question);
    if first.is_undefined() {
        return if row.exitscope.is_undefined() { Verdict::Same } else { Verdict::Other };
    }
    let then = row.exitscope.only_those_of(first);
    match (then.exits.cmp(&first.exits), then.cycles.cmp(&first.cycles)) {
        (Equal, Equal) => Verdict::Same,
        (Equal | Greater, Equal | Greater) => Verdict::More,
        _ => Verdict::Other,
    }
}

/// EAX to EDX for a reason that the manual does not define.
const UNDEFINED: [u32; 4] = [0, 0, 0, u32::MAX];

/// The rows of a reading that one section speaks of.
struct Part<'a> {
    reading: &'a LayoutReading,
    rows: Vec<(Question, &'a Reading)>,
}

impl<'a> Part<'a> {
    fn of(reading: &'a LayoutReading, wanted: impl Fn(Question) -> bool) -> Self {
        let rows = reading.rows.iter().filter_map(|row| Some((reading.question(row)?, row)));
        Self { reading, rows: rows.filter(|&(question, _)| wanted(question)).collect() }
    }

    fn machine(&self) -> &'a Machine {
        &self.reading.machine
    }

    /// `CPUID (114)`, or `reason 35` for a code without a name.
    fn reason(&self, code: u32) -> String {
        match isa_of(self.machine()).reason(code) {
            Some(reason) => format!("{} ({code})", reason.name),
            None => format!("reason {code}"),
        }
    }

    fn meaning(&self, question: Question) -> String {
        let of = |what: &str, code| match isa_of(self.machine()).reason(code) {
            Some(reason) => format!("{what} of {}", reason.name),
            None => format!("{what}, not defined"),
        };
        match question {
            Question::CourseReasonExits(code) => of("exits", code),
            Question::CourseReasonCycles(code) => of("cycles", code),
            Question::CourseExits => "exits, all reasons".into(),
            Question::CourseCycles => "cycles, all reasons".into(),
            _ => "exits / cycles, all reasons".into(),
        }
    }

    fn read_in_all(&self) -> String {
        let told = self.rows.iter().filter(|(question, _)| !asks_reason(*question));
        let told: Vec<String> = told.map(|&(question, row)| row.decode(question).text()).collect();
        format!("On {}, Debian's `cpuid` read {}.", self.machine().cpu(), list(&told))
    }

    /// How what `exitscope guest` read compares with what `cpuid` had read.
    fn agreement(&self) -> String {
        let count =
            |wanted| self.rows.iter().filter(|(question, row)| verdict(*question, row) == wanted).count();
        let said: Vec<String> = [
            ("the same", count(Verdict::Same)),
            ("more (exits had gone on)", count(Verdict::More)),
            ("something else", count(Verdict::Other)),
        ]
        .into_iter()
        .filter(|&(_, rows)| rows > 0)
        .map(|(what, rows)| format!("{what} in {rows}"))
        .collect();
        format!("Of the {} rows, `exitscope guest`, asked next, read {}.", self.rows.len(), list(&said))
    }

    fn most_frequent(&self) -> String {
        let counted = self
            .rows
            .iter()
            .filter_map(|&(question, row)| Some((row.decode(question).exits?, reason_of(question)?)));
        match counted.max() {
            Some((exits, code)) if exits > 0 => format!(
                "On {}, the most frequent of the reasons asked was {} with {} exits.",
                self.machine().cpu(),
                self.reason(code),
                grouped(exits)
            ),
            _ => format!("On {}, none of the reasons asked had happened.", self.machine().cpu()),
        }
    }

    /// Reasons of the rows that fit, each once.
    fn reasons(&self, fits: impl Fn(u32, &Reading) -> bool) -> Vec<String> {
        let mut codes: Vec<u32> = self
            .rows
            .iter()
            .filter_map(|&(question, row)| reason_of(question).filter(|&code| fits(code, row)))
            .collect();
        codes.sort_unstable();
        codes.dedup();
        codes.into_iter().map(|code| self.reason(code)).collect()
    }

    fn is_defined(&self, code: u32) -> bool {
        isa_of(self.machine()).reason(code).is_some()
    }

    fn never_seen(&self) -> String {
        let silent = self.reasons(|code, row| self.is_defined(code) && row.registers == [0; 4]);
        match silent.len() {
            0 => String::new(),
            _ => format!("Defined, but never seen: {} answered four zeros.", list(&silent)),
        }
    }

    fn undefined(&self) -> String {
        let manual = manual(isa_of(self.machine()));
        let answered = |row: &Reading| row.registers == UNDEFINED;
        let right = self.reasons(|code, row| !self.is_defined(code) && answered(row));
        let wrong = self.reasons(|code, row| self.is_defined(code) == answered(row));
        let mut text = String::new();
        if !right.is_empty() {
            text =
                format!("Not defined by the {manual}: {} answered zeros and EDX = 0xFFFFFFFF.", list(&right));
        }
        if !wrong.is_empty() {
            text += &format!(" Wrong by the {manual}: {} answered otherwise.", list(&wrong));
        }
        text
    }

    fn table(&self) -> Block {
        let columns = [
            ("Leaf", Kind::Hex),
            ("Sub\u{2011}leaf", Kind::Number),
            ("Meaning", Kind::Text),
            ("EAX", Kind::Hex),
            ("EBX", Kind::Hex),
            ("ECX", Kind::Hex),
            ("EDX", Kind::Hex),
            ("cpuid", Kind::Number),
            ("exitscope guest", Kind::Number),
        ];
        let cycles = if self.machine().emulated { "; cycles are emulated" } else { "" };
        let caption = format!("{}, layout {}{cycles}", self.machine().describe(), self.reading.layout);
        let mut grid = Grid::new(caption, &columns);
        for &(question, row) in &self.rows {
            let told = row.decode(question);
            let said = if told.is_undefined() { row.exitscope } else { row.exitscope.only_those_of(told) };
            let registers = row.registers.map(|register| format!("{register:#010x}"));
            let asked = [format!("{:#010x}", row.leaf), row.subleaf.to_string(), self.meaning(question)];
            grid.row(asked.into_iter().chain(registers).chain([told.figures(), said.figures()]));
        }
        Block::Table(grid)
    }
}

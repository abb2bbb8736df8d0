//! Questions about single numbers: capabilities, leaves, nested against shadow paging (A1 to A4).

use exitscope_abi::leaf::Question;

use super::document::{Bars, Block, Chart, Figure, Grid, Kind, Section, UNMEASURED, list};
use super::{Capabilities, Course, LayoutReading, Reading, isa_of, manual};
use crate::compare::{self, Change, Comparison};
use crate::model::Machine;
use crate::render::grouped;

/// The sections A1 to A4.
pub fn all(course: &Course) -> Vec<Section> {
    let totals = TOTALS.iter().map(|of| totals(course, of));
    let mut sections = vec![capabilities(course.capabilities.as_ref())];
    sections.extend(totals);
    sections.push(per_reason(course));
    sections.push(paging(&course.comparisons));
    sections
}

fn capabilities(capabilities: Option<&Capabilities>) -> Section {
    let registers = capabilities.map_or(&[][..], |caps| &caps.registers);
    let grids = registers.iter().filter(|register| !register.controls.is_empty()).map(|register| {
        let caption = format!("{} ({:#x}) = {:#018x}", register.name, register.address, register.raw);
        let columns = [
            ("Bit", Kind::Number),
            ("Control", Kind::Text),
            ("Can set", Kind::Text),
            ("Can clear", Kind::Text),
        ];
        let mut grid = Grid::new(caption, &columns);
        for control in &register.controls {
            let [set, clear] = [control.can_be_1, control.can_be_0].map(yes);
            grid.row([control.bit.to_string(), control.name.clone(), set, clear]);
        }
        grid
    });
    Section {
        label: "A1",
        title: "What the CPU's virtualization can do",
        question: "Which controls do the VMX capability MSRs tell of, and can each be set, can each be cleared?",
        commands: vec!["exitscope caps".into()],
        answer: vec![capabilities.map_or(UNMEASURED.into(), count_controls)],
        evidence: match capabilities {
            Some(caps) => vec![Block::Table(registers_table(caps)), Block::Tables(grids.collect())],
            None => vec![],
        },
    }
}

fn yes(can: bool) -> String {
    if can { "yes" } else { "no" }.into()
}

fn count_controls(caps: &Capabilities) -> String {
    let controls = || caps.registers.iter().flat_map(|register| &register.controls);
    let count = |set, clear| {
        controls().filter(|control| (control.can_be_1, control.can_be_0) == (set, clear)).count()
    };
    format!(
        "{} has {} capability MSRs, which tell of {} controls: {} can be set and cleared, {} are always 1, {} are always 0.",
        caps.cpu,
        caps.registers.len(),
        controls().count(),
        count(true, true),
        count(true, false),
        count(false, true),
    )
}

fn registers_table(caps: &Capabilities) -> Grid {
    let columns =
        [("Register", Kind::Text), ("MSR", Kind::Hex), ("Value", Kind::Hex), ("Controls", Kind::Number)];
    let mut grid = Grid::new(format!("The capability MSRs of {}", caps.cpu), &columns);
    for register in &caps.registers {
        grid.row([
            register.name.clone(),
            format!("{:#x}", register.address),
            format!("{:#018x}", register.raw),
            register.controls.len().to_string(),
        ]);
    }
    grid
}

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

fn totals(course: &Course, of: &Totals) -> Section {
    let parts: Vec<Part> = course
        .readings
        .iter()
        .filter(|reading| reading.layout == of.layout)
        .map(|reading| Part::of(reading, |question| of.layout != "classic" || !asks_reason(question)))
        .filter(|part| !part.rows.is_empty())
        .collect();
    Section {
        label: of.label,
        title: of.title,
        question: of.question,
        commands: vec![
            format!("exitscope lab run --layout {}", of.layout),
            format!("cpuid -1 -r -l {}", of.leaf),
            "exitscope guest --course".into(),
        ],
        answer: answers(parts.iter().map(|part| format!("{} {}", part.read_in_all(), part.agreement()))),
        evidence: parts.iter().map(Part::table).collect(),
    }
}

fn per_reason(course: &Course) -> Section {
    let parts: Vec<Part> = course
        .readings
        .iter()
        .filter(|reading| reading.layout == "classic")
        .map(|reading| Part::of(reading, asks_reason))
        .filter(|part| !part.rows.is_empty())
        .collect();
    Section {
        label: "A3",
        title: "Exits and cycles of one reason",
        question: "How often did this guest exit for the reason in ECX (leaf 0x4FFFFFFD), how many cycles did it take (leaf 0x4FFFFFFC), and what is the answer for a reason that is not defined, or never happens?",
        commands: vec!["cpuid -1 -r -l 0x4ffffffd -s 10".into(), "exitscope guest 10".into()],
        answer: answers(parts.iter().map(|part| {
            [part.most_frequent(), part.never_seen(), part.undefined(), part.agreement()]
                .into_iter()
                .filter(|sentence| !sentence.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        })),
        evidence: parts.iter().map(Part::table).collect(),
    }
}

fn answers(paragraphs: impl Iterator<Item = String>) -> Vec<String> {
    let paragraphs: Vec<String> = paragraphs.collect();
    if paragraphs.is_empty() { vec![UNMEASURED.into()] } else { paragraphs }
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
        match question {
            Question::CourseReasonExits(code) => format!("exits of {}", self.reason(code)),
            Question::CourseReasonCycles(code) => format!("cycles of {}", self.reason(code)),
            Question::CourseExits => "exits, all reasons".into(),
            Question::CourseCycles => "cycles, all reasons".into(),
            _ => "exits and cycles, all reasons".into(),
        }
    }

    fn read_in_all(&self) -> String {
        let told = self.rows.iter().filter(|(question, _)| !asks_reason(*question));
        let told: Vec<String> = told.map(|&(question, row)| row.decode(question).text()).collect();
        format!("On {}, Debian's `cpuid` read {}.", self.machine().vendor_name(), list(&told))
    }

    /// How what `exitscope guest` read compares with what `cpuid` had read.
    fn agreement(&self) -> String {
        let verdicts: Vec<Option<bool>> = self
            .rows
            .iter()
            .map(|&(question, row)| {
                let first = row.decode(question);
                let then = row.exitscope.as_in(first);
                if first.is_undefined() {
                    return row.exitscope.is_undefined().then_some(false);
                }
                (then.exits >= first.exits && then.cycles >= first.cycles).then_some(then != first)
            })
            .collect();
        let count = |wanted| verdicts.iter().filter(|&&verdict| verdict == wanted).count();
        let (same, more, off) = (count(Some(false)), count(Some(true)), count(None));
        let mut text =
            format!("`exitscope guest`, asked next, read the same in {same} of {} rows", verdicts.len());
        if more > 0 {
            text += &format!(", more in {more}, as exits had gone on");
        }
        if off > 0 {
            text += &format!(", and something else in {off}");
        }
        text + "."
    }

    fn most_frequent(&self) -> String {
        let counted = self
            .rows
            .iter()
            .filter_map(|&(question, row)| Some((row.decode(question).exits?, reason_of(question)?)));
        match counted.max() {
            Some((exits, code)) if exits > 0 => format!(
                "On {}, the most frequent of the reasons asked was {} with {} exits.",
                self.machine().vendor_name(),
                self.reason(code),
                grouped(exits)
            ),
            _ => format!("On {}, none of the reasons asked had happened.", self.machine().vendor_name()),
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
        const ANSWER: [u32; 4] = [0, 0, 0, u32::MAX];
        let manual = manual(isa_of(self.machine()));
        let right = self.reasons(|code, row| !self.is_defined(code) && row.registers == ANSWER);
        let wrong = self.reasons(|code, row| !self.is_defined(code) && row.registers != ANSWER);
        let mut text = String::new();
        if !right.is_empty() {
            text =
                format!("Not defined by the {manual}: {} answered zeros and EDX = 0xFFFFFFFF.", list(&right));
        }
        if !wrong.is_empty() {
            text += &format!(" Not defined by the {manual}, and yet {} answered otherwise.", list(&wrong));
        }
        text
    }

    fn table(&self) -> Block {
        let columns = [
            ("Leaf", Kind::Hex),
            ("Sub-leaf", Kind::Number),
            ("EAX", Kind::Hex),
            ("EBX", Kind::Hex),
            ("ECX", Kind::Hex),
            ("EDX", Kind::Hex),
            ("Meaning", Kind::Text),
            ("cpuid: so", Kind::Number),
            ("exitscope guest", Kind::Number),
        ];
        let caption = format!("{}, layout {}", self.machine().describe(), self.reading.layout);
        let mut grid = Grid::new(caption, &columns);
        for &(question, row) in &self.rows {
            let told = row.decode(question);
            let said = if told.is_undefined() { row.exitscope } else { row.exitscope.as_in(told) };
            let registers = row.registers.map(|register| format!("{register:#010x}"));
            let addresses = [format!("{:#010x}", row.leaf), row.subleaf.to_string()];
            let words = [self.meaning(question), told.text(), said.text()];
            grid.row(addresses.into_iter().chain(registers).chain(words));
        }
        Block::Table(grid)
    }
}

fn paging(comparisons: &[Comparison]) -> Section {
    Section {
        label: "A4",
        title: "Nested against shadow paging",
        question: "How do the exits of the same boot change when KVM pages its guest with shadow page tables instead of nested ones?",
        commands: vec!["exitscope lab compare".into()],
        answer: answers(comparisons.iter().map(what_changed)),
        evidence: comparisons.iter().flat_map(|pair| [paired_bars(pair), paired_table(pair)]).collect(),
    }
}

fn what_changed(pair: &Comparison) -> String {
    let [a, b] = [&pair.a, &pair.b];
    let mut text = format!(
        "On {}, the boot took {} exits with {} and {} with {} paging",
        b.machine.vendor_name(),
        grouped(a.total.exits),
        a.label,
        grouped(b.total.exits),
        b.label
    );
    if a.total.exits > 0 {
        text += &format!(": {:.1} times as many", b.total.exits as f64 / a.total.exits as f64);
    }
    text += ".";
    for (change, said) in [(Change::Appeared, &b.label), (Change::Vanished, &a.label)] {
        let rows = pair.reasons.iter().filter(|row| row.change == change);
        let names: Vec<String> =
            rows.map(|row| format!("{} ({})", row.name, grouped(row.a.exits.max(row.b.exits)))).collect();
        if !names.is_empty() {
            text += &format!(" Only with {said}: {}.", list(&names));
        }
    }
    text
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
        grid.row(compare::cells(&row.name, Some(row.code), row.a, row.b));
    }
    grid.row(compare::cells("total", None, pair.a.total, pair.b.total));
    Block::Table(grid)
}

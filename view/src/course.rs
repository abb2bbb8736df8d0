//! The answers to a university course's assignments, measured: what `exitscope lab course` writes, as in the JSON
//! schema `exitscope-course/1`.
//!
//! A [`Course`] holds what was measured. One module for each kind of question makes sections of it: the question,
//! the command that answers it, the answer in words, the evidence. [`html()`] and [`markdown()`] write them down.

mod boots;
mod capabilities;
mod document;
mod html;
mod leaves;
mod markdown;
mod paging;
mod rate;
mod svg;
#[cfg(test)]
mod tests;

use document::Document;
use exitscope_abi::leaf::{Layout, Question, Registers};
use exitscope_abi::reason::Isa;
use serde::{Deserialize, Serialize};

use crate::text::grouped;
use exitscope_model::compare::Comparison;
use exitscope_model::{Machine, Report};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-course/1";

/// Everything that was measured. What is empty is shown as not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// [`SCHEMA`].
    pub schema: String,
    /// A1: what the CPU's virtualization can do.
    pub capabilities: Option<Capabilities>,
    /// A2, A2', A2'', A3: what a guest read, per machine and layout.
    pub readings: Vec<LayoutReading>,
    /// A4: nested (A) against shadow paging (B), per machine.
    pub comparisons: Vec<Comparison>,
    /// Q3, Q4: boots of a guest.
    pub boots: Vec<Boot>,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            schema: SCHEMA.into(),
            capabilities: None,
            readings: Vec::new(),
            comparisons: Vec::new(),
            boots: Vec::new(),
        }
    }
}

/// The capability registers of a CPU with VMX.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Which CPU: `Intel Skylake-X, emulated by Bochs`.
    pub cpu: String,
    /// Its capability MSRs, by address.
    pub registers: Vec<CapsRegister>,
}

/// A capability MSR (SDM vol. 3 appendix A).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapsRegister {
    /// The MSR's address.
    pub address: u32,
    /// The manual's name of it: `IA32_VMX_PINBASED_CTLS`.
    pub name: String,
    /// Its value.
    pub raw: u64,
    /// The controls that it tells of, by bit.
    pub controls: Vec<Control>,
}

/// A VM-execution, VM-exit or VM-entry control.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Its bit in the control field.
    pub bit: u32,
    /// The manual's name of it.
    pub name: String,
    /// Whether it can be cleared.
    pub can_be_0: bool,
    /// Whether it can be set.
    pub can_be_1: bool,
}

/// What a guest read from the course's leaves in one layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayoutReading {
    /// Where it ran.
    pub machine: Machine,
    /// `classic`, `reordered` or `combined`.
    pub layout: String,
    /// One for each leaf and sub-leaf.
    pub rows: Vec<Reading>,
}

/// A leaf as two programs in the guest read it, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// CPUID leaf (EAX).
    pub leaf: u32,
    /// Sub-leaf (ECX): the exit reason, or 0.
    pub subleaf: u32,
    /// EAX, EBX, ECX, EDX as Debian's `cpuid` printed them.
    pub registers: [u32; 4],
    /// What `exitscope guest` said, asked after `cpuid`.
    pub exitscope: Counts,
}

/// Figures that a guest was told; neither for a reason that the manual does not define. Those that the leaf does not
/// hold may be given all the same: they are not shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Exits.
    pub exits: Option<u64>,
    /// Cycles from exit to next entry.
    pub cycles: Option<u64>,
}

/// A boot of a guest, from its first instruction to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// What booted: `a full Debian system`.
    pub guest: String,
    /// The command that repeats it.
    pub command: String,
    /// What it counted, with a timeline and, if known, phases.
    pub report: Report,
}

impl LayoutReading {
    /// What this row's leaf asks; `None` for what is no leaf of the layout.
    fn question(&self, row: &Reading) -> Option<Question> {
        Question::parse(Layout::from_name(&self.layout)?, row.leaf, row.subleaf)
    }
}

impl Reading {
    /// What the registers say, read as the answer to `question`.
    fn decode(&self, question: Question) -> Counts {
        let [eax, ebx, ecx, edx] = self.registers;
        let Some(figures) = question.decode(Registers { eax, ebx, ecx, edx }) else {
            return Counts::default();
        };
        use Question::{CourseBoth, CourseCycles, CourseExits, CourseReasonCycles, CourseReasonExits};
        let exits = matches!(question, CourseExits | CourseReasonExits(_) | CourseBoth);
        let cycles = matches!(question, CourseCycles | CourseReasonCycles(_) | CourseBoth);
        Counts { exits: exits.then_some(figures.exits), cycles: cycles.then_some(figures.cycles) }
    }
}

impl Counts {
    /// Whether it says that the reason is not defined.
    fn is_undefined(self) -> bool {
        self.exits.is_none() && self.cycles.is_none()
    }

    /// Those of the figures that `other` has too.
    fn only_those_of(self, other: Self) -> Self {
        Self {
            exits: self.exits.filter(|_| other.exits.is_some()),
            cycles: self.cycles.filter(|_| other.cycles.is_some()),
        }
    }

    /// The figures without their units.
    fn figures(self) -> String {
        match (self.exits, self.cycles) {
            (None, None) => "not defined".into(),
            (Some(number), None) | (None, Some(number)) => grouped(number),
            (Some(exits), Some(cycles)) => format!("{} / {}", grouped(exits), grouped(cycles)),
        }
    }

    /// The figures with their units.
    fn text(self) -> String {
        match (self.exits, self.cycles) {
            (None, None) => "not defined".into(),
            (Some(exits), None) => format!("{} exits", grouped(exits)),
            (None, Some(cycles)) => format!("{} cycles", grouped(cycles)),
            (Some(exits), Some(cycles)) => format!("{} exits and {} cycles", grouped(exits), grouped(cycles)),
        }
    }
}

impl Course {
    /// The document: the same for every way to write it down.
    fn document(&self) -> Document {
        let mut sections = vec![capabilities::section(self.capabilities.as_ref())];
        sections.extend(leaves::in_all(&self.readings));
        sections.push(leaves::per_reason(&self.readings));
        sections.push(paging::section(&self.comparisons));
        sections.extend(boots::sections(&self.boots));
        Document { sections, machines: self.machines() }
    }

    /// The distinct machines that it ran on, in words.
    fn machines(&self) -> Vec<String> {
        let readings = self.readings.iter().map(|reading| &reading.machine);
        let compared = self.comparisons.iter().flat_map(|pair| [&pair.a.machine, &pair.b.machine]);
        let booted = self.boots.iter().map(|boot| &boot.report.machine);
        let mut machines: Vec<String> = Vec::new();
        for text in readings.chain(compared).chain(booted).map(Machine::describe) {
            if !machines.contains(&text) {
                machines.push(text);
            }
        }
        machines
    }
}

/// One self-contained page.
pub fn html(course: &Course) -> String {
    html::page(&course.document())
}

/// The same as Markdown.
pub fn markdown(course: &Course) -> String {
    markdown::page(&course.document())
}

/// The instruction set of a vendor's CPUs.
fn isa_of(machine: &Machine) -> Isa {
    if machine.vendor == "intel" { Isa::Vmx } else { Isa::Svm }
}

/// The manual that defines an instruction set's exits.
fn manual(isa: Isa) -> &'static str {
    match isa {
        Isa::Vmx => "SDM",
        Isa::Svm => "APM",
    }
}

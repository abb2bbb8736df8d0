//! Shows capabilities to a person: what matters first in words, then every bit; or as the course's module prints them.

mod check;
mod diff;
mod setting;

use std::fmt::{self, Write};

use exitscope_abi::reason::Isa;
use exitscope_caps::decode::{Decoded, RESERVED, Reading, Setting, Value, decode_cpu};
use exitscope_caps::summary::{Summary, summary};
use exitscope_caps::tables::{Controls, Kind, find};
use exitscope_caps::usage::Usage;
use exitscope_caps::{Address, Cpu, kinds, ranges};

pub use check::render as check;
pub use diff::render as diff;
pub use setting::render as setting;

use crate::text::Table;

/// Which registers are shown where two say the same of the same controls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forms {
    /// The TRUE one where it was read.
    #[default]
    Taken,
    /// Both.
    Both,
}

impl Forms {
    fn shows(self, reading: &Reading) -> bool {
        self == Self::Both || reading.superseded_by.is_none()
    }
}

/// What KVM uses, in words.
pub fn usage(usage: &Usage) -> String {
    let list = |verb: &str, features: &[&str]| match features {
        [] => String::new(),
        features => format!("  {verb}: {}\n", features.join("; ")),
    };
    format!("{}\n{}{}\n", usage.module, list("uses", &usage.uses), list("does not use", &usage.leaves))
}

/// Everything about these CPUs. CPUs that read alike are told together; of a CPU unlike the first, the registers
/// that differ.
pub fn full(cpus: &[Cpu], forms: Forms) -> String {
    let mut text = String::new();
    write_full(&mut text, cpus, forms).unwrap_or_default();
    text
}

fn write_full(out: &mut String, cpus: &[Cpu], forms: Forms) -> fmt::Result {
    let groups = kinds(cpus);
    for (index, (cpu, ids)) in groups.iter().enumerate() {
        writeln!(out, "{}{}", if index > 0 { "\n" } else { "" }, name(ids))?;
        write_summary(out, cpu)?;
    }
    let Some(((first, ids), others)) = groups.split_first() else { return Ok(()) };
    if !others.is_empty() {
        writeln!(out, "\n{}:", name(ids))?;
    }
    write_tables(out, &decode_cpu(first), forms, |_| true)?;
    for (cpu, ids) in others {
        writeln!(out, "\n{}, where unlike {}:", name(ids), name(&groups[0].1))?;
        write_tables(out, &decode_cpu(cpu), forms, |address| first.value(address) != cpu.value(address))?;
    }
    Ok(())
}

/// `CPU 3` or `CPUs 0-7, 9`.
pub(super) fn name(ids: &[u32]) -> String {
    format!("CPU{} {}", if ids.len() > 1 { "s" } else { "" }, ranges(ids.iter().copied()))
}

fn write_summary(out: &mut String, cpu: &Cpu) -> fmt::Result {
    if Isa::ALL.iter().all(|isa| cpu.offers(*isa) != Some(true)) {
        for (isa, why) in Isa::ALL.iter().filter_map(|isa| Some((isa, cpu.lacks(*isa)?))) {
            writeln!(out, "  no {}: {why}", isa.name().to_uppercase())?;
        }
    }
    for isa in Isa::ALL {
        let Some(Summary { has, lacks, unknown }) = summary(cpu, isa) else { continue };
        writeln!(out, "  {}{}", isa.name().to_uppercase(), switch(cpu, isa))?;
        for (verb, list) in [("has", has), ("lacks", lacks), ("unknown", unknown)] {
            if !list.is_empty() {
                writeln!(out, "    {verb}: {}", list.join("; "))?;
            }
        }
    }
    Ok(())
}

/// Whether firmware lets it be used.
fn switch(cpu: &Cpu, isa: Isa) -> &'static str {
    match (isa, cpu.read(Address::Msr(0x3A)), cpu.read(Address::Msr(0xC001_0114))) {
        (Isa::Vmx, Some(control), _) if control & 1 == 0 => ", not locked by firmware",
        (Isa::Vmx, Some(control), _) if control & 0b110 == 0b010 => ", turned on inside SMX only",
        (Isa::Vmx, Some(control), _) if control & 0b100 == 0 => ", turned off by firmware",
        (Isa::Vmx, Some(_), _) => ", turned on by firmware",
        (Isa::Svm, _, Some(control)) if control & 0b1_0000 != 0 => ", turned off by firmware",
        (Isa::Svm, _, Some(_)) => ", may be turned on",
        _ => "",
    }
}

fn write_tables(
    out: &mut String,
    cpu: &Decoded,
    forms: Forms,
    wanted: impl Fn(Address) -> bool,
) -> fmt::Result {
    let shown = cpu.registers.iter().filter(|reading| forms.shows(reading) && wanted(reading.address));
    for reading in shown {
        write_reading(out, reading)?;
    }
    Ok(())
}

fn write_reading(out: &mut String, reading: &Reading) -> fmt::Result {
    let raw = reading.raw.map_or("unknown: it could not be read".into(), |raw| raw.to_string());
    write!(out, "\n{} ({}) {raw}", title(reading), reading.address)?;
    writeln!(out, "{}{}", if reading.section.is_empty() { "" } else { "   " }, reading.section)?;
    if reading.absent {
        writeln!(out, "  means nothing: the CPU has no such register, by what the others say")?;
    }
    if let Some(fault) = &reading.fault {
        writeln!(out, "  cannot be so: {fault}")?;
    }
    let kind = find(reading.address).map_or(Kind::Plain, |register| register.kind);
    if let Some(first) = reading.fields.first() {
        let table =
            if first.setting.is_some() { settings(&reading.fields) } else { values(&reading.fields, kind) };
        write!(out, "{}", indented(&table))?;
    }
    if !reading.unnamed.is_empty() {
        let bits: Vec<String> = reading.unnamed.iter().map(ToString::to_string).collect();
        writeln!(out, "  set and without a name: {}", bits.join(", "))?;
    }
    Ok(())
}

fn title(reading: &Reading) -> &'static str {
    if reading.name.is_empty() { "A register without a name" } else { reading.name }
}

pub(super) fn indented(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("  {line}\n")).collect()
}

/// The names that others have for some bits, QEMU's first.
pub(super) fn also(qemu: &str, linux: &str) -> String {
    let linux = Some(linux).filter(|linux| !linux.is_empty() && *linux != qemu);
    qemu.split_whitespace().chain(linux).collect::<Vec<_>>().join(", ")
}

/// A table whose last column is the names of others, if any of its rows has one.
pub(super) fn table(columns: &[&str], left: &[usize], rows: Vec<(Vec<String>, String)>) -> Table {
    let named = rows.iter().any(|(_, also)| !also.is_empty());
    let last = named.then_some("QEMU, LINUX");
    let left = left.iter().copied().chain(named.then_some(columns.len()));
    let columns: Vec<&str> = columns.iter().copied().chain(last).collect();
    let mut table = left.fold(Table::new(&columns), Table::left);
    for (cells, also) in rows {
        table.row(cells.into_iter().chain(named.then_some(also)));
    }
    table
}

fn settings(fields: &[Value]) -> Table {
    let rows = fields.iter().filter_map(|field| {
        let Value { bits, name, setting, meaning, qemu, linux, .. } = *field;
        let Setting { can_be_0, can_be_1, default } = setting?;
        let cells = [name, &bits.to_string(), yes(can_be_0), yes(can_be_1), &default.to_string(), meaning];
        Some((cells.map(str::to_owned).to_vec(), also(qemu, linux)))
    });
    table(&["CONTROL", "BIT", "CAN BE 0", "CAN BE 1", "DEFAULT", "WHEN 1"], &[5], rows.collect())
}

fn values(fields: &[Value], kind: Kind) -> Table {
    let rows = fields.iter().map(|field| {
        let Value { bits, name, value, meaning, qemu, linux, .. } = *field;
        let cells = [name, &bits.to_string(), &kind.plainly(value), meaning];
        (cells.map(str::to_owned).to_vec(), also(qemu, linux))
    });
    table(&["FIELD", "BITS", "VALUE", "MEANING"], &[3], rows.collect())
}

/// The registers of one CPU as a list that is a dump; `title` says what of.
pub fn list(cpu: &Cpu, title: &str) -> String {
    let mut text = format!("# {}\n", title.replace(['\n', '\r'], " "));
    for (address, value) in &cpu.registers {
        let value = value.map_or("?".into(), |value| {
            format!("{value:#0width$x}", width = address.width() as usize / 4 + 2)
        });
        let name = find(*address).map_or("", |register| register.name);
        let _ = writeln!(text, "{address} {value} # {name}");
    }
    text
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Each control as the course's module prints it, once for CPUs that read alike.
pub fn course(cpus: &[Cpu], forms: Forms) -> String {
    let mut text = String::new();
    let groups = kinds(cpus);
    for (cpu, ids) in &groups {
        if groups.len() > 1 {
            text.push_str(&format!("{}:\n", name(ids)));
        }
        write_course(&mut text, &decode_cpu(cpu), forms).unwrap_or_default();
    }
    text
}

const COURSE: [(&str, Controls); 5] = [
    ("Pinbased Controls", Controls::Pin),
    ("Procbased Controls", Controls::Proc),
    ("Secondary Procbased Controls", Controls::Proc2),
    ("Exit Controls", Controls::Exit),
    ("Entry Controls", Controls::Entry),
];

fn write_course(out: &mut String, cpu: &Decoded, forms: Forms) -> fmt::Result {
    for (title, controls) in COURSE {
        let described =
            |reading: &&Reading| controls.addresses().contains(&reading.address) && !reading.absent;
        for reading in cpu.registers.iter().filter(described).filter(|reading| forms.shows(reading)) {
            write_controls(out, title, reading)?;
        }
    }
    Ok(())
}

fn write_controls(out: &mut String, title: &str, reading: &Reading) -> fmt::Result {
    let Some(raw) = reading.raw else {
        return writeln!(out, "{title} MSR: unknown, it could not be read");
    };
    writeln!(out, "{title} MSR: {:#x}", raw.value)?;
    let answer = |yes| if yes { "Yes" } else { "No" };
    for Value { name, setting, .. } in reading.fields.iter().filter(|field| field.name != RESERVED) {
        let Some(Setting { can_be_0, can_be_1, .. }) = *setting else { continue };
        writeln!(out, "  {name}: Can set={}, Can clear={}", answer(can_be_1), answer(can_be_0))?;
    }
    let allowed =
        find(reading.address).and_then(|register| register.kind.allowed(raw.value)).unwrap_or_default();
    for bit in &reading.unnamed {
        let (set, clear) = (allowed.one >> bit & 1 == 1, allowed.zero >> bit & 1 == 1);
        writeln!(out, "  Bit {bit} (no name): Can set={}, Can clear={}", answer(set), answer(clear))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

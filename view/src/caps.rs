//! Shows capabilities to a person: what matters first in words, then every bit; or as the course's module prints them.

mod check;
mod diff;

use std::fmt::{self, Write};

use exitscope_abi::reason::Isa;
use exitscope_caps::decode::{Decoded, RESERVED, Reading, Setting, Value, decode_cpu};
use exitscope_caps::summary::{Summary, summary};
use exitscope_caps::tables::{Controls, Kind, find};
use exitscope_caps::usage::Usage;
use exitscope_caps::{Address, Cpu, kinds};

pub use check::render as check;
pub use diff::render as diff;

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
    let Some(((first, _), others)) = groups.split_first() else { return Ok(()) };
    write_tables(out, &decode_cpu(first), forms, |_| true)?;
    for (cpu, ids) in others {
        writeln!(out, "\n{}, where unlike {}:", name(ids), name(&groups[0].1))?;
        write_tables(out, &decode_cpu(cpu), forms, |address| first.value(address) != cpu.value(address))?;
    }
    Ok(())
}

/// `CPU 3` or `CPUs 0-7, 9`.
pub(super) fn name(ids: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    let show = |&(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let list: Vec<String> = ranges.iter().map(show).collect();
    format!("CPU{} {}", if ids.len() > 1 { "s" } else { "" }, list.join(", "))
}

fn write_summary(out: &mut String, cpu: &Cpu) -> fmt::Result {
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
    match (isa, cpu.value(Address::Msr(0x3A)), cpu.value(Address::Msr(0xC001_0114))) {
        (Isa::Vmx, Some(control), _) if control & 1 == 0 => ", not locked by firmware",
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

fn settings(fields: &[Value]) -> Table {
    let mut table = Table::new(&["CONTROL", "BIT", "CAN BE 0", "CAN BE 1", "DEFAULT", "WHEN 1"]).left(5);
    for Value { bits, name, setting, meaning, .. } in fields {
        let Some(Setting { can_be_0, can_be_1, default }) = *setting else { continue };
        let cells = [bits.to_string(), yes(can_be_0).into(), yes(can_be_1).into(), default.to_string()];
        table.row([name.to_string()].into_iter().chain(cells).chain([meaning.to_string()]));
    }
    table
}

fn values(fields: &[Value], kind: Kind) -> Table {
    let mut table = Table::new(&["FIELD", "BITS", "VALUE", "MEANING"]).left(3);
    for Value { bits, name, value, meaning, .. } in fields {
        table.row([name.to_string(), bits.to_string(), kind.plainly(*value), meaning.to_string()]);
    }
    table
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
        let described = |reading: &&Reading| controls.addresses().contains(&reading.address);
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

//! The per-CPU text dumps that people publish: blocks of registers, one a line, among much else.

use super::words::{Word, cpu_number, end, hex, lines, place, short, value};
use super::{Place, Reader};
use crate::caps::{Address, Gpr};

/// Whether a line holds a register.
pub fn is_register(line: &str) -> bool {
    let number = |rest: &str| rest.split_once(':').is_some_and(|(number, _)| hex(number.trim(), 8).is_ok());
    ["MSR ", "CPUID "].iter().any(|kind| line.strip_prefix(kind).is_some_and(number))
}

/// Reads the lines that hold registers, and skips the others.
pub fn parse(text: &str, reader: &mut Reader) {
    let mut cpu = 0;
    for (number, line) in lines(text) {
        let trimmed = line.trim();
        if trimmed.starts_with("--") && trimmed.contains('[') {
            cpu = cpu_number(trimmed).unwrap_or(0);
        } else if let Some(rest) = trimmed.strip_prefix("MSR ") {
            msr(reader, cpu, Line { number, line, rest });
        } else if let Some(rest) = trimmed.strip_prefix("CPUID ") {
            cpuid(reader, cpu, Line { number, line, rest });
        }
    }
}

/// A line and what comes after its first word.
struct Line<'a> {
    number: usize,
    line: &'a str,
    rest: &'a str,
}

impl<'a> Line<'a> {
    fn place(&self, part: &str) -> Place {
        place(self.number, self.line, part)
    }

    /// What stands before the colon, as a number, and what stands after it.
    fn split(&self, reader: &mut Reader) -> Option<(u32, Word<'a>)> {
        let Some((before, after)) = self.rest.split_once(':') else {
            reader.complain(end(self.number, self.line), "the line ends before its value");
            return None;
        };
        match hex(before.trim(), 8) {
            Ok(address) => {
                let text = after.trim_start();
                Some((u32::try_from(address).unwrap_or(u32::MAX), Word { text, place: self.place(text) }))
            }
            Err(what) => {
                reader.complain(self.place(before), what);
                None
            }
        }
    }
}

fn msr(reader: &mut Reader, cpu: u32, line: Line<'_>) {
    let Some((address, Word { text, place })) = line.split(reader) else { return };
    let address = Address::Msr(address);
    if !super::is_capability(address) {
        return;
    }
    let word = match text.strip_prefix('<').and_then(|inner| inner.split_once('>')) {
        Some((inner, _)) => inner.trim(),
        None => text.split_whitespace().next().unwrap_or_default(),
    };
    let grouped = |word: &str| match word.contains('-') || word.len() == 16 || value(word) == Ok(None) {
        true => value(word),
        false => Err(format!("`{}` is not of the form 0000-0000-0000-0000", short(word))),
    };
    match grouped(word) {
        Ok(value) => reader.keep(place, cpu, address, value),
        Err(what) => reader.complain(place, what),
    }
}

/// Only sub-leaf 0 counts: it comes first, and later ones carry a mark in brackets.
fn cpuid(reader: &mut Reader, cpu: u32, line: Line<'_>) {
    let Some((leaf, Word { text, place })) = line.split(reader) else { return };
    if !super::is_capability(Address::Cpuid(leaf, Gpr::Eax)) {
        return;
    }
    let results = text.split_whitespace().next().unwrap_or_default();
    let values: Result<Vec<u64>, String> = results.split('-').map(|word| hex(word, 8)).collect();
    match values {
        Ok(values) if values.len() == Gpr::ALL.len() => {
            for (gpr, value) in Gpr::ALL.into_iter().zip(values) {
                reader.keep(place, cpu, Address::Cpuid(leaf, gpr), Some(value));
            }
        }
        Ok(values) => reader.complain(place, format_args!("{} of CPUID's 4 results", values.len())),
        Err(what) => reader.complain(place, what),
    }
}

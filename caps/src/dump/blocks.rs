//! The per-CPU text dumps that people publish: blocks of registers, one a line, among much else.

use super::words::{Word, cpu_number, end, hex, lines, place, short, value};
use super::{Place, Reader};
use crate::{Address, Gpr};

/// Whether a line holds a register: `MSR` or `CPUID`, then what begins as a number does.
pub fn is_register(line: &str) -> bool {
    ["MSR ", "CPUID "].iter().any(|kind| line.strip_prefix(kind).is_some_and(begins_as_number))
}

/// Tells `C0010114` from `CPU Name`.
fn begins_as_number(text: &str) -> bool {
    let mut first = text.bytes().take(2);
    first.clone().all(|byte| byte.is_ascii_hexdigit()) && first.any(|byte| byte.is_ascii_digit())
}

/// Whether a line begins a block: `------[ Logical CPU #1 ]------`, `MSR Registers (CPU #2)`.
fn is_heading(line: &str) -> bool {
    let ruled = line.starts_with("--") && line.contains('[');
    ruled || ["MSR Registers", "CPUID Registers"].iter().any(|heading| line.starts_with(heading))
}

/// Reads the lines that hold registers, and skips the others.
pub fn parse(text: &str, reader: &mut Reader) {
    let mut cpu = 0;
    for (number, line) in lines(text) {
        let trimmed = line.trim();
        if is_heading(trimmed) {
            cpu = cpu_number(trimmed).unwrap_or(0);
        } else if is_register(trimmed) {
            let (kind, rest) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
            let line = Line { number, line, rest };
            if kind == "MSR" { msr(reader, cpu, line) } else { cpuid(reader, cpu, line) }
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

    /// The number, and what stands after it and perhaps a colon.
    fn split(&self, reader: &mut Reader) -> Option<(u32, Word<'a>)> {
        let separators = |c: char| c == ':' || c.is_whitespace();
        let (before, after) = self.rest.split_once(separators).unwrap_or((self.rest, ""));
        let text = after.trim_start_matches(separators);
        let parsed = hex(before, 8).map_err(|what| (self.place(before), what));
        let parsed = parsed.and_then(|number| match text.is_empty() {
            true => Err((end(self.number, self.line), "the line ends before its value".into())),
            false => Ok((u32::try_from(number).unwrap_or(u32::MAX), Word { text, place: self.place(text) })),
        });
        parsed.map_err(|(place, what)| reader.complain(place, what)).ok()
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

//! Reads capability registers from dumps: our own JSON, or any text that has them.
//!
//! A text is scanned line by line for a register, by its number or by one of its names, and a value; docs/caps.md shows
//! the forms. Nothing here can fail as a whole: what is wrong is reported with its line and column, the rest is read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;

use super::fault::fault;
use super::{Address, Cpu, Gpr, tables};

mod cpus;
mod find;
mod json;
mod leaf;
mod rdmsr;
mod scan;
mod titles;
mod token;
mod value;

/// The most complaints about one dump; more say nothing new.
const MOST_ERRORS: usize = 20;

/// What a dump holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Its CPUs, in their order of appearance.
    pub cpus: Vec<Cpu>,
    /// What could not be read, the first few.
    pub errors: Vec<Error>,
}

/// A place in a dump that could not be read. Line and column count from 1, the column in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct Error {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

/// Reads a dump of any form.
pub fn parse(bytes: &[u8]) -> Dump {
    let text = decoded(bytes);
    let text = text.trim_start_matches('\u{feff}');
    let text = match text.contains('\r') {
        true => Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(text),
    };
    let mut reader = Reader::default();
    match json_in(&text) {
        Some(start) => json::parse(&text[start..], text[..start].matches('\n').count(), &mut reader),
        None => scan::parse(&text, &mut reader),
    }
    reader.finish()
}

/// UTF-8, or the UTF-16 that PowerShell writes.
fn decoded(bytes: &[u8]) -> Cow<'_, str> {
    let Some(rest) = bytes.strip_prefix(&[0xFF, 0xFE]) else { return String::from_utf8_lossy(bytes) };
    let units = rest.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Where our JSON begins: at the start, or after the command that printed it.
fn json_in(text: &str) -> Option<usize> {
    let start = text.len() - text.trim_start().len();
    if text[start..].starts_with('{') {
        return Some(start);
    }
    text.contains("\"exitscope-caps/").then(|| text.find("\n{").map(|at| at + 1)).flatten()
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Reader {
    dump: Dump,
    /// Where each CPU is, by its number: a dump may have many.
    places: HashMap<u32, usize>,
    /// The line of each register.
    lines: HashMap<(u32, Address), usize>,
}

/// A place in the text, as in [`Error`].
#[derive(Clone, Copy, Debug)]
struct Place {
    line: usize,
    column: usize,
}

impl Reader {
    /// Keeps a complaint.
    fn complain(&mut self, place: Place, what: impl Display) {
        if self.dump.errors.len() < MOST_ERRORS {
            let Place { line, column } = place;
            self.dump.errors.push(Error { line, column, what: what.to_string() });
        }
    }

    /// The CPU of this number, made when it is new.
    fn cpu(&mut self, id: u32) -> &mut Cpu {
        let cpus = &mut self.dump.cpus;
        let index = *self.places.entry(id).or_insert_with(|| {
            cpus.push(Cpu { id, registers: Vec::new() });
            cpus.len() - 1
        });
        &mut cpus[index]
    }

    /// Keeps a register if it tells of capabilities. Of two readings that differ the first stays.
    fn keep(
        &mut self,
        line: usize,
        id: u32,
        address: Address,
        value: Option<u64>,
        place: impl FnOnce() -> Place,
    ) {
        if !is_capability(address) {
            return;
        }
        let is_full = self.dump.errors.len() >= MOST_ERRORS;
        let registers = &mut self.cpu(id).registers;
        match registers.iter_mut().find(|(known, _)| *known == address) {
            None => {
                registers.push((address, value));
                self.lines.insert((id, address), line);
            }
            Some((_, unread @ None)) if value.is_some() => {
                *unread = value;
                self.lines.insert((id, address), line);
            }
            // A place costs time in proportion to its line, so it is looked for only if it is told.
            Some((_, first)) if value.is_some() && *first != value && !is_full => {
                self.complain(
                    place(),
                    format_args!("{address} of CPU {id} was given before, with another value"),
                );
            }
            Some(_) => {}
        }
    }

    /// Gives others the registers of a CPU; those that have registers of their own keep them.
    fn share(&mut self, from: u32, others: &[u32]) {
        let Some(registers) = self.places.get(&from).map(|&index| self.dump.cpus[index].registers.clone())
        else {
            return;
        };
        for &id in others.iter().filter(|id| !self.places.contains_key(id)).collect::<Vec<_>>() {
            self.cpu(id).registers.clone_from(&registers);
        }
    }

    fn finish(mut self) -> Dump {
        if self.dump.cpus.is_empty() && self.dump.errors.is_empty() {
            self.complain(Place { line: 1, column: 1 }, FORMS);
        }
        let of_cpu =
            |cpu: &Cpu| cpu.registers.iter().filter_map(|&(address, _)| self.fault(cpu, address)).collect();
        let faults: Vec<(Place, String)> =
            self.dump.cpus.iter().flat_map(|cpu| -> Vec<_> { of_cpu(cpu) }).take(MOST_ERRORS).collect();
        faults.into_iter().for_each(|(place, what)| self.complain(place, what));
        self.dump
    }

    /// Why a value cannot be so, and where it was.
    fn fault(&self, cpu: &Cpu, address: Address) -> Option<(Place, String)> {
        let register = tables::find(address)?;
        let (value, why) = (cpu.read(address)?, fault(cpu, register)?);
        let line = *self.lines.get(&(cpu.id, address))?;
        let hint = if value == 0 { "was it not read?" } else { "is a digit missing?" };
        let what = format!("{address} of CPU {} cannot be {value:#x}: {why}; {hint}", cpu.id);
        (register.exists(cpu) != Some(false)).then_some((Place { line, column: 1 }, what))
    }
}

/// What is said where nothing was understood.
const FORMS: &str = "no capability register is understood in it; known are: a register by number or name and its value \
    (`0x480 0x00da040000000012`, `IA32_VMX_BASIC: 0x00da040000000012`, ``msr[480] = 00da0400`00000012``), the commands and \
    answers of `rdmsr`, what `cpuid -r` prints, and the JSON of `exitscope caps --json`";

/// Whether the tables know it, or it lies where VMX keeps such registers.
fn is_capability(address: Address) -> bool {
    match address {
        Address::Msr(0x3A | 0x480..=0x49F | 0xC001_0114) => true,
        Address::Msr(_) => false,
        Address::Cpuid(1, gpr) => gpr == Gpr::Ecx,
        Address::Cpuid(..) => tables::find(address).is_some(),
    }
}

#[cfg(test)]
mod tests;

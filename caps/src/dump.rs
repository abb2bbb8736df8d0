//! Reads capability registers from dumps, whatever form they have.
//!
//! | form | its lines |
//! | --- | --- |
//! | our own JSON | see [`decode`](super::decode) |
//! | blocks | `MSR 00000480: 03DA-0500-0000-0013`, `CPUID 8000000A: EAX-EBX-ECX-EDX`, `------[ Logical CPU #1 ]------` |
//! | rdmsr | the commands and the answers of `rdmsr` from msr-tools, as a terminal shows them |
//! | list | `0x480 0x3da050000000013`, one register a line, under `CPU 1:` if there are several; also what `cpuid -r` prints |
//!
//! Nothing here can fail as a whole: what is wrong is reported with its line and column, the rest is read.

use std::collections::HashMap;
use std::fmt::Display;

use super::{Address, Cpu, tables};

mod blocks;
mod json;
mod list;
mod rdmsr;
mod words;

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

/// The form of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Blocks,
    Rdmsr,
    List,
}

impl Form {
    fn of(text: &str) -> Self {
        if text.trim_start().starts_with('{') {
            return Self::Json;
        }
        let first = text.lines().find_map(|line| match line.trim_start() {
            line if line.starts_with("------[") || blocks::is_register(line) => Some(Self::Blocks),
            line if rdmsr::is_one(line) => Some(Self::Rdmsr),
            _ => None,
        });
        first.unwrap_or(Self::List)
    }
}

/// Reads a dump of any form.
pub fn parse(bytes: &[u8]) -> Dump {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
    let mut reader = Reader::default();
    match Form::of(&text) {
        Form::Json => json::parse(&text, &mut reader),
        Form::Blocks => blocks::parse(&text, &mut reader),
        Form::Rdmsr => rdmsr::parse(&text, &mut reader),
        Form::List => list::parse(&text, &mut reader),
    }
    reader.finish()
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Reader {
    dump: Dump,
    /// Where each CPU is, by its number: a dump may have many.
    places: HashMap<u32, usize>,
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
    fn keep(&mut self, place: Place, id: u32, address: Address, value: Option<u64>) {
        if !is_capability(address) {
            return;
        }
        let registers = &mut self.cpu(id).registers;
        match registers.iter_mut().find(|(known, _)| *known == address) {
            None => registers.push((address, value)),
            Some((_, unread @ None)) => *unread = value,
            Some((_, first)) if value.is_some() && *first != value => {
                self.complain(
                    place,
                    format_args!("{address} of CPU {id} was given before, with another value"),
                );
            }
            Some(_) => {}
        }
    }

    fn finish(mut self) -> Dump {
        if self.dump.cpus.is_empty() && self.dump.errors.is_empty() {
            self.complain(
                Place { line: 1, column: 1 },
                "no capability register in it (such as `0x480 VALUE`)",
            );
        }
        self.dump
    }
}

/// Whether the tables know it, or it lies where VMX keeps such registers.
fn is_capability(address: Address) -> bool {
    tables::find(address).is_some() || matches!(address, Address::Msr(0x494..=0x49F))
}

#[cfg(test)]
mod tests;

//! A plain list: an address and a value a line, or a leaf with its results as `cpuid -r` prints it.

use super::words::{Word, cpu_number, hex, lines, place, short, value, words};
use super::{Place, Reader};
use crate::{Address, Gpr};

/// Reads every line: what is no register, no CPU's number and no remark is an error.
pub fn parse(text: &str, reader: &mut Reader) {
    let mut cpu = 0;
    for (number, line) in lines(text) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) || trimmed.starts_with("//") {
            continue;
        }
        match heading(trimmed) {
            Some(id) => cpu = id,
            None if line.contains("eax=") => leaf(reader, cpu, number, line),
            None => pair(reader, cpu, number, line),
        }
    }
}

/// The CPU that the lines below tell of: `CPU 3:`, `[cpu3]`; `CPU:` if there is but one.
fn heading(line: &str) -> Option<u32> {
    let bare = line.trim_matches(['[', ']', ':', '-', '=', ' ']).to_ascii_lowercase();
    let starts = bare.starts_with("cpu") || bare.starts_with("logical cpu") || bare.starts_with("processor");
    if bare == "cpu" {
        return Some(0);
    }
    let number = cpu_number(&bare.replace("processor", "cpu"))?;
    (starts && bare.ends_with(|c: char| c.is_ascii_digit())).then_some(number)
}

/// `0x8000000a 0x00: eax=0x00000001 ebx=…`. Only sub-leaf 0 counts.
fn leaf(reader: &mut Reader, cpu: u32, number: usize, line: &str) {
    let mut parts = words(number, line, &[':', '=']);
    let numbers = [parts.next(), parts.next()].map(|part| part.and_then(|part| hex(part.text, 8).ok()));
    let [Some(leaf), Some(sub_leaf)] = numbers else {
        return reader.complain(
            place(number, line, line.trim_start()),
            "neither leaf nor sub-leaf before the results",
        );
    };
    let mut results = parts.skip_while(|part| Gpr::ALL.iter().all(|gpr| gpr.name() != part.text));
    while let (0, Some(name), Some(result)) = (sub_leaf, results.next(), results.next()) {
        let Some(gpr) = Gpr::ALL.into_iter().find(|gpr| gpr.name() == name.text) else { continue };
        let address = Address::Cpuid(u32::try_from(leaf).unwrap_or(u32::MAX), gpr);
        match hex(result.text, 8) {
            Ok(value) => reader.keep(result.place, cpu, address, Some(value)),
            Err(what) => reader.complain(result.place, what),
        }
    }
}

fn pair(reader: &mut Reader, cpu: u32, number: usize, line: &str) {
    let mut parts = words(number, line, &[':', '=', ',', ';']);
    let (Some(first), second) = (parts.next(), parts.next()) else { return };
    match address(first.text) {
        Err(what) => reader.complain(first.place, what),
        Ok(address) => match (second, parts.next()) {
            (None, _) => reader.complain(
                Place { column: first.place.column + first.text.chars().count(), ..first.place },
                "the line ends before its value",
            ),
            (Some(Word { text, place }), rest) => match value_of(address, text) {
                Err(what) => reader.complain(place, what),
                Ok(value) => {
                    reader.keep(place, cpu, address, value);
                    if let Some(rest) = rest.filter(|rest| !rest.text.starts_with(['#', '/', '('])) {
                        reader.complain(rest.place, format_args!("`{}` after the value", short(rest.text)));
                    }
                }
            },
        },
    }
}

/// A value that fits into the register.
fn value_of(address: Address, text: &str) -> Result<Option<u64>, String> {
    match (address, value(text)?) {
        (Address::Cpuid(..), Some(_)) => hex(text, 8).map(Some),
        (_, value) => Ok(value),
    }
}

fn address(text: &str) -> Result<Address, String> {
    match Address::parse(text) {
        Some(address) => Ok(address),
        None => {
            let number =
                hex(text, 8).map_err(|_| format!("`{}` is no address of a register", short(text)))?;
            Ok(Address::Msr(u32::try_from(number).unwrap_or(u32::MAX)))
        }
    }
}

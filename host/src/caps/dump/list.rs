//! A plain list: an address and a value a line.

use super::words::{Word, cpu_number, hex, lines, short, value, words};
use super::{Place, Reader};
use crate::caps::Address;

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
            None => pair(reader, cpu, number, line),
        }
    }
}

/// The CPU that the lines below tell of: `CPU 3:`, `[cpu3]`.
fn heading(line: &str) -> Option<u32> {
    let bare = line.trim_matches(['[', ']', ':', '-', '=', ' ']).to_ascii_lowercase();
    let starts = bare.starts_with("cpu") || bare.starts_with("logical cpu") || bare.starts_with("processor");
    let number = cpu_number(&bare.replace("processor", "cpu"))?;
    (starts && bare.ends_with(|c: char| c.is_ascii_digit())).then_some(number)
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
            (Some(Word { text, place }), rest) => match value(text) {
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

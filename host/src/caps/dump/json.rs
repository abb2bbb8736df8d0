//! Our own JSON: only what was read counts, names and meanings are made anew.

use serde::Deserialize;

use super::words::hex;
use super::{Place, Reader};
use crate::caps::Address;
use crate::caps::decode::SCHEMA;

#[derive(Deserialize)]
struct Document {
    schema: String,
    cpus: Vec<Cpu>,
}

#[derive(Deserialize)]
struct Cpu {
    id: u32,
    registers: Vec<Register>,
}

#[derive(Deserialize)]
struct Register {
    address: String,
    raw: Option<String>,
}

/// Reads a document; of one that is broken, what comes before the break.
pub fn parse(text: &str, reader: &mut Reader) {
    match serde_json::from_str::<Document>(text) {
        Ok(document) => read(&document, reader),
        Err(error) => {
            let place = Place { line: error.line().max(1), column: error.column().max(1) };
            reader.complain(place, message(&error));
            salvage(text, reader);
        }
    }
}

/// serde's message, which ends with the place that we tell ourselves.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.into())
}

fn read(document: &Document, reader: &mut Reader) {
    let place = Place { line: 1, column: 1 };
    if document.schema != SCHEMA {
        reader.complain(place, format_args!("the schema is {} instead of {SCHEMA}", document.schema));
    }
    for cpu in &document.cpus {
        reader.cpu(cpu.id);
        for register in &cpu.registers {
            keep(reader, place, cpu.id, &register.address, register.raw.as_deref());
        }
    }
}

fn keep(reader: &mut Reader, place: Place, cpu: u32, address: &str, raw: Option<&str>) {
    let Some(address) = Address::parse(address) else {
        return reader.complain(place, format_args!("`{address}` is no address of a register"));
    };
    let digits = address.width() as usize / 4;
    match raw.map(|raw| hex(raw, digits)).transpose() {
        Ok(value) => reader.keep(place, cpu, address, value),
        Err(what) => reader.complain(place, format_args!("{address}: {what}")),
    }
}

/// Looks for `"id": N`, `"address": "…"` and `"raw": "…"` in what does not parse as a whole.
fn salvage(text: &str, reader: &mut Reader) {
    let (mut cpu, mut address) = (0, None);
    let mut strings = text.split('"').skip(1).step_by(2).zip(text.split('"').skip(2).step_by(2)).peekable();
    while let Some((string, after)) = strings.next() {
        let plain = after.trim_start_matches([':', ' ', '\n', '\t']);
        let quoted = strings.peek().map(|(next, _)| *next).filter(|_| plain.is_empty());
        match string {
            "id" => {
                cpu = plain
                    .split(|c: char| !c.is_ascii_digit())
                    .next()
                    .and_then(|id| id.parse().ok())
                    .unwrap_or(cpu)
            }
            "address" => address = quoted,
            "raw" => {
                let place = Place { line: 1, column: 1 };
                match (address.take(), quoted, plain.starts_with("null")) {
                    (Some(address), Some(raw), _) => keep(reader, place, cpu, address, Some(raw)),
                    (Some(address), _, true) => keep(reader, place, cpu, address, None),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
